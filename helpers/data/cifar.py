"""CIFAR-10 and CIFAR-100: from the first source that has them, and from every faithful one the same images."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from posixpath import basename, dirname

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity
from torchvision.io import ImageReadMode, decode_image

from helpers.data import downloads
from helpers.data.folders import (
    SPLIT_FOLDERS,
    File,
    is_image_folder,
    list_files,
    place,
    split_folders,
    stamp,
    subfolders,
    unwrap,
)
from helpers.data.pools import Pool, cached, decode, listed, read_file, why
from helpers.runtime import UserError

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR10_GROUPS = {  # ours, for CIFAR-10 has no superclasses
    "animals": "bird cat deer dog frog horse".split(),
    "vehicles": "airplane automobile ship truck".split(),
}
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

CLASSES = {"cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}  # in the order of labels, the alphabet's
PUBLISHED = {"cifar10": CIFAR10, "cifar100": CIFAR100}  # torchvision knows the folder, the files and their MD5 sums
FINGERPRINTS = {  # SHA-256 of the sorted lines "split/class digest", with the digest of each image's pixels
    "cifar10": "4023eab17caf2844ecad03f4fb006b58ae42e06ed2bf0a77bcfff7390064df7c",
    "cifar100": "cadaeda5c629b1b54aa7d66d6f6debd9542cba80290563dcba7e361c3a087baa",
}
LABEL_COLUMN = {"cifar10": "label", "cifar100": "fine_label"}
COUNTS = {"train": 50_000, "test": 10_000}
PARTS = {  # the same images whatever the source and the seed
    "cifar10_5k": ("cifar10", {"train": 5_000, "test": 1_000}),  # report `pikachu`, table 4.2
    "cifar10_tenth": ("cifar10", {"train": 5_000, "test": 10_000}),  # what two CPU cores can train on, judged in full
}
NAMES = (*CLASSES, *PARTS)
PIXELS = 32
HELD_OUT = 0.1
AGAIN = "unpack or download it again"

# A place that has the data: in words, the files it consists of, and how to read all of its images.
Found = tuple[str, list[File], Callable[[], Pool]]


def classes_of(name: str) -> list[str]:
    """The classes of one of `NAMES`, in the order of labels."""
    return CLASSES[PARTS[name][0] if name in PARTS else name]


def cifar100_superclasses() -> Tensor:
    """int64 (100,): the coarse label of each CIFAR-100 class, its position in `CIFAR100_SUPERCLASSES`.

    The coarse labels of a split are `cifar100_superclasses()[split.labels]`.
    """
    coarse = {fine: label for label, classes in enumerate(CIFAR100_SUPERCLASSES.values()) for fine in classes}
    return torch.tensor([coarse[fine] for fine in CIFAR100_CLASSES])


def read_pool(name: str, base: Path, image_size: int) -> tuple[str, Pool]:
    """The images, at 32 pixels, and the name they go by, which ends in '-jpeg' where they came as JPEG files.

    Raises:
        UserError: the size is above 32, the source is not whole or not the published one, or no download succeeded.
    """
    if image_size > PIXELS:
        raise UserError(f"The image size is {image_size}, but the images of {name} have 32 pixels; choose 32 or less.")
    whole, counts = PARTS.get(name, (name, None))
    found = _find(whole, base)
    if found is None:
        downloads.fetch(whole, PUBLISHED[whole], base)
        found = _find(whole, base)
    source, files, read = found
    pool = cached(base, whole, source, files, PIXELS, lambda: _in_order(whole, read()))
    pool = _choose_part(pool, counts) if counts else pool
    return (f"{name}-jpeg", pool._replace(source=f"{pool.source} (JPEG)")) if _is_jpeg(pool) else (name, pool)


def _find(name: str, base: Path) -> Found | None:
    return _find_pickles(name, base) or _find_folder(name, base) or _find_parquet(name, base)


def _is_jpeg(pool: Pool) -> bool:
    return any(path.lower().endswith((".jpg", ".jpeg")) for path in pool.names)


def _in_order(name: str, pool: Pool) -> Pool:
    """The pool, once known to be complete and the published one, sorted by split, class and pixels, with digests of pixels.

    So the order, and with it which images are held out, and the fingerprint do not depend on the format of the files.
    """
    if lost := [f"{file} ({reason})" for file, reason in pool.skipped]:
        raise UserError(f"The {pool.source} has images that cannot be used: {listed(lost, most=3)}; {AGAIN}.")
    keys = []
    for path, image in zip(pool.names, pool.images, strict=True):
        split, class_name = place(dirname(path))
        keys.append((f"{split}/{class_name.lower()}", hashlib.sha256(image.tobytes()).hexdigest(), basename(path)))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    counts, classes = Counter(where for where, _, _ in keys), CLASSES[name]
    published = {f"{split}/{label}": count // len(classes) for split, count in COUNTS.items() for label in classes}
    for where in sorted({*counts, *published}):
        if counts[where] != (right := published.get(where, 0)):
            raise UserError(
                f"The {pool.source} has {counts[where]} images in {where} where {name} has {right}; {AGAIN}, or give it "
                "another name if it is not meant to be the whole."
            )
    lines = "".join(f"{where} {digest}\n" for where, digest, _ in sorted(keys))
    if hashlib.sha256(lines.encode()).hexdigest() != FINGERPRINTS[name] and not _is_jpeg(pool):
        raise UserError(
            f"The {pool.source} has as many images as {name}, but an image is not the published one or lies in another "
            f"class; {AGAIN}, or give it another name."
        )
    names = [f"{where}/{file}" for where, _, file in keys]
    return pool._replace(names=names, digests=[digest for _, digest, _ in keys]).take(order)


def _choose_part(pool: Pool, counts: dict[str, int]) -> Pool:
    """So many random images of each split, as many of each class, and always the same ones."""
    folders = np.array([dirname(path) for path in pool.names])
    places = np.unique(folders)
    chosen = []
    for number, folder in enumerate(places):
        count = counts[place(folder)[0]] * len(counts) // len(places)
        chosen.append(np.random.default_rng(number).permutation(np.flatnonzero(folders == folder))[:count])
    return pool.take(np.sort(np.concatenate(chosen)))


def _find_pickles(name: str, base: Path) -> Found | None:
    """The folder that torchvision unpacks. Unpickling can run anything, so each file's MD5 sum is compared before."""
    published = PUBLISHED[name]
    folders = (base / published.base_folder, base / name / published.base_folder)
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        return None
    source, again = f"pickle folder {folder.name}", f"delete the folder and {AGAIN}"
    sums = dict([*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])])
    if missing := [file for file in sums if not (folder / file).is_file()]:
        raise UserError(f"The {source} has no file '{missing[0]}'; {again}.")

    def read() -> Pool:
        for file, md5 in sums.items():
            if not check_integrity(folder / file, md5):
                raise UserError(f"The file '{file}' of the {source} is not the published one, whose MD5 sum is {md5}; {again}.")
        with warnings.catch_warnings(action="ignore"):  # these files are from 2009, and newer numpy remarks on it
            parts = {split: published(folder.parent, train=split == "train") for split in COUNTS}
        images = np.concatenate([part.data.transpose(0, 3, 1, 2) for part in parts.values()])
        labels = [(split, CLASSES[name][label]) for split, part in parts.items() for label in part.targets]
        names = [f"{split}/{label}/{number:05}.png" for number, (split, label) in enumerate(labels)]
        return Pool(source, images, np.full((len(names), 2), PIXELS), names, [], [])

    return source, [stamp(file, folder / file) for file in sums], read


