"""What goes in: photographs and CIFAR from every source, splits, the audit, sample data, batches on the device."""

import hashlib
import json
import os
import pickle
import re
import socket
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.io import ImageReadMode, decode_image

from helpers.runtime import UserError, data_dir, progress

KAGGLE = {"pikachu": "hal0samuel/pikachu-classification-dataset"}

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CIFAR100_SUPERCLASSES = {coarse: fine.split() for coarse, fine in _SUPERCLASSES.items()}
CIFAR100_CLASSES = sorted(sum(CIFAR100_SUPERCLASSES.values(), []))


class _Cifar(NamedTuple):
    """What the sources call the parts of a CIFAR data set; its classes are in the order of labels, the alphabet's."""

    classes: list[str]
    published: type[CIFAR10]  # torchvision knows its folder, its files and their MD5 sums
    pickle_labels: bytes
    hugging_face: str
    label_column: str


CIFAR = {
    "cifar10": _Cifar(CIFAR10_CLASSES, CIFAR10, b"labels", "uoft-cs/cifar10", "label"),
    "cifar100": _Cifar(CIFAR100_CLASSES, CIFAR100, b"fine_labels", "uoft-cs/cifar100", "fine_label"),
}
CIFAR_COUNTS = {"train": 50_000, "test": 10_000}
CIFAR_PARTS = {"cifar10_5k": ("cifar10", {"train": 5_000, "test": 1_000})}
CIFAR_PIXELS = 32
CIFAR_NAMES = (*CIFAR, *CIFAR_PARTS)

NAMES = (*KAGGLE, *CIFAR_NAMES)
SAMPLE_CLASSES = {
    "pikachu": ["not_pikachu", "pikachu"],
    "cifar10": CIFAR10_CLASSES,
    "cifar10_5k": CIFAR10_CLASSES,
    "cifar100": CIFAR100_CLASSES,
}
SAMPLE_COUNTS = {
    "pikachu": (48, 16, 16),
    "cifar10": (40, 20, 20),
    "cifar10_5k": (40, 20, 20),
    "cifar100": (200, 100, 100),
}

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"val": "validation", "valid": "validation"}
HELD_OUT = 0.2
CIFAR_HELD_OUT = 0.1
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
CACHE_VERSION = 1
DECODE_TOGETHER = 16  # files that a thread is given at a time: one by one, tiny images would wait for the queue

AUGMENTS = ("none", "flip", "crop_flip")
THUMBNAIL = 32
# Chosen by looking at every Pikachu pair above 0.87: all from 0.9405 up show the same picture (other file, other size,
# a neighbouring film frame), and the first that do not are small figures alone on black, at 0.9280.
NEAR_IDENTICAL = 0.935

