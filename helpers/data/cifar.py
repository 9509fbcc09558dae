"""CIFAR-10 and CIFAR-100: from the first source that has them, and from every faithful one the same images."""

import hashlib
import os
import pickle
import re
import socket
import tempfile
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from posixpath import basename, dirname

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.io import ImageReadMode, decode_image

from helpers.data.folders import SPLIT_FOLDERS, File, is_image_folder, list_files, place, split_folders, subfolders, unwrap
from helpers.data.pools import Pool, decode, listed, load_pool, read_file, why
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
LABEL_COLUMN = {"cifar10": "label", "cifar100": "fine_label"}  # of the tables; the pickles have its plural
COUNTS = {"train": 50_000, "test": 10_000}
PARTS = {  # the same images whatever the source and the seed
    "cifar10_5k": ("cifar10", {"train": 5_000, "test": 1_000}),  # report `pikachu`, table 4.2
    "cifar10_tenth": ("cifar10", {"train": 5_000, "test": 10_000}),  # what two CPU cores can train on, judged in full
}
NAMES = (*CLASSES, *PARTS)
PIXELS = 32
HELD_OUT = 0.1

# A place that has the data: in words, the files it consists of, and how to read all of its images.
Found = tuple[str, list[File], Callable[[], Pool]]


class _NotSent(Exception):
    """A download that did not come; its text says from where and why."""


def cifar100_superclasses() -> Tensor:
    """int64 (100,): the coarse label of each CIFAR-100 class, which is a place in `CIFAR100_SUPERCLASSES`.

    The coarse labels of a split are `cifar100_superclasses()[split.labels]`.
    """
    coarse = {fine: label for label, classes in enumerate(CIFAR100_SUPERCLASSES.values()) for fine in classes}
    return torch.tensor([coarse[fine] for fine in CIFAR100_CLASSES])


def load(name: str, base: Path, image_size: int) -> tuple[str, Pool]:
    """The name that the images go by, with '-jpeg' at its end where they came as JPEG files; and the images, at 32 pixels.

    Raises:
        UserError: the size is above 32, the source is not whole or not the published one, or no download succeeded.
    """
    if image_size > PIXELS:
        raise UserError(f"The image size is {image_size}, but the images of {name} have 32 pixels; choose 32 or less.")
    whole, counts = PARTS.get(name, (name, None))
    here = _find_pickles(whole, base) or _find_folder(whole, base) or _find_parquet(whole, base)
    try:
        pool = _load_whole(whole, base, here or _ask_hugging_face(whole))
    except _NotSent as error:
        _download_pickles(whole, base, str(error))
        pool = _load_whole(whole, base, _find_pickles(whole, base))
    if counts:
        pool = _draw_part(pool, counts)
    if any(path.lower().endswith((".jpg", ".jpeg")) for path in pool.names):
        return f"{name}-jpeg", pool._replace(source=f"{pool.source} (JPEG)")
    return name, pool


def _load_whole(name: str, base: Path, found: Found) -> Pool:
    source, files, read = found
    return load_pool(base, name, source, files, PIXELS, lambda: _in_order(name, read()))