def _find_folder(name: str, base: Path) -> Found | None:
    """An image folder, train/<class>/ and test/<class>/, of PNG or JPEG files."""
    if not (base / name).is_dir() or not is_image_folder(root := unwrap(base / name)):
        return None
    groups = [group for _, group in split_folders(root)]
    if groups and not any(map(subfolders, groups)):  # Parquet files may lie in folders that are called like the splits
        return None
    source = f"folder {name}"
    files = list_files(root, source)
    paths, classes = [path for path, _, _ in files], CLASSES[name]
    if strange := sorted(label for label in {place(dirname(path))[1] for path in paths} if label.lower() not in classes):
        raise UserError(f"The {source} has a class '{strange[0]}'; the classes are {listed(classes)}.")
    return source, files, partial(decode, source, paths, partial(read_file, root), decode_tiny, PIXELS, threaded=False)


def _find_parquet(name: str, base: Path) -> Found | None:
    """Parquet files as on Hugging Face: anywhere in the folder, and each, or the folder it lies in, called by its split."""
    source = f"Parquet folder {name}"
    files, splits = [], {}
    for path in sorted((base / name).rglob("*.parquet")):
        files.append(stamp(path.relative_to(base / name).as_posix(), path))
        words = (re.split("[-_.]", path.name)[0].lower(), path.parent.name.lower())
        splits[path] = next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)
        if splits[path] is None:
            raise UserError(f"The {source} has a file '{files[-1][0]}' of no known split; call it train-… or test-….")

    def read() -> Pool:
        try:
            tables = [(split, pd.read_parquet(path)) for path, split in splits.items()]
        except ImportError as error:
            raise UserError(f"To read the {source}, run 'pip install pyarrow'.") from error
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            raise UserError(f"The {source} has a file that cannot be read; download it again ({why(error)}).") from error
        return _decode_tables(name, source, tables)

    return (source, files, read) if files else None


def _decode_tables(name: str, source: str, tables: list[tuple[str, pd.DataFrame]]) -> Pool:
    """The images of (split, table), with the columns of Hugging Face: `img`, whose cells hold `bytes`, and the label."""
    classes, column = CLASSES[name], LABEL_COLUMN[name]
    contents = {}
    for split, table in tables:
        if missing := [needed for needed in ("img", column) if needed not in table.columns]:
            raise UserError(f"The {source} has no column '{missing[0]}', but {', '.join(table.columns)}; download it again.")
        for cell, label in zip(table["img"], table[column], strict=True):
            if not 0 <= label < len(classes):
                raise UserError(f"The {source} has a label {label}, but {name} has 0 to {len(classes) - 1}; download it again.")
            content = (cell["bytes"] if isinstance(cell, dict) else cell) or b""
            suffix = "jpg" if content.startswith(b"\xff\xd8") else "png"
            contents[f"{split}/{classes[int(label)]}/{len(contents):05}.{suffix}"] = content
    return decode(source, list(contents), contents.__getitem__, decode_tiny, PIXELS, threaded=False)


def decode_tiny(content: bytes, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """As `decode_photograph`, of an image that has its size: the same pixels, and three times faster than by Pillow.

    Raises:
        ValueError: it is neither PNG nor JPEG, it is broken, or it is not `size` x `size`.
    """
    try:
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).numpy()
    except (RuntimeError, ValueError) as error:
        raise ValueError("broken, or neither PNG nor JPEG") from error
    height, width = image.shape[1:]
    if (width, height) != (size, size):
        raise ValueError(f"{width}x{height} pixels instead of {size}x{size}")
    return image, (width, height)