Place = tuple[str, int]  # a split's name and an index in it


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split.

    images: uint8 (N, 3, H, W); labels: int64 (N,); names: paths relative to the folder of the data, with '/';
    digests: SHA-256 of each file's content, in hex; sizes: int64 (N, 2), each file's width and height in pixels.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    digests: list[str] = field(default_factory=list)
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split with its images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "Split":
        """The images at `indices`, in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        positions, there = indices.tolist(), indices.to(self.images.device)
        return Split(
            images=self.images[there],
            labels=self.labels[there],
            names=[self.names[i] for i in positions],
            digests=[self.digests[i] for i in positions] if self.digests else [],
            sizes=None if self.sizes is None else self.sizes[indices],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of labelled images.

    name: as it was asked for, with '-jpeg' at its end where CIFAR came as JPEG files, which costs accuracy;
    source: where they came from, in words; fingerprint: a hash of which image, by content, is in which split;
    classes: the name of each label, sorted; skipped: (file, why) of each file that could not be read.
    """

    name: str
    source: str
    fingerprint: str
    classes: list[str]
    train: Split
    validation: Split
    test: Split
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_sample(self) -> bool:
        """Whether the images were generated; no number made from them is a result."""
        return self.source == "sample"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name: train, validation, test."""
        return {split: getattr(self, split) for split in SPLITS}


class _File(NamedTuple):
    path: str  # relative to the folder of the data, with '/'
    bytes: int
    modified: int  # nanoseconds


class _Pool(NamedTuple):
    """Every readable image of a source, decoded, before anything is split: what the cache file keeps."""

    images: np.ndarray
    sizes: np.ndarray
    names: list[str]
    digests: list[str]
    skipped: list[tuple[str, str]]

    def take(self, positions: Sequence[int]) -> "_Pool":
        """The images at `positions`, in that order."""
        names, digests = ([items[position] for position in positions] for items in (self.names, self.digests))
        return _Pool(self.images[positions], self.sizes[positions], names, digests, self.skipped)


class _Found(NamedTuple):
    """A place that has the data: in words, the files it consists of, and how to read all of its images."""

    source: str
    files: list[_File]
    read: Callable[[], _Pool]


class _NotSent(Exception):
    """A download that did not come; its text says from where and why."""


def names(folder: str | Path | None = None) -> list[str]:
    """The names that `load` takes: the published data sets, and each image folder in the data folder."""
    base = data_dir(folder)
    own = [path.name for path in _folders(base) if _is_image_folder(_unwrap(path))] if base.is_dir() else []
    return sorted({*NAMES, *own})


def load(name: str, folder: str | Path | None = None, *, image_size: int | None = None, seed: int = 0) -> Dataset:
    """Real images: found, decoded once, cached, split, and described in one printed line.

    Args:
        name: one of `names()`: a published data set, or an image folder in the data folder.
        folder: the data folder, by default `runtime.data_dir()`.
        image_size: pixels of a model's input. Photographs, by default for 224, are stored a seventh larger (256), as
            room for crops; CIFAR stays at its 32.
        seed: decides who goes where when the source brings no validation or test split of its own.

    Raises:
        UserError: the folder, a class or a split is missing or empty, there are too few classes or images, a file is
            not the published one, or a download failed.
    """
    if image_size is None:
        image_size = CIFAR_PIXELS if name in CIFAR_NAMES else 224
    if image_size < 1 or seed < 0:
        raise UserError(f"Image size {image_size} with seed {seed} cannot be; the size starts at 1 and the seed at 0.")
    base = data_dir(folder)
    if not base.is_dir():
        raise UserError(f"There is no data folder '{base}'; create it, or set DATA_DIR to the right one.")
    dataset = (_load_cifar if name in CIFAR_NAMES else _load_photographs)(name, base, image_size, seed)
    counts = ", ".join(f"{len(split)} {key}" for key, split in dataset.splits.items())
    print(f"{name}: found in {dataset.source}: {counts} images, {len(dataset.classes)} classes.")
    if dataset.skipped:
        print(f"Left out {len(dataset.skipped)}: {_listed([f'{file} ({why})' for file, why in dataset.skipped])}.")
    return dataset


def _listed(items: list[str], most: int = 10) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return "; ".join(items[:most] + more)


def _load_photographs(name: str, base: Path, image_size: int, seed: int) -> Dataset:
    source, root = _find(name, base)
    files = _list_files(root, source)
    paths = [file.path for file in files]
    stored = image_size * 8 // 7

    def read() -> _Pool:
        return _decode(paths, _reader(root), decode_photograph, stored)

    pool = _load_pool(_Found(source, files, read), stored, base / "cache" / f"{Path(name).name}-{stored}.npz")
    return _split_pool(name, source, paths, pool, seed)


def _find(name: str, base: Path) -> tuple[str, Path]:
    """The source of the data in words, and the folder that holds its splits or classes."""
    own = _unwrap(base / name) if (base / name).is_dir() else None
    # DATA_DIR may point at the photographs themselves, and one of their classes may be called like the data.
    base_is_it = name in KAGGLE and _is_image_folder(base) and (own is None or _holds_images(own))
    if base_is_it:
        return f"folder {base.resolve().name}", base
    if own:
        return f"folder {Path(name).name}", own
    if name in KAGGLE:
        return f"kaggle {KAGGLE[name]}", _unwrap(_download_from_kaggle(name))
    raise UserError(f"There is no '{name}' in the data folder; choose from {', '.join(names(base))}, or put it there.")


def _download_from_kaggle(name: str) -> Path:
    instead = f"or put the photographs into the data folder yourself, as {name}/train/<class>/ and so on"
    try:
        with warnings.catch_warnings():  # a notebook without ipywidgets is warned about the looks of its progress bars
            warnings.simplefilter("ignore")
            import kagglehub
    except ImportError as error:
        raise UserError(f"Kaggle needs a package: run 'pip install kagglehub', {instead}.") from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE[name]))
    except Exception as error:  # each library under kagglehub has its own errors, and each means: no data
        why = f"Kaggle did not send '{KAGGLE[name]}' ({type(error).__name__})"
        raise UserError(f"{why}; try again with a network, {instead}.") from error


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in IGNORED]
    return sorted(shown, key=lambda entry: entry.name)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _visible(folder) if entry.is_dir()]


def _holds_images(folder: Path) -> bool:
    return any(Path(entry.name).suffix.lower() in EXTENSIONS and entry.is_file() for entry in _visible(folder))


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    """(split, its folder) for each subfolder that is named like a split and is not itself a class with images."""
    named = [(SPLIT_FOLDERS.get(path.name.lower()), path) for path in _folders(folder)]
    return [(split, path) for split, path in named if split and not _holds_images(path)]


def _is_image_folder(folder: Path) -> bool:
    has_train = any(split == "train" for split, _ in _split_folders(folder))
    return has_train or sum(_holds_images(path) for path in _folders(folder)) > 1


def _unwrap(folder: Path) -> Path:
    """The folder that has the splits or classes: unpacked archives often lie one folder deeper."""
    while not _is_image_folder(folder) and not _holds_images(folder):
        inner = _folders(folder)
        if len(inner) != 1 or _holds_images(inner[0]):
            break
        folder = inner[0]
    return folder


def _list_files(root: Path, source: str) -> list[_File]:
    """Every file in every class folder, sorted by path, once splits and classes are known to be in order."""
    groups = _split_folders(root)
    splits = Counter(split for split, _ in groups)
    if groups and {"train", "test"} - set(splits):
        raise UserError(f"The {source} has the splits {', '.join(splits)}; it needs train and test, or only classes.")
    if twice := [split for split, number in splits.items() if number > 1]:
        raise UserError(f"The {source} has two folders for the {twice[0]} split; keep one of them.")
    files = []
    for split, group in groups or [("", root)]:
        folders = _folders(group)
        if groups and not folders:
            raise UserError(f"The {split} split of the {source} is empty; put a folder for each class into it.")
        for folder in folders:
            if not groups and folder.name == "cache":  # ours, when the data folder itself is the image folder
                continue
            found = [entry for entry in _visible(folder) if entry.is_file()]
            if not found:
                raise UserError(f"The class folder '{folder.relative_to(root).as_posix()}' of the {source} is empty.")
            inside = folder.relative_to(root).as_posix()
            files += [_file(f"{inside}/{entry.name}", entry) for entry in found]
    _check_classes(files, [path.name for _, path in groups], source)
    return sorted(files)


def _reader(root: Path) -> Callable[[str], bytes]:
    def read(path: str) -> bytes:
        with open(os.path.join(root, path), "rb") as file:  # pathlib would take longer than decoding a tiny image
            return file.read()

    return read


def _file(name: str, path: Path | os.DirEntry) -> _File:
    status = path.stat()
    return _File(name, status.st_size, status.st_mtime_ns)


def _check_classes(files: list[_File], split_folders: list[str], source: str) -> None:
    folders = {_folder(file.path) for file in files}
    classes = {folder.split("/")[-1] for folder in folders}
    if not classes:
        raise UserError(f"The {source} is empty; put a folder for each class into it, with the images inside.")
    if len(classes) == 1:
        raise UserError(f"The {source} has one class, '{classes.pop()}'; telling classes apart needs at least two.")
    for split in split_folders:
        if missing := sorted(name for name in classes if f"{split}/{name}" not in folders):
            raise UserError(f"The {source} has no class '{missing[0]}' in {split}/; every split needs every class.")


def _load_pool(found: _Found, stored: int, cache_file: Path) -> _Pool:
    """Every image of the source, from the cache file when it was made from these very files, else read."""
    key = hashlib.sha256(json.dumps([CACHE_VERSION, found.source, stored, found.files]).encode()).hexdigest()
    pool = _read_cache(cache_file, key)
    if pool is None:
        pool = found.read()
        _write_cache(cache_file, pool, {"key": key, "source": found.source})
    return pool


def _decode(paths: list[str], read: Callable, decode: Callable, stored: int, workers: int | None = None) -> _Pool:
    """Every image: `read(path)` gives a file's content, `decode(content, stored)` its pixels, and width and height."""
    images = np.empty((len(paths), 3, stored, stored), np.uint8)
    sizes = np.empty((len(paths), 2), np.int64)

    def decode_one(position: int) -> tuple[str, str]:
        """(digest, "") of a file whose image is now in place, or ("", why) of one that cannot be read."""
        try:
            content = read(paths[position])
            images[position], sizes[position] = decode(content, stored)
        except Exception as error:  # a broken file can make Pillow raise nearly anything, and none may be fatal
            return "", _why(error)
        return hashlib.sha256(content).hexdigest(), ""

    def decode_some(start: int) -> list[tuple[str, str]]:
        return [decode_one(position) for position in range(start, min(start + DECODE_TOGETHER, len(paths)))]

    # Threads, because Pillow decodes without Python's lock: faster than processes here, and nothing to send back.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count()) as threads:
        warnings.simplefilter("ignore")
        starts = range(0, len(paths), DECODE_TOGETHER)
        parts = list(progress(threads.map(decode_some, starts), "decoding", total=len(starts)))
    outcomes = [outcome for part in parts for outcome in part]
    readable = [position for position, (digest, _) in enumerate(outcomes) if digest]
    whole = len(readable) == len(paths)
    return _Pool(
        images=images if whole else images[readable],
        sizes=sizes if whole else sizes[readable],
        names=[paths[position] for position in readable],
        digests=[outcomes[position][0] for position in readable],
        skipped=[(path, why) for path, (_, why) in zip(paths, outcomes, strict=True) if why],
    )


