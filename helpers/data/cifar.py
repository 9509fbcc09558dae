"""CIFAR-10 and CIFAR-100: loaded from the first source found; every lossless source gives the same images."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from numbers import Real
from pathlib import Path
from posixpath import basename, dirname

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from helpers.data import downloads, pools
from helpers.data.photographs import decode_photograph
from helpers.data.pools import SPLIT_FOLDERS, File, Pool, cache_path, cached, decode, list_files, listed, place, stamp
from helpers.runtime import UserError, require

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale".split(),
    "fish": "aquarium_fish flatfish ray shark trout".split(),
    "flowers": "orchid poppy rose sunflower tulip".split(),
    "food_containers": "bottle bowl can cup plate".split(),
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper".split(),
    "household_electrical_devices": "clock keyboard lamp telephone television".split(),
    "household_furniture": "bed chair couch table wardrobe".split(),
    "insects": "bee beetle butterfly caterpillar cockroach".split(),
    "large_carnivores": "bear leopard lion tiger wolf".split(),
    "large_man-made_outdoor_things": "bridge castle house road skyscraper".split(),
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea".split(),
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo".split(),
    "medium_mammals": "fox porcupine possum raccoon skunk".split(),
    "non-insect_invertebrates": "crab lobster snail spider worm".split(),
    "people": "baby boy girl man woman".split(),
    "reptiles": "crocodile dinosaur lizard snake turtle".split(),
    "small_mammals": "hamster mouse rabbit shrew squirrel".split(),
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree".split(),
    "vehicles_1": "bicycle bus motorcycle pickup_truck train".split(),
    "vehicles_2": "lawn_mower rocket streetcar tank tractor".split(),
}
CIFAR100_CLASSES = sorted(sum(CIFAR100_SUPERCLASSES.values(), []))

CLASSES = {"cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}  # in label order, which is alphabetical
PUBLISHED = {"cifar10": CIFAR10, "cifar100": CIFAR100}  # torchvision knows the folder, the files and their MD5 sums
FINGERPRINTS = {  # SHA-256 of the sorted lines "split/class digest", with the digest of each image's pixels
    "cifar10": "4023eab17caf2844ecad03f4fb006b58ae42e06ed2bf0a77bcfff7390064df7c",
    "cifar10_5k": "c84ec2e4a84075ecd0bac3afd738db82f110f6e863c4b5976efbc32a5f6e15d2",
    "cifar10_tenth": "b0a3b322fcb2c5c7bb083fcfcd4ab7c9849d19a744788cc4eb70d3f5633e36b8",
    "cifar100": "cadaeda5c629b1b54aa7d66d6f6debd9542cba80290563dcba7e361c3a087baa",
}
LABEL_COLUMN = {"cifar10": "label", "cifar100": "fine_label"}
COUNTS = {"train": 50_000, "test": 10_000}
PARTS = {  # the same images whatever the source and the seed
    "cifar10_5k": ("cifar10", {"train": 5_000, "test": 1_000}),  # report `pikachu`, table 4.2
    "cifar10_tenth": ("cifar10", {"train": 5_000, "test": 10_000}),  # small enough for two CPU cores; the full test split
}
NAMES = (*CLASSES, *PARTS)
PIXELS = 32
HELD_OUT = 0.1
AGAIN = "unpack or download it again"

# A source of the data: its description, its files, and a function that reads all of its images.
Found = tuple[str, list[File], Callable[[], Pool]]


def cifar100_superclasses() -> Tensor:
    """int64 (100,): the coarse label of each CIFAR-100 class, its position in `CIFAR100_SUPERCLASSES`.

    The coarse labels of a split are `cifar100_superclasses()[split.labels]`.
    """
    coarse = {fine: label for label, classes in enumerate(CIFAR100_SUPERCLASSES.values()) for fine in classes}
    return torch.tensor([coarse[fine] for fine in CIFAR100_CLASSES])


def read_pool(name: str, base: Path, image_size: int) -> Pool:
    """All images of a data set, or of its fixed subset, at 32 pixels.

    Raises a UserError if the size is above 32, the source is incomplete or not the published one, or no download succeeds.
    """
    require(image_size <= PIXELS, f"The image size is {image_size}, but {name}'s images have 32 pixels; choose 32 or less.")
    whole, counts = PARTS.get(name, (name, None))
    path = cache_path(base, name, PIXELS)
    if not (found := _find(whole, base)):
        if carried := _carried(name, path):
            return carried
        downloads.fetch(whole, PUBLISHED[whole], base)
        found = _find(whole, base)
        require(found, f"The folder {whole}/parquet has no Parquet files but is not empty; remove it, and try again.")
    source, files, read = found
    read_whole = partial(cached, cache_path(base, whole, PIXELS), source, files, PIXELS, lambda: _in_order(whole, read()))
    return cached(path, source, files, PIXELS, lambda: _choose_part(read_whole(), counts)) if counts else read_whole()


def _find(name: str, base: Path) -> Found | None:
    return _find_pickles(name, base) or _find_folder(name, base) or _find_parquet(name, base)


def _carried(name: str, path: Path) -> Pool | None:
    """The images of a cache file whose source is missing, if they are the published ones; else None."""
    _, pool = pools.read_cache(path)
    if pool is None or _fingerprint([dirname(file) for file in pool.names], _digests(pool)) != FINGERPRINTS[name]:
        return None
    return pool._replace(source=f"cache file {path.name}", digests=_digests(pool))


def _digests(pool: Pool) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in pool.images]


def _fingerprint(places: list[str], digests: list[str]) -> str:
    lines = sorted(f"{where} {digest}\n" for where, digest in zip(places, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _in_order(name: str, pool: Pool) -> Pool:
    """Check that the pool is complete and as published; sort it by split, class and pixels, with digests of the pixels.

    The order, and thus which images are held out, and the fingerprint then do not depend on the file format.
    """
    odd = np.flatnonzero((pool.sizes != PIXELS).any(1))
    wrong = [(pool.names[n], "{}x{} pixels instead of 32x32".format(*pool.sizes[n])) for n in odd]
    lost = pools.listed_files(pool.skipped + wrong, most=3)
    require(not lost, f"The {pool.source} has images that cannot be used: {lost}; {AGAIN}.")
    places = ["/".join(place(dirname(path))).lower() for path in pool.names]
    counts, classes, digests = Counter(places), CLASSES[name], _digests(pool)
    published = {f"{split}/{label}": count // len(classes) for split, count in COUNTS.items() for label in classes}
    for where in sorted({*counts, *published}):
        has, right = counts[where], published.get(where, 0)
        but = f"The {pool.source} has {has} images in {where} where {name} has {right}"
        require(has == right, f"{but}; {AGAIN}, or give it another name if it is not meant to be complete.")
    other = f"The {pool.source} has as many images as {name}, but one is in the wrong class or not as published (a JPEG copy?)"
    require(_fingerprint(places, digests) == FINGERPRINTS[name], f"{other}; {AGAIN}, or give it another name.")
    names = [f"{where}/{basename(path)}" for where, path in zip(places, pool.names, strict=True)]
    order = sorted(range(len(names)), key=lambda n: (places[n], digests[n], names[n]))
    return pool._replace(names=names, digests=digests).take(order)


def _choose_part(pool: Pool, counts: dict[str, int]) -> Pool:
    """A fixed random subset: `counts` images per split, the same number from each class."""
    folders = np.array([dirname(path) for path in pool.names])
    places = np.unique(folders)
    chosen = []
    for number, folder in enumerate(places):
        count = counts[place(folder)[0]] // (len(places) // len(counts))  # the split's images, divided by its classes
        chosen.append(np.random.default_rng(number).permutation(np.flatnonzero(folders == folder))[:count])
    return pool.take(np.sort(np.concatenate(chosen)))


def _find_pickles(name: str, base: Path) -> Found | None:
    """The folder that torchvision unpacks. Unpickling can run any code, so each file's MD5 sum is checked first."""
    published = PUBLISHED[name]
    folders = (base / published.base_folder, base / name / published.base_folder)
    if not (folder := next(filter(Path.is_dir, folders), None)):
        return None
    source, again = f"pickle folder {folder.name}", f"delete the folder and {AGAIN}"
    sums = dict([*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])])
    for file in sums:
        require((folder / file).is_file(), f"The {source} has no file '{file}'; {again}.")

    def read() -> Pool:
        for file, md5 in sums.items():
            other = f"The file '{file}' of the {source} is not the published one, whose MD5 sum is {md5}; {again}."
            require(check_integrity(folder / file, md5), other)
        with warnings.catch_warnings(action="ignore"):  # newer numpy warns about these files from 2009
            parts = {split: published(folder.parent, train=split == "train") for split in COUNTS}
        images = np.concatenate([part.data.transpose(0, 3, 1, 2) for part in parts.values()])
        labels = [(split, CLASSES[name][label]) for split, part in parts.items() for label in part.targets]
        names = [f"{split}/{label}/{number:05}.png" for number, (split, label) in enumerate(labels)]
        return Pool(source, images, np.full((len(names), 2), PIXELS), names, [], [])

    return source, [stamp(folder / file, folder) for file in sums], read


