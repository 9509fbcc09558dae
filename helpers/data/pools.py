"""From files to pixels: every image of a source decoded once and kept in a cache file."""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from helpers.data.folders import File
from helpers.runtime import progress, save_bytes

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


def cached(base: Path, name: str, source: str, files: list[File], size: int, read: Callable[[], Pool]) -> Pool:
    """The pool in the data folder's cache file `name` if it was made from these files at this size; else read, and kept."""
    path = base / "cache" / f"{name}-{size}.npz"
    key = hashlib.sha256(json.dumps([CACHE_VERSION, source, size, files]).encode()).hexdigest()
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip file, so reading compares its checksums
            about = json.loads(stored["about"].tobytes())
            if about.pop("key") == key:
                about["skipped"] = [tuple(pair) for pair in about["skipped"]]
                return Pool(images=stored["images"], sizes=stored["sizes"], **about)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile):
        print(f"The cache file {path.name} cannot be read and is made again.")
    pool = read()
    arrays = {"images": pool.images, "sizes": pool.sizes}
    about = {"key": key} | {field: value for field, value in pool._asdict().items() if field not in arrays}
    content = BytesIO()
    np.savez(content, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    try:
        path.parent.mkdir(exist_ok=True)
        save_bytes(path, content.getbuffer())
    except OSError as error:
        print(f"No cache is kept in the data folder ({error.strerror}); the images will be decoded again next time.")
    return pool