def _why(error: Exception) -> str:
    """Why a file was left out, in words that name no folder of this machine."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, perhaps a decompression bomb"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@cache
def _formats() -> list[str]:
    """The formats that are read. Not all that Pillow can: it would hand an EPS file to Ghostscript, to be executed."""
    Image.init()
    return [name for name in ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN]


def decode_photograph(content: bytes, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The middle square of an image file, whatever its mode, upright and in colour.

    Returns:
        uint8 (3, size, size), and the width and height of the upright original in pixels.

    Raises:
        ValueError: the file is empty.
        PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, OSError: it is no image, too large, or cut off.
    """
    if not content:
        raise ValueError("an empty file")
    with Image.open(BytesIO(content), formats=_formats()) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Image.DecompressionBombError
        on_its_side = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        width, height = image.size[::-1] if on_its_side else image.size
        image.draft(None, (2 * size, 2 * size))  # a JPEG is read at 1/2, 1/4 or 1/8, never below twice the size
        upright = _to_rgb(ImageOps.exif_transpose(image))
    side = min(upright.size)
    left, top = (upright.width - side) / 2, (upright.height - side) / 2
    # Cut out first, then resized: an image of 1 x 10,000 pixels would otherwise grow to millions on the way.
    square = upright.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1), (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit colour; what is transparent becomes white."""
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
        values = np.asarray(image, np.float64)
        white = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255
        image = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _read_cache(path: Path, key: str) -> _Pool | None:
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip file, so reading compares its checksums
            about = json.loads(stored["about"].tobytes())
            if about["key"] != key:
                return None
            skipped = [(file, why) for file, why in about["skipped"]]
            return _Pool(stored["images"], stored["sizes"], about["names"], about["digests"], skipped)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f"The cache file {path.name} cannot be read and is made again.")
        return None


def _write_cache(path: Path, pool: _Pool, about: dict) -> None:
    """Keep the pool in one file; where that cannot be, print a line and leave nothing behind."""
    about = about | {"names": pool.names, "digests": pool.digests, "skipped": pool.skipped}
    part = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
            text = np.frombuffer(json.dumps(about).encode(), np.uint8)
            np.savez(file, about=text, images=pool.images, sizes=pool.sizes)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        print(f"No cache is kept in the data folder ({error.strerror}); the images will be decoded again next time.")
    finally:
        if part:
            part.unlink(missing_ok=True)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _place(folder: str) -> tuple[str, str]:
    """The split and the class of the files in a folder; train, to be split later, where there are only class folders."""
    split, _, class_name = folder.rpartition("/")
    return SPLIT_FOLDERS[split.lower()] if split else "train", class_name


def _split_pool(name: str, source: str, paths: list[str], pool: _Pool, seed: int, share=HELD_OUT, named=True) -> Dataset:
    """The pool as a data set: in the splits that the paths lie in where they lie in any, else split here.

    Args:
        paths: of all files, readable or not: they tell the classes and the splits.
        share: of each class, what is held out for each split that the source does not bring.
        named: whether the names of the files count for the fingerprint.
    """
    places = {folder: _place(folder) for folder in {_folder(path) for path in paths}}
    own, classes = (sorted(set(items)) for items in zip(*places.values(), strict=True))
    folders = [_folder(path) for path in pool.names]
    if unreadable := sorted(places.keys() - set(folders)):
        _raise_unreadable(unreadable[0], pool.skipped, source)
    split_of = np.array([places[folder][0] for folder in folders], dtype="<U10")
    label_of = {folder: classes.index(class_name) for folder, (_, class_name) in places.items()}
    labels = np.array([label_of[folder] for folder in folders], np.int64)
    _hold_out(split_of, labels, classes, [split for split in SPLITS if split not in own], share, seed, source)
    images, labels, sizes = (torch.from_numpy(array) for array in (pool.images, labels, pool.sizes))
    everything = Split(images, labels, pool.names, pool.digests, sizes)
    splits = {split: everything.subset(np.flatnonzero(split_of == split)) for split in SPLITS}
    return Dataset(name, source, _fingerprint(splits, named), classes, **splits, skipped=pool.skipped)


def _raise_unreadable(folder: str, skipped: list[tuple[str, str]], source: str) -> None:
    class_name = _place(folder)[1]
    lost = [f"{file} ({why})" for file, why in skipped if _folder(file) == folder]
    raise UserError(f"No image of class '{class_name}' of the {source} can be read: {_listed(lost, most=3)}.")


def _hold_out(split_of: np.ndarray, labels: np.ndarray, classes, splits: list[str], share: float, seed: int, source: str):
    """Move a share of each class, at least one image, from train to each of `splits`."""
    for label in range(len(classes)):
        mine = np.flatnonzero((labels == label) & (split_of == "train"))
        count = max(1, round(share * len(mine)))
        if splits and len(mine) < len(splits) + 1:
            raise UserError(
                f"The class '{classes[label]}' of the {source} has {len(mine)} readable images, too few to split; "
                f"it needs {len(splits) + 1}."
            )
        shuffled = np.random.default_rng([seed, label]).permutation(mine)
        for place, split in enumerate(splits):
            split_of[shuffled[place * count : (place + 1) * count]] = split


def _fingerprint(splits: dict[str, Split], named: bool = True) -> str:
    """A hash of which file is in which split; unless `named`, only the file's class counts, and not what it is called."""
    hasher = hashlib.sha256()
    for name, split in splits.items():
        files = split.names if named else [_folder(file).rpartition("/")[2] for file in split.names]
        lines = (f"{name}\0{file}\0{digest}\n" for file, digest in zip(files, split.digests, strict=True))
        hasher.update("".join(lines).encode())
    return hasher.hexdigest()[:16]


def _load_cifar(name: str, base: Path, image_size: int, seed: int) -> Dataset:
    """CIFAR from the first source that has it: from every faithful one the same images in the same places."""
    if image_size > CIFAR_PIXELS:
        raise UserError(f"The image size is {image_size}, but the images of {name} have 32 pixels; choose 32 or less.")
    whole, counts = CIFAR_PARTS.get(name, (name, None))
    here = _find_pickles(whole, base) or _find_cifar_folder(whole, base) or _find_parquet(whole, base)
    found = here or _find_on_hugging_face(whole)
    try:
        pool = _load_cifar_pool(whole, base, found)
    except _NotSent as error:
        _download_pickles(whole, base, str(error))
        found = _find_pickles(whole, base)
        pool = _load_cifar_pool(whole, base, found)
    if counts:
        pool = _draw_part(pool, counts)
    source = found.source
    if any(path.lower().endswith((".jpg", ".jpeg")) for path in pool.names):
        name, source = f"{name}-jpeg", f"{source} (JPEG)"
    return _split_pool(name, source, pool.names, pool, seed, CIFAR_HELD_OUT, named=False)


def cifar100_superclasses() -> Tensor:
    """int64 (100,): the coarse label of each CIFAR-100 class, which is a place in `CIFAR100_SUPERCLASSES`.

    The coarse labels of a split are `cifar100_superclasses()[split.labels]`.
    """
    coarse = {fine: place for place, classes in enumerate(CIFAR100_SUPERCLASSES.values()) for fine in classes}
    return torch.tensor([coarse[fine] for fine in CIFAR100_CLASSES])


def _find_pickles(name: str, base: Path) -> _Found | None:
    """The folder that torchvision unpacks."""
    published = CIFAR[name].published
    places = (base / published.base_folder, base / name / published.base_folder)
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        return None
    source = f"pickle folder {folder.name}"
    parts = [("train", *part) for part in published.train_list] + [("test", *part) for part in published.test_list]
    if missing := [file for _, file, _ in parts if not (folder / file).is_file()]:
        raise UserError(f"The {source} has no file '{missing[0]}'; delete the folder and unpack or download it again.")
    files = [_file(file, folder / file) for _, file, _ in parts]
    return _Found(source, files, lambda: _read_pickles(name, folder, parts))


def _read_pickles(name: str, folder: Path, parts: list[tuple[str, str, str]]) -> _Pool:
    """The images of (split, file, MD5 sum), each file unpickled, which could run anything, only once its sum is right."""
    images, names = [], []
    for split, file, md5 in parts:
        content = (folder / file).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise UserError(
                f"The file '{file}' of the pickle folder {folder.name} is not the published one, whose MD5 sum is {md5}; "
                "delete the folder and unpack or download it again."
            )
        with warnings.catch_warnings():  # these files are from 2009, and newer versions of numpy remark on it
            warnings.simplefilter("ignore")
            batch = pickle.loads(content, encoding="bytes")
        images.append(batch[b"data"].reshape(-1, 3, CIFAR_PIXELS, CIFAR_PIXELS))
        classes = [CIFAR[name].classes[label] for label in batch[CIFAR[name].pickle_labels]]
        files = [file.decode() for file in batch[b"filenames"]]
        names += [f"{split}/{class_name}/{file}" for class_name, file in zip(classes, files, strict=True)]
    sizes = np.full((len(names), 2), CIFAR_PIXELS)
    return _Pool(np.concatenate(images), sizes, names, [], [])


def _find_cifar_folder(name: str, base: Path) -> _Found | None:
    """An image folder, train/<class>/ and test/<class>/, of PNG or JPEG files."""
    root = _unwrap(base / name) if (base / name).is_dir() else None
    if root is None or not _is_image_folder(root):
        return None
    groups = [group for _, group in _split_folders(root)]
    if groups and not any(map(_folders, groups)):  # Parquet files may lie in folders that are called like the splits
        return None
    files = _list_files(root, f"folder {name}")
    classes = CIFAR[name].classes
    found = {_folder(file.path).rpartition("/")[2] for file in files}
    if strange := sorted(name for name in found if name.lower() not in classes):
        raise UserError(f"The folder {name} has a class '{strange[0]}'; the classes are {_listed(classes)}.")

    def read() -> _Pool:
        return _decode_all_tiny([file.path for file in files], _reader(root))

    return _Found(f"folder {name}", files, read)


def _find_parquet(name: str, base: Path) -> _Found | None:
    """Parquet files as on Hugging Face: anywhere in the folder, and each, or the folder it lies in, called by its split."""
    paths = {path.relative_to(base / name).as_posix(): path for path in sorted((base / name).rglob("*.parquet"))}
    if not paths:
        return None
    source = f"Parquet folder {name}"
    splits = {}
    for file, path in paths.items():
        words = (re.split("[-_.]", path.name)[0].lower(), path.parent.name.lower())
        splits[file] = next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)
        if splits[file] is None:
            raise UserError(f"The {source} has a file '{file}' of no known split; call it train-… or test-….")

    def read() -> _Pool:
        try:
            import pandas as pd

            tables = [(splits[file], pd.read_parquet(path)) for file, path in paths.items()]
        except ImportError as error:
            raise UserError(f"To read the {source}, run 'pip install pyarrow'.") from error
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            raise UserError(f"The {source} has a file that cannot be read; download it again ({_why(error)}).") from error
        return _decode_tables(name, source, tables)

    return _Found(source, [_file(file, path) for file, path in paths.items()], read)


