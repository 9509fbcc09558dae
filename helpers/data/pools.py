"""Image files: find a folder's splits and classes, decode every file once, and keep the pixels in a cache file."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from helpers.runtime import progress, require, whole

CACHE_VERSION = 2
SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"val": "validation", "valid": "validation"}
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
OURS = {"cache", "checkpoints", "classify", "results", "cifar10", "cifar100", "cifar-10-batches-py", "cifar-100-python"}
IGNORED = ("__macosx", "thumbs.db", "desktop.ini", "lost+found", "zone.identifier")  # the last: Windows' marks, in WSL

File = tuple[str, int, int]  # path in the data set's folder, with '/'; size in bytes; modification time in nanoseconds


def stamp(path: Path, root: Path) -> File:
    """A file's path relative to `root`, its size and its modification time: a changed file has a different stamp."""
    status = path.stat()
    return path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns


def place(folder: str) -> tuple[str, str]:
    """The split and class of the files in a folder; train, to be split later, if there are only class folders."""
    split, _, class_name = folder.rpartition("/")
    return SPLIT_FOLDERS[split.lower()] if split else "train", class_name


def _visible(folder: Path) -> list[Path]:
    found = folder.iterdir() if os.access(folder, os.R_OK | os.X_OK) else []  # one that may not be read counts as empty
    return sorted(path for path in found if not (path.name.startswith(".") or path.name.lower().endswith(IGNORED)))


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return [path for path in _visible(folder) if os.path.isdir(path)]  # a link into a private folder would make a Path raise


def holds_images(folder: Path) -> bool:
    """Whether the folder directly contains a file with an image extension."""
    return any(path.suffix.lower() in EXTENSIONS and os.path.isfile(path) for path in _visible(folder))


def split_folders(folder: Path) -> list[tuple[str, Path]]:
    """(split, folder) for each subfolder that is named after a split and is not itself a class with images."""
    named = [(SPLIT_FOLDERS.get(path.name.lower()), path) for path in subfolders(folder)]
    return [(split, path) for split, path in named if split and not holds_images(path)]


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has a train split or at least two classes."""
    return "train" in dict(split_folders(folder)) or sum(map(holds_images, subfolders(folder))) > 1


def unwrap(folder: Path) -> Path:
    """The folder that has the splits or classes: unpacked archives often lie one folder deeper."""
    while not is_image_folder(folder) and not holds_images(folder):
        inner = subfolders(folder)
        if len(inner) != 1 or holds_images(inner[0]):
            break
        folder = inner[0]
    return folder


def list_files(root: Path, source: str, is_data_folder: bool = False) -> list[File]:
    """All class folders' files, by path; a UserError if a split or class is missing or empty, or a split occurs twice."""
    groups = split_folders(root)
    splits = Counter(split for split, _ in groups)
    needed = f"The {source} has the splits {', '.join(splits)}; it needs train and test, or only classes."
    require(not groups or {"train", "test"} <= set(splits), needed)
    for split, number in splits.items():
        require(number == 1, f"The {source} has two folders for the {split} split; keep one of them.")
    files, classes = [], {}
    for split, group in groups or [("", root)]:
        # If the data folder itself is the image folder, some of its subfolders are ours and not classes.
        folders = [folder for folder in subfolders(group) if groups or not is_data_folder or folder.name not in OURS]
        require(folders or not groups, f"The {split} split of the {source} is empty; put a folder for each class into it.")
        classes[group.name] = {folder.name for folder in folders}
        for folder in folders:
            found = [stamp(path, root) for path in _visible(folder) if os.path.isfile(path)]
            require(found, f"The class folder '{folder.relative_to(root).as_posix()}' of the {source} is empty; add images.")
            files += found
    every = sorted(set().union(*classes.values()))
    require(every, f"The {source} is empty; put a folder for each class into it, with the images inside.")
    require(len(every) > 1, f"The {source} has one class, '{every[0]}'; telling classes apart needs at least two.")
    for split, own in classes.items():
        for name in every:
            require(name in own, f"The {source} has no class '{name}' in {split}/; every split needs every class.")
    return sorted(files)


