"""From files to pixels: every image of a source decoded once, kept in a cache file, and divided into splits."""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import dirname
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from helpers.data.folders import SPLITS, File, place
from helpers.runtime import UserError, progress

CACHE_VERSION = 1


class Pool(NamedTuple):
    """Every readable image of a source, before anything is split: what the cache file keeps.

    source: where they came from, in words; images: uint8 (N, 3, size, size); sizes: int64 (N, 2), each file's own width
    and height; names: paths with '/'; digests: SHA-256 in hex; skipped: (file, why) of each that could not be read.
    """

    source: str
    images: np.ndarray
    sizes: np.ndarray
    names: list[str]
    digests: list[str]
    skipped: list[tuple[str, str]]

    def take(self, positions: Sequence[int]) -> "Pool":
        """The images at `positions`, in that order."""
        names, digests = ([items[position] for position in positions] for items in (self.names, self.digests))
        return Pool(self.source, self.images[positions], self.sizes[positions], names, digests, self.skipped)


def listed(items: list[str], most: int = 10) -> str:
    """The items in one line, and how many more there are."""
    return "; ".join(items[:most] + ([f"and {len(items) - most} more"] if len(items) > most else []))


def why(error: Exception) -> str:
    """What went wrong, in words that name no folder of this machine."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, perhaps a decompression bomb"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def read_file(root: Path, path: str) -> bytes:
    """A file's content, without pathlib, which would take longer than decoding a tiny image."""
    with open(os.path.join(root, path), "rb") as file:
        return file.read()


def decode(source: str, paths: list[str], read: Callable, decoder: Callable, size: int, *, threaded: bool = True) -> Pool:
    """Every image: `read(path)` gives a file's content, `decoder(content, size)` its pixels, and its width and height.

    Threads, because Pillow decodes without Python's lock: faster than processes here, and nothing to send back. Where
    images are tiny, two threads would only take the lock from each other, and be slower than one.
    """
    images = np.empty((len(paths), 3, size, size), np.uint8)
    sizes = np.empty((len(paths), 2), np.int64)

    def decode_one(position: int) -> tuple[str, str]:
        """(digest, "") of a file whose image is now in place, or ("", why) of one that cannot be read."""
        try:
            content = read(paths[position])
            images[position], sizes[position] = decoder(content, size)
        except Exception as error:  # a broken file can make Pillow raise nearly anything, and none may be fatal
            return "", why(error)
        return hashlib.sha256(content).hexdigest(), ""

    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as threads:
        each = (threads.map if threaded else map)(decode_one, range(len(paths)))
        outcomes = list(progress(each, "decoding", total=len(paths)))
    digests = [digest for digest, _ in outcomes]
    skipped = [(path, reason) for path, (_, reason) in zip(paths, outcomes, strict=True) if reason]
    pool = Pool(source, images, sizes, paths, digests, skipped)
    return pool.take([position for position, digest in enumerate(digests) if digest]) if skipped else pool


def load_pool(base: Path, name: str, source: str, files: list[File], size: int, read: Callable[[], Pool]) -> Pool:
    """The pool from the data folder's cache file when it was made from these files at this size; else read, and kept."""
    path = base / "cache" / f"{name}-{size}.npz"
    key = hashlib.sha256(json.dumps([CACHE_VERSION, source, size, files]).encode()).hexdigest()
    pool = _read_cache(path, key)
    if pool is None:
        pool = read()
        _write_cache(path, key, pool)
    return pool


def _read_cache(path: Path, key: str) -> Pool | None:
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip file, so reading compares its checksums
            about = json.loads(stored["about"].tobytes())
            if about["key"] == key:
                skipped = [(file, reason) for file, reason in about["skipped"]]
                return Pool(about["source"], stored["images"], stored["sizes"], about["names"], about["digests"], skipped)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f"The cache file {path.name} cannot be read and is made again.")
    return None


def _write_cache(path: Path, key: str, pool: Pool) -> None:
    """Keep the pool in one file; where that cannot be, print a line and leave nothing behind."""
    arrays = {"images": pool.images, "sizes": pool.sizes}
    about = {"key": key} | {name: value for name, value in pool._asdict().items() if name not in arrays}
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
            part = Path(folder) / path.name
            with part.open("wb") as file:
                np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
            part.replace(path)
    except OSError as error:
        print(f"No cache is kept in the data folder ({error.strerror}); the images will be decoded again next time.")


def divide(pool: Pool, held_out: float, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The classes, sorted; the label of each image, int64 (N,); and the split of each, by name (N,).

    Images stay in the split that they lie in. For each split that the source does not bring, the share `held_out` of
    each class, at least one image, is drawn from train.

    Raises:
        UserError: no image of a class can be read, or too few to hold any out.
    """
    places = _places(pool)
    own, classes = (sorted(set(items)) for items in zip(*places.values(), strict=True))
    missing = [split for split in SPLITS if split not in own]
    label_of = {folder: classes.index(class_name) for folder, (_, class_name) in places.items()}
    folders = [dirname(path) for path in pool.names]
    labels = np.array([label_of[folder] for folder in folders], np.int64)
    split_of = np.array([places[folder][0] for folder in folders], dtype="<U10")
    for label, class_name in enumerate(classes):
        mine = np.flatnonzero((labels == label) & (split_of == "train"))
        if missing and len(mine) <= len(missing):
            raise UserError(
                f"The class '{class_name}' of the {pool.source} has {len(mine)} readable images, too few to split; "
                f"it needs {len(missing) + 1}."
            )
        shuffled = np.random.default_rng([seed, label]).permutation(mine)
        count = max(1, round(held_out * len(mine)))
        for number, split in enumerate(missing):
            split_of[shuffled[number * count : (number + 1) * count]] = split
    return classes, labels, split_of


def _places(pool: Pool) -> dict[str, tuple[str, str]]:
    """The split and the class of each folder that an image of the source lies in, readable or not."""
    readable = {dirname(path) for path in pool.names}
    places = {folder: place(folder) for folder in readable | {dirname(file) for file, _ in pool.skipped}}
    if empty := sorted(places.keys() - readable):
        lost = [f"{file} ({reason})" for file, reason in pool.skipped if dirname(file) == empty[0]]
        class_name = places[empty[0]][1]
        raise UserError(f"No image of class '{class_name}' of the {pool.source} can be read: {listed(lost, most=3)}.")
    return places