def _find_folder(name: str, base: Path) -> Found | None:
    """The folders train/<class>/ and test/<class>/, read by Pillow: a damaged PNG can crash torchvision's faster decoder."""
    if not (base / name).is_dir() or not pools.is_image_folder(root := pools.unwrap(base / name)):
        return None
    groups = [group for _, group in pools.split_folders(root)]
    if groups and not any(map(pools.subfolders, groups)):  # folders named after the splits may hold Parquet files
        return None
    source, classes = f"folder {name}", CLASSES[name]
    files = list_files(root, source)
    paths = [path for path, _, _ in files]
    for label in sorted({place(dirname(path))[1] for path in paths}):
        require(label.lower() in classes, f"The {source} has a class '{label}'; the classes are {listed(classes)}.")
    return source, files, partial(decode, source, paths, lambda path: (root / path).read_bytes(), decode_photograph, PIXELS)


def _find_parquet(name: str, base: Path) -> Found | None:
    """Parquet files as on Hugging Face, anywhere in the folder; each file or its parent folder is named after the split."""
    source, root, splits = f"Parquet folder {name}", base / name, {}
    for path in sorted(root.rglob("[!.]*.parquet")):  # a Mac adds hidden ._train-….parquet
        words = (re.split("[-_.]", path.name)[0].lower(), path.parent.name.lower())
        splits[path] = next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)
        file = path.relative_to(root).as_posix()
        require(splits[path], f"The {source} has a file '{file}' that names no split; rename it to train-… or test-….")

    def read() -> Pool:
        try:
            tables = [(split, pd.read_parquet(path)) for path, split in splits.items()]
        except ImportError as error:
            raise UserError(f"To read the {source}, run 'pip install pyarrow'.") from error
        except Exception as error:  # given broken metadata, pandas and pyarrow raise almost anything
            raise UserError(f"The {source} has a file that cannot be read; download it again.") from error
        return _decode_tables(name, source, tables)

    return (source, [stamp(path, root) for path in splits], read) if splits else None


def _decode_tables(name: str, source: str, tables: list[tuple[str, pd.DataFrame]]) -> Pool:
    """Decode (split, table) pairs with Hugging Face's columns: `img`, whose cells hold `bytes`, and the label."""
    classes, column, contents = CLASSES[name], LABEL_COLUMN[name], {}
    for split, table in tables:
        for needed in ("img", column):
            columns = ", ".join(map(str, table.columns))
            require(needed in table.columns, f"The {source} has no column '{needed}', only {columns}; download it again.")
        for cell, label in zip(table["img"], table[column], strict=True):
            known = isinstance(label, Real) and 0 <= label < len(classes)
            require(known, f"The {source} has a label {label}, but {name} has 0 to {len(classes) - 1}; download it again.")
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            content = content if isinstance(content, bytes) else b""  # not an image, so `decode` skips it
            contents[f"{split}/{classes[int(label)]}/{len(contents):05}.png"] = content
    return decode(source, list(contents), contents.__getitem__, decode_photograph, PIXELS)