class Pool(NamedTuple):
    """All readable images of a source, before they are split: the content of a cache file."""

    source: str  # a description of where they came from
    images: np.ndarray  # uint8 (N, 3, size, size)
    sizes: np.ndarray  # int64 (N, 2), each file's width and height
    names: list[str]  # paths with '/'
    digests: list[str]  # SHA-256 in hex
    skipped: list[tuple[str, str]]  # (file, reason) for each that could not be read

    def take(self, positions: Sequence[int]) -> "Pool":
        """The images at `positions`, in that order."""
        names, digests = [self.names[position] for position in positions], [self.digests[position] for position in positions]
        return Pool(self.source, self.images[positions], self.sizes[positions], names, digests, self.skipped)


def listed(items: list[str], most: int = 10) -> str:
    """The first `most` items in one line, and how many more there are."""
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return "; ".join(items[:most] + rest)


def printable(text: str) -> str:
    """The text on one line, with unprintable characters escaped, such as stray bytes in a file name."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def listed_files(skipped: list[tuple[str, str]], most: int = 10) -> str:
    """Unreadable files in one line, each with the reason."""
    return printable(listed([f"{file} ({reason})" for file, reason in skipped], most))


def why(error: Exception) -> str:
    """A description of the error, without local paths."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, perhaps a decompression bomb"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def decode(source: str, paths: list[str], read: Callable, decoder: Callable, size: int) -> Pool:
    """Decode all images: `read(path)` gives a file's content, `decoder(content, size)` its pixels and its width and height.

    Uses threads, because Pillow releases the GIL while decoding: faster than processes here, with nothing to send back.
    Tiny images are decoded in one thread, because two would compete for the GIL and be slower.
    """
    images = np.empty((len(paths), 3, size, size), np.uint8)
    sizes = np.empty((len(paths), 2), np.int64)

    def decode_one(position: int) -> tuple[str, str]:
        """(digest, "") if the file was decoded into `images`, or ("", reason) if it cannot be read."""
        try:
            content = read(paths[position])
            images[position], sizes[position] = decoder(content, size)
        except Exception as error:  # a broken file can make Pillow raise almost anything, which must not be fatal
            return "", why(error)
        return hashlib.sha256(content).hexdigest(), ""

    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as threads:
        run = threads.map if size > 32 else map
        outcomes = list(progress(run(decode_one, range(len(paths))), "decoding", total=len(paths)))
    digests = [digest for digest, _ in outcomes]
    skipped = [(path, reason) for path, (_, reason) in zip(paths, outcomes, strict=True) if reason]
    pool = Pool(source, images, sizes, paths, digests, skipped)
    return pool.take([position for position, digest in enumerate(digests) if digest]) if skipped else pool


def cache_path(base: Path, name: str, size: int) -> Path:
    """The cache file for images of `size` pixels in the data folder `base`."""
    return base / "cache" / f"{name}-{size}.npz"


def read_cache(path: Path) -> tuple[str, Pool | None]:
    """A hash of what a cache file was made from, and its images; "" and None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip file, so reading verifies its checksums
            about, images = json.loads(stored["about"].tobytes()), stored["images"]
            about["names"] = [str(name) for name, _ in zip(about["names"], images, strict=True)]
            about["skipped"] = [tuple(pair) for pair in about["skipped"]]
            return about.pop("key"), Pool(images=images, sizes=stored["sizes"], **about)
    except FileNotFoundError:
        pass
    except Exception:  # a damaged .npz file raises errors of almost any kind
        print(f"The cache file {path.name} cannot be read and will be rebuilt.")
    return "", None


def cached(path: Path, source: str, files: list[File], size: int, read: Callable[[], Pool]) -> Pool:
    """The images in a cache file if it was made from these files at this size; otherwise read and cache them."""
    key = hashlib.sha256(json.dumps([CACHE_VERSION, source, size, files]).encode()).hexdigest()
    made_from, pool = read_cache(path)
    if made_from == key:
        return pool
    pool = read()
    arrays = {"images": pool.images, "sizes": pool.sizes}
    about = {"key": key} | {field: value for field, value in pool._asdict().items() if field not in arrays}
    try:
        path.parent.mkdir(exist_ok=True)
        with whole(path) as file:
            np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    except OSError as error:
        print(f"No cache is kept in the data folder ({error.strerror}); the images will be decoded again next time.")
    return pool