def _in_order(name: str, pool: Pool) -> Pool:
    """The pool, once known to be complete, sorted by split, class and pixels, with digests of pixels.

    So the order, and with it which images are held out, and the fingerprint do not depend on the format of the files.
    """
    again = "unpack or download it again"
    if lost := [f"{file} ({reason})" for file, reason in pool.skipped]:
        raise UserError(f"The {pool.source} has images that cannot be used: {listed(lost, most=3)}; {again}.")
    keys = []
    for path, image in zip(pool.names, pool.images, strict=True):
        split, class_name = place(dirname(path))
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        keys.append((f"{split}/{class_name.lower()}", digest, basename(path)))
    classes = CLASSES[name]
    counts = Counter(where for where, _, _ in keys)
    published = {f"{split}/{label}": count // len(classes) for split, count in COUNTS.items() for label in classes}
    for where in sorted({*counts, *published}):
        if counts[where] != (right := published.get(where, 0)):
            raise UserError(
                f"The {pool.source} has {counts[where]} images in {where} where {name} has {right}; {again}, or give it "
                "another name if it is not meant to be the whole."
            )
    names = [f"{where}/{file}" for where, _, file in keys]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return pool._replace(names=names, digests=[digest for _, digest, _ in keys]).take(order)


def _draw_part(pool: Pool, counts: dict[str, int]) -> Pool:
    """So many images of each split, as many of each class, and always the same ones."""
    folders = np.array([dirname(path) for path in pool.names])
    places = np.unique(folders)
    chosen = []
    for number, folder in enumerate(places):
        count = counts[place(folder)[0]] * len(counts) // len(places)
        chosen.append(np.random.default_rng(number).permutation(np.flatnonzero(folders == folder))[:count])
    return pool.take(np.sort(np.concatenate(chosen)))


def _find_pickles(name: str, base: Path) -> Found | None:
    """The folder that torchvision unpacks."""
    published = PUBLISHED[name]
    places = (base / published.base_folder, base / name / published.base_folder)
    folder = next((path for path in places if path.is_dir()), None)
    if folder is None:
        return None
    source = f"pickle folder {folder.name}"
    parts = [("train", *part) for part in published.train_list] + [("test", *part) for part in published.test_list]
    if missing := [file for _, file, _ in parts if not (folder / file).is_file()]:
        raise UserError(f"The {source} has no file '{missing[0]}'; delete the folder and unpack or download it again.")
    files = [File.at(file, folder / file) for _, file, _ in parts]
    return source, files, partial(_read_pickles, name, source, folder, parts)


def _read_pickles(name: str, source: str, folder: Path, parts: list[tuple[str, str, str]]) -> Pool:
    """The images of (split, file, MD5 sum), each file unpickled, which could run anything, only once its sum is right."""
    classes, labels = CLASSES[name], f"{LABEL_COLUMN[name]}s"
    images, names = [], []
    for split, file, md5 in parts:
        content = (folder / file).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise UserError(
                f"The file '{file}' of the {source} is not the published one, whose MD5 sum is {md5}; "
                "delete the folder and unpack or download it again."
            )
        with warnings.catch_warnings(action="ignore"):  # these files are from 2009, and newer numpy remarks on it
            batch = pickle.loads(content, encoding="latin1")
        images.append(batch["data"].reshape(-1, 3, PIXELS, PIXELS))
        inside = zip(batch[labels], batch["filenames"], strict=True)
        names += [f"{split}/{classes[label]}/{image_file}" for label, image_file in inside]
    return Pool(source, np.concatenate(images), np.full((len(names), 2), PIXELS), names, [], [])


def _find_folder(name: str, base: Path) -> Found | None:
    """An image folder, train/<class>/ and test/<class>/, of PNG or JPEG files."""
    if not (base / name).is_dir() or not is_image_folder(root := unwrap(base / name)):
        return None
    groups = [group for _, group in split_folders(root)]
    if groups and not any(map(subfolders, groups)):  # Parquet files may lie in folders that are called like the splits
        return None
    source = f"folder {name}"
    files = list_files(root, source)
    paths, classes = [file.path for file in files], CLASSES[name]
    if strange := sorted(label for label in {place(dirname(path))[1] for path in paths} if label.lower() not in classes):
        raise UserError(f"The {source} has a class '{strange[0]}'; the classes are {listed(classes)}.")
    return source, files, partial(_decode, source, paths, partial(read_file, root))


def _find_parquet(name: str, base: Path) -> Found | None:
    """Parquet files as on Hugging Face: anywhere in the folder, and each, or the folder it lies in, called by its split."""
    paths = {path.relative_to(base / name).as_posix(): path for path in sorted((base / name).rglob("*.parquet"))}
    if not paths:
        return None
    source = f"Parquet folder {name}"
    splits = []
    for file, path in paths.items():
        words = (re.split("[-_.]", path.name)[0].lower(), path.parent.name.lower())
        known = [SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS]
        if not known:
            raise UserError(f"The {source} has a file '{file}' of no known split; call it train-… or test-….")
        splits.append(known[0])

    def read() -> Pool:
        try:
            tables = [(split, pd.read_parquet(path)) for split, path in zip(splits, paths.values(), strict=True)]
        except ImportError as error:
            raise UserError(f"To read the {source}, run 'pip install pyarrow'.") from error
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            raise UserError(f"The {source} has a file that cannot be read; download it again ({why(error)}).") from error
        return _decode_tables(name, source, tables)

    return source, [File.at(file, path) for file, path in paths.items()], read


def _ask_hugging_face(name: str) -> Found:
    """What has been fetched from Hugging Face before, or else `read`, which raises _NotSent, fetches it."""
    handle = f"uoft-cs/{name}"
    source = f"Hugging Face {handle}"

    def read() -> Pool:
        try:
            with warnings.catch_warnings(action="ignore"):  # as for Kaggle
                from datasets import load_dataset
        except ImportError as error:
            raise _NotSent("Hugging Face was not asked (it needs 'pip install datasets')") from error
        try:
            require_answer(f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/datasets/{handle}")
            parts = load_dataset(handle)
            tables = [(split, parts[split].to_pandas()) for split in COUNTS]
        except Exception as error:  # each library under datasets has its own errors, and each means: no data
            raise _NotSent(f"{source} was not sent ({type(error).__name__})") from error
        return _decode_tables(name, source, tables)

    return source, [], read


def require_answer(url: str) -> None:
    """Raise OSError when there is no way to a server: `datasets` would find out only after 23 seconds of retries."""
    with suppress(urllib.error.HTTPError):  # an answer, whatever it says
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()


def _decode_tables(name: str, source: str, tables: list[tuple[str, pd.DataFrame]]) -> Pool:
    """The images of (split, table), with the columns of Hugging Face: `img`, whose cells hold `bytes`, and the label."""
    classes, column = CLASSES[name], LABEL_COLUMN[name]
    contents = {}
    for split, table in tables:
        if missing := [needed for needed in ("img", column) if needed not in table.columns]:
            columns = ", ".join(table.columns)
            raise UserError(f"The {source} has no column '{missing[0]}', but {columns}; download it again.")
        for cell, label in zip(table["img"], table[column], strict=True):
            if not 0 <= label < len(classes):
                right = f"{name} has 0 to {len(classes) - 1}"
                raise UserError(f"The {source} has a label {label}, but {right}; download it again.")
            content = (cell["bytes"] if isinstance(cell, dict) else cell) or b""
            suffix = "jpg" if content.startswith(b"\xff\xd8") else "png"
            contents[f"{split}/{classes[int(label)]}/{len(contents):05}.{suffix}"] = content
    return _decode(source, list(contents), contents.__getitem__)


def _decode(source: str, paths: list[str], read: Callable[[str], bytes]) -> Pool:
    return decode(source, paths, read, decode_tiny, PIXELS, threaded=False)


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


def _download_pickles(name: str, base: Path, before: str) -> None:
    """Fetch the pickle folder from the original server: complete and proven by its MD5 sums, or not at all."""
    published = PUBLISHED[name]
    print(
        f"{name}: {before}; trying the original server, which has sent 60 to 80 kB a second since June 2026: "
        "the whole takes 40 to 57 minutes (pytorch/vision issue 9536)."
    )
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)  # torchvision itself would wait for a silent server for ever
        # torchvision leaves what it had when it was stopped, so it works in a folder of its own that goes either way.
        with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as folder, warnings.catch_warnings(action="ignore"):
            published(folder, download=True)
            (Path(folder) / published.base_folder).rename(base / published.base_folder)
    except Exception as error:  # the network, the disk, the archive, the sums: each means no data
        raise UserError(
            f"{name} is not in the data folder, {before}, and the original server failed ({why(error).rstrip('.')}); "
            f"try again with a network, or put {published.base_folder}/ or {name}/train/<class>/ and so on into the "
            "data folder yourself."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