def _find_on_hugging_face(name: str) -> _Found:
    """What has been fetched from Hugging Face before, or else `read`, which raises _NotSent, fetches it."""
    handle = CIFAR[name].hugging_face
    source = f"Hugging Face {handle}"

    def read() -> _Pool:
        try:
            with warnings.catch_warnings():  # as for Kaggle
                warnings.simplefilter("ignore")
                from datasets import load_dataset
        except ImportError as error:
            raise _NotSent("Hugging Face was not asked (it needs 'pip install datasets')") from error
        try:
            _require_answer(f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/datasets/{handle}")
            parts = load_dataset(handle)
            tables = [(split, parts[split].to_pandas()) for split in CIFAR_COUNTS]
        except Exception as error:  # each library under datasets has its own errors, and each means: no data
            raise _NotSent(f"{source} was not sent ({type(error).__name__})") from error
        return _decode_tables(name, source, tables)

    return _Found(source, [], read)


def _require_answer(url: str) -> None:
    """Raise OSError when there is no way to a server: `datasets` would find out only after 23 seconds of retries."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:  # an answer, whatever it says
        pass


def _decode_tables(name: str, source: str, tables: list) -> _Pool:
    """The images of (split, table), with the columns of Hugging Face: `img`, whose cells hold `bytes`, and the label."""
    classes, column = CIFAR[name].classes, CIFAR[name].label_column
    contents = {}
    for split, table in tables:
        if missing := [needed for needed in ("img", column) if needed not in table.columns]:
            columns = ", ".join(table.columns)
            raise UserError(f"The {source} has no column '{missing[0]}', but {columns}; download it again.")
        for cell, label in zip(table["img"], table[column], strict=True):
            if not 0 <= label < len(classes):
                known = f"0 to {len(classes) - 1}"
                raise UserError(f"The {source} has a label {label}, but {name} has {known}; download it again.")
            content = (cell["bytes"] if isinstance(cell, dict) else cell) or b""
            suffix = "jpg" if content.startswith(b"\xff\xd8") else "png"
            contents[f"{split}/{classes[int(label)]}/{len(contents):05}.{suffix}"] = content
    return _decode_all_tiny(list(contents), contents.__getitem__)


def _decode_all_tiny(paths: list[str], read: Callable) -> _Pool:
    # With images this small two threads would only take Python's lock from each other, and be slower than one.
    return _decode(paths, read, _decode_tiny, CIFAR_PIXELS, workers=1)


def _decode_tiny(content: bytes, size: int) -> tuple[np.ndarray, tuple[int, int]]:
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
    published = CIFAR[name].published
    print(
        f"{name}: {before}; trying the original server, which has sent 60 to 80 kB a second since June 2026: "
        "the whole takes 40 to 57 minutes (pytorch/vision issue 9536)."
    )
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)  # torchvision itself would wait for a silent server for ever
        # torchvision leaves what it had when it was stopped, so it works in a folder of its own that goes either way.
        with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `_read_pickles`
            published(folder, download=True)
            (Path(folder) / published.base_folder).rename(base / published.base_folder)
    except Exception as error:  # the network, the disk, the archive, the sums: each means no data
        raise UserError(
            f"{name} is not in the data folder, {before}, and the original server failed ({_why(error).rstrip('.')}); "
            f"try again with a network, or put {published.base_folder}/ or {name}/train/<class>/ and so on into the "
            "data folder yourself."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _load_cifar_pool(name: str, base: Path, found: _Found) -> _Pool:
    def read() -> _Pool:
        return _in_order(name, found.source, found.read())

    return _load_pool(found._replace(read=read), CIFAR_PIXELS, base / "cache" / f"{name}-{CIFAR_PIXELS}.npz")


def _in_order(name: str, source: str, pool: _Pool) -> _Pool:
    """The pool, once known to be complete, sorted by split, class and pixels, with digests of pixels.

    So the order, and with it which images are held out, and the fingerprint do not depend on the format of the files.
    """
    again = "unpack or download it again"
    if pool.skipped:
        lost = [f"{file} ({why})" for file, why in pool.skipped]
        raise UserError(f"The {source} has images that cannot be used: {_listed(lost, most=3)}; {again}.")
    keys = []
    for path, image in zip(pool.names, pool.images, strict=True):
        split, class_name = _place(_folder(path))
        keys.append((f"{split}/{class_name.lower()}", hashlib.sha256(image.tobytes()).hexdigest(), path.split("/")[-1]))
    classes = CIFAR[name].classes
    counts = Counter(place for place, _, _ in keys)
    published = {f"{split}/{label}": count // len(classes) for split, count in CIFAR_COUNTS.items() for label in classes}
    for place in sorted({*counts, *published}):
        if counts[place] != (right := published.get(place, 0)):
            raise UserError(
                f"The {source} has {counts[place]} images in {place} where {name} has {right}; {again}, or give it "
                "another name if it is not meant to be the whole."
            )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    names = [f"{place}/{file}" for place, _, file in keys]
    return pool._replace(names=names, digests=[digest for _, digest, _ in keys]).take(order)


def _draw_part(pool: _Pool, counts: dict[str, int]) -> _Pool:
    """So many images of each split, as many of each class, and always the same ones."""
    groups = defaultdict(list)
    for position, path in enumerate(pool.names):
        groups[path.rsplit("/", 1)[0]].append(position)
    num_classes = len(groups) // len(counts)
    chosen = []
    for number, (place, positions) in enumerate(sorted(groups.items())):
        count = counts[place.split("/")[0]] // num_classes
        chosen += np.random.default_rng(number).permutation(positions)[:count].tolist()
    return pool.take(sorted(chosen))


def sample(name: str, *, image_size: int = 64, counts: Sequence[int] | None = None) -> Dataset:
    """Generated images in the place of real ones: a disc whose colour tells the class, on coloured noise.

    Of more than ten classes, the colour around the disc tells the last digit, and the disc those before it.

    The same at every call, nothing is read or written, and a model learns them in a few batches. So that the audit
    has something to find, the first test image is a copy of the first training image, and the second nearly so.

    Args:
        name: a name of `NAMES`, whose classes are taken over.
        image_size: as in `load`: photographs are stored a seventh larger, and CIFAR at 32.
        counts: images in train, validation and test, at least two in each; by default a few for each class.
    """
    if name not in SAMPLE_CLASSES:
        raise UserError(f"There is no sample data for '{name}'; choose from {', '.join(SAMPLE_CLASSES)}.")
    classes = SAMPLE_CLASSES[name]
    counts = SAMPLE_COUNTS[name] if counts is None else counts
    stored = CIFAR_PIXELS if name in CIFAR_NAMES else image_size * 8 // 7
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in zip(SPLITS, counts, strict=True):
        labels = np.arange(count) % len(classes)
        images = _draw_discs(labels, len(classes), stored, rng)
        if split == "test":
            copied = splits["train"].images[:2].numpy()
            images[0], images[1] = copied[0], copied[1] // 8 * 8
        files = [f"{split}/{classes[label]}/{index:04}.png" for index, label in enumerate(labels)]
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        sizes = torch.full((count, 2), stored)
        splits[split] = Split(torch.from_numpy(images), torch.from_numpy(labels), files, digests, sizes)
    return Dataset(name, "sample", _fingerprint(splits), list(classes), **splits)


def _draw_discs(labels: np.ndarray, num_classes: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (N, 3, size, size): discs with the colours of the classes spread evenly around the colour circle."""
    count = len(labels)
    two_colours = num_classes > 10
    colours = _hues((labels // 10 * 10 if two_colours else labels) / num_classes)
    rows, columns = np.mgrid[:size, :size] / size
    centres = rng.uniform(0.4, 0.6, (2, count, 1, 1))
    inside = np.hypot(rows - centres[0], columns - centres[1]) < rng.uniform(0.2, 0.35, (count, 1, 1))
    noise = rng.uniform(0, 0.6, (count, 3, size, size))
    around = 0.8 * _hues(labels % 10 / 10) + 0.2 * noise if two_colours else noise
    return (255 * np.where(inside[:, None], 0.8 * colours + 0.2 * noise, around)).astype(np.uint8)


def _hues(turns: np.ndarray) -> np.ndarray:
    """float (N, 3, 1, 1): the colours at so many turns of the colour circle."""
    return (0.55 + 0.35 * np.cos(2 * np.pi * (turns[:, None] + np.array([1, 2, 0]) / 3)))[:, :, None, None]


def duplicates(dataset: Dataset) -> list[list[Place]]:
    """Groups of byte-identical files, each a list of (split, index), within and across splits."""
    groups = defaultdict(list)
    for name, split in dataset.splits.items():
        for index, digest in enumerate(split.digests):
            groups[digest].append((name, index))
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(dataset: Dataset, threshold: float = NEAR_IDENTICAL) -> list[tuple[Place, Place, float]]:
    """Pairs of different files that show the same picture, the most alike first.

    Alike is the cosine between two small grey thumbnails, each less its own mean: indifferent to file format, size,
    brightness and contrast. A mirrored copy or another crop of a picture escapes, so the list is a lower bound.

    Returns:
        (one place, another place, similarity) where similarity is above `threshold` and the bytes differ.
    """
    places = [(name, index) for name, split in dataset.splits.items() for index in range(len(split))]
    digests = [digest for split in dataset.splits.values() for digest in split.digests]
    features = torch.cat([_thumbnails(split.images) for split in dataset.splits.values()])
    pairs = []
    for start in range(0, len(features), 1024):
        similarity = features[start : start + 1024] @ features.T
        for row, second in (similarity > threshold).nonzero().tolist():
            first = start + row
            if first < second and digests[first] != digests[second]:
                pairs.append((places[first], places[second], similarity[row, second].item()))
    return sorted(pairs, key=lambda pair: -pair[2])


def _thumbnails(images: Tensor) -> Tensor:
    """float32 (N, THUMBNAIL²): grey thumbnails less their mean, of length one; zeros for an image of one colour."""
    parts = [
        F.interpolate(part.float().mean(1, keepdim=True), size=(THUMBNAIL, THUMBNAIL), mode="area")
        for part in images.split(256)
    ]
    grey = torch.cat(parts).flatten(1)
    return F.normalize(grey - grey.mean(1, keepdim=True), eps=1.0)


def leaked(dataset: Dataset, *, near: bool = True, seen: Sequence[str] = ("train", "validation")) -> Tensor:
    """Indices of test images that are also in the splits `seen`: byte-identical, and with `near` also near-identical.

    Returns:
        int64, sorted, each index once.
    """
    groups = duplicates(dataset)
    if near:
        groups += [[first, second] for first, second, _ in near_duplicates(dataset)]
    indices = {
        index
        for group in groups
        if any(split in seen for split, _ in group)
        for split, index in group
        if split == "test"
    }
    return torch.tensor(sorted(indices), dtype=torch.int64)


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of all images, with pixels in [0, 1].

    Exact, from how often each of the 256 values occurs. The mean of each image's own deviation, which is often
    quoted instead, is smaller: it leaves out how images differ from each other.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(split.images.shape[1]):
        count = torch.bincount(split.images[:, channel].flatten(), minlength=256).cpu().double()
        share = count / count.sum()
        mean = (share * values).sum()
        means.append(mean.item())
        deviations.append((share * (values - mean) ** 2).sum().sqrt().item())
    return tuple(means), tuple(deviations)


def batches(
    split: Split,
    batch_size: int,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: str = "none",
    padding: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split in batches, cropped, augmented and normalised on the split's own device.

    Without a generator the images come in order and centre-cropped. With one they are shuffled, and `augment` is
    drawn for each image by itself: 'none' is the centre crop, 'flip' mirrors half of the images as well, 'crop_flip'
    also cuts each at a place of its own, after `padding` black pixels were put on every side. All that is random in
    the pass is drawn before its first batch, on the CPU, and moved to the device once: every device sees the same
    images, and the loop waits for none. The last batch is smaller when the numbers do not divide.

    Yields:
        images, float32 (B, 3, image_size, image_size) in channels-last memory, (x / 255 - mean) / std; labels (B,).

    Raises:
        UserError: the batch size, the image size, the padding or the augmentation cannot be.
    """
    height, width = split.images.shape[-2:]
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; choose at least 1.")
    if augment not in AUGMENTS:
        raise UserError(f"There is no augmentation '{augment}'; choose from {', '.join(AUGMENTS)}.")
    if padding < 0:
        raise UserError(f"The padding is {padding} pixels; choose 0 or more.")
    if not 1 <= image_size <= min(height, width):
        raise UserError(f"The image size is {image_size}, but images are stored at {width}x{height}; choose less.")
    return _batches(split, batch_size, image_size, mean, std, augment, padding, generator)


def _batches(split, batch_size, image_size, mean, std, augment, padding, generator):
    count, device = len(split), split.images.device
    order, windows = torch.arange(count), None
    if generator is not None:
        order = torch.randperm(count, generator=generator)
        if augment != "none":
            padding = padding if augment == "crop_flip" else 0
            windows = _draw_windows(split, image_size, augment, padding, generator).to(device)
    order = order.to(device)
    mean, std = (torch.tensor(x, dtype=torch.float32, device=device).view(1, 3, 1, 1) * 255 for x in (mean, std))
    for start in range(0, count, batch_size):
        now = slice(start, start + batch_size)
        images = split.images[order[now]]
        if windows is None:
            images = _centre_crop(images, image_size)
        else:
            images = _cut(F.pad(images, [padding] * 4), windows[now], image_size)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        yield images.sub_(mean).div_(std), split.labels[order[now]]


def _draw_windows(split: Split, size: int, augment: str, padding: int, generator: torch.Generator) -> Tensor:
    """int64 (N, 3): top row, left column, and whether to mirror (0 or 1), for each image of a pass."""
    count = (len(split),)
    if augment == "crop_flip":
        rows, columns = (side + 2 * padding - size + 1 for side in split.images.shape[-2:])
        top = torch.randint(rows, count, generator=generator)
        left = torch.randint(columns, count, generator=generator)
    else:
        top, left = (torch.full(count, (side - size) // 2) for side in split.images.shape[-2:])
    mirror = torch.rand(count, generator=generator) < 0.5
    return torch.stack([top, left, mirror.long()], dim=1)


def _cut(images: Tensor, windows: Tensor, size: int) -> Tensor:
    """Each image's own window of `size` x `size` pixels, in one gather for the whole batch."""
    count, channels, _, width = images.shape
    top, left, mirror = windows[:, :, None].unbind(1)
    steps = torch.arange(size, device=images.device)
    rows = top + steps
    columns = left + torch.where(mirror == 1, size - 1 - steps, steps)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).view(count, channels, size, size)


def _centre_crop(images: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
