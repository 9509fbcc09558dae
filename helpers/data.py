"""What goes in: photographs from every source, their splits, the audit, sample data, batches on the device."""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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

from helpers.runtime import UserError, data_dir, progress

KAGGLE = {"pikachu": "hal0samuel/pikachu-classification-dataset"}
SAMPLE_CLASSES = {"pikachu": ["not_pikachu", "pikachu"]}
NAMES = tuple(KAGGLE)

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"val": "validation", "valid": "validation"}
HELD_OUT = 0.2
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
CACHE_VERSION = 1

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

    source: where they came from, in words; fingerprint: a hash of which file, by content, is in which split;
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

    @property
    def class_name(self) -> str:
        return self.path.split("/")[-2]


class _Pool(NamedTuple):
    """Every readable image of a source, decoded, before anything is split: what the cache file keeps."""

    images: np.ndarray
    sizes: np.ndarray
    names: list[str]
    digests: list[str]
    skipped: list[tuple[str, str]]


def names(folder: str | Path | None = None) -> list[str]:
    """The names that `load` takes: the published data sets, and each image folder in the data folder."""
    base = data_dir(folder)
    own = [path.name for path in _folders(base) if _is_image_folder(_unwrap(path))] if base.is_dir() else []
    return sorted({*NAMES, *own})


def load(name: str, folder: str | Path | None = None, *, image_size: int = 224, seed: int = 0) -> Dataset:
    """Real images: found, decoded once, cached, split, and described in one printed line.

    Args:
        name: one of `names()`: a published data set, or an image folder in the data folder.
        folder: the data folder, by default `runtime.data_dir()`.
        image_size: pixels of a model's input; images are stored a seventh larger (256 for 224), as room for crops.
        seed: decides who goes where when the source brings no validation or test split of its own.

    Raises:
        UserError: the folder, a class or a split is missing or empty, there are too few classes or images, or a
            download failed.
    """
    if image_size < 1 or seed < 0:
        raise UserError(f"Image size {image_size} with seed {seed} cannot be; the size starts at 1 and the seed at 0.")
    base = data_dir(folder)
    if not base.is_dir():
        raise UserError(f"There is no data folder '{base}'; create it, or set DATA_DIR to the right one.")
    source, root = _find(name, base)
    files = _list_files(root, source)
    stored = image_size * 8 // 7
    pool = _load_pool(root, files, source, stored, base / "cache" / f"{Path(name).name}-{stored}.npz")
    dataset = _split_pool(name, source, files, pool, seed)
    counts = ", ".join(f"{len(split)} {key}" for key, split in dataset.splits.items())
    print(f"{name}: found in {source}: {counts} images, {len(dataset.classes)} classes.")
    if dataset.skipped:
        print(f"Left out {len(dataset.skipped)}: {_listed([f'{file} ({why})' for file, why in dataset.skipped])}.")
    return dataset


def _listed(items: list[str], most: int = 10) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return "; ".join(items[:most] + more)


def _find(name: str, base: Path) -> tuple[str, Path]:
    """The source of the data in words, and the folder that holds its splits or classes."""
    own = _unwrap(base / name) if (base / name).is_dir() else None
    # DATA_DIR may point at the photographs themselves, and one of their classes may be called like the data.
    base_is_it = name in NAMES and _is_image_folder(base) and (own is None or _holds_images(own))
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
            for entry in found:
                status = entry.stat()
                path = Path(entry.path).relative_to(root).as_posix()
                files.append(_File(path, status.st_size, status.st_mtime_ns))
    _check_classes(files, [path.name for _, path in groups], source)
    return sorted(files)


def _check_classes(files: list[_File], split_folders: list[str], source: str) -> None:
    classes = {file.class_name for file in files}
    if not classes:
        raise UserError(f"The {source} is empty; put a folder for each class into it, with the images inside.")
    if len(classes) == 1:
        raise UserError(f"The {source} has one class, '{classes.pop()}'; telling classes apart needs at least two.")
    for folder in split_folders:
        here = {file.class_name for file in files if file.path.startswith(f"{folder}/")}
        if missing := sorted(classes - here):
            raise UserError(f"The {source} has no class '{missing[0]}' in {folder}/; every split needs every class.")


def _load_pool(root: Path, files: list[_File], source: str, stored: int, cache_file: Path) -> _Pool:
    """Every image of the source, from the cache file when it was made from these very files, else decoded."""
    key = hashlib.sha256(json.dumps([CACHE_VERSION, source, stored, files]).encode()).hexdigest()
    pool = _read_cache(cache_file, key)
    if pool is None:
        pool = _decode(root, [file.path for file in files], stored)
        _write_cache(cache_file, pool, {"key": key, "source": source})
    return pool


def _decode(root: Path, paths: list[str], stored: int) -> _Pool:
    images = np.empty((len(paths), 3, stored, stored), np.uint8)
    sizes = np.empty((len(paths), 2), np.int64)

    def decode(position: int) -> tuple[str, str]:
        """(digest, "") of a file whose image is now in place, or ("", why) of one that cannot be read."""
        try:
            content = (root / paths[position]).read_bytes()
            images[position], sizes[position] = decode_photograph(content, stored)
        except Exception as error:  # a broken file can make Pillow raise nearly anything, and none may be fatal
            return "", _why(error)
        return hashlib.sha256(content).hexdigest(), ""

    # Threads, because Pillow decodes without Python's lock: faster than processes here, and nothing to send back.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.simplefilter("ignore")
        outcomes = list(progress(threads.map(decode, range(len(paths))), "decoding", total=len(paths)))
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


def _split_of(path: str) -> str:
    """The split a file lies in; train, to be split later, where there are only class folders."""
    folder, *deeper = path.split("/")
    return SPLIT_FOLDERS[folder.lower()] if len(deeper) == 2 else "train"


def _split_pool(name: str, source: str, files: list[_File], pool: _Pool, seed: int) -> Dataset:
    """The pool as a data set: in the source's own splits where it has them, else split here."""
    classes = sorted({file.class_name for file in files})
    own = sorted({_split_of(file.path) for file in files})
    labels = np.array([classes.index(path.split("/")[-2]) for path in pool.names], np.int64)
    split_of = np.array([_split_of(path) for path in pool.names], dtype="<U10")
    for split in own:
        for label, class_name in enumerate(classes):
            if not ((split_of == split) & (labels == label)).any():
                _raise_unreadable(class_name, split, pool.skipped, source)
    _hold_out(split_of, labels, classes, [split for split in SPLITS if split not in own], seed, source)
    images, labels, sizes = (torch.from_numpy(array) for array in (pool.images, labels, pool.sizes))
    everything = Split(images, labels, pool.names, pool.digests, sizes)
    splits = {split: everything.subset(np.flatnonzero(split_of == split)) for split in SPLITS}
    return Dataset(name, source, _fingerprint(splits), classes, **splits, skipped=pool.skipped)


def _raise_unreadable(class_name: str, split: str, skipped: list[tuple[str, str]], source: str) -> None:
    lost = [f"{file} ({why})" for file, why in skipped if (file.split("/")[-2], _split_of(file)) == (class_name, split)]
    raise UserError(f"No image of class '{class_name}' of the {source} can be read: {_listed(lost, most=3)}.")


def _hold_out(split_of: np.ndarray, labels: np.ndarray, classes, splits: list[str], seed: int, source: str) -> None:
    """Move a fifth of each class, at least one image, from train to each of `splits`."""
    for label in range(len(classes)):
        mine = np.flatnonzero((labels == label) & (split_of == "train"))
        count = max(1, round(HELD_OUT * len(mine)))
        if splits and len(mine) < len(splits) + 1:
            raise UserError(
                f"The class '{classes[label]}' of the {source} has {len(mine)} readable images, too few to split; "
                f"it needs {len(splits) + 1}."
            )
        shuffled = np.random.default_rng([seed, label]).permutation(mine)
        for place, split in enumerate(splits):
            split_of[shuffled[place * count : (place + 1) * count]] = split


def _fingerprint(splits: dict[str, Split]) -> str:
    hasher = hashlib.sha256()
    for name, split in splits.items():
        for file, digest in zip(split.names, split.digests, strict=True):
            hasher.update(f"{name}\0{file}\0{digest}\n".encode())
    return hasher.hexdigest()[:16]


def sample(name: str, *, image_size: int = 64, counts: Sequence[int] = (48, 16, 16)) -> Dataset:
    """Generated images in the place of real ones: a disc whose colour tells the class, on coloured noise.

    The same at every call, nothing is read or written, and a model learns them in a few batches. So that the audit
    has something to find, the first test image is a copy of the first training image, and the second nearly so.

    Args:
        name: a name of `NAMES`, whose classes are taken over.
        image_size: as in `load`: images are stored a seventh larger.
        counts: images in train, validation and test, at least two in each.
    """
    if name not in SAMPLE_CLASSES:
        raise UserError(f"There is no sample data for '{name}'; choose from {', '.join(SAMPLE_CLASSES)}.")
    classes = SAMPLE_CLASSES[name]
    stored = image_size * 8 // 7
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
    turns = labels[:, None] / num_classes + np.array([1, 2, 0]) / 3
    colours = 0.55 + 0.35 * np.cos(2 * np.pi * turns)[:, :, None, None]
    rows, columns = np.mgrid[:size, :size] / size
    centres = rng.uniform(0.4, 0.6, (2, count, 1, 1))
    inside = np.hypot(rows - centres[0], columns - centres[1]) < rng.uniform(0.2, 0.35, (count, 1, 1))
    noise = rng.uniform(0, 0.6, (count, 3, size, size))
    return (255 * np.where(inside[:, None], 0.8 * colours + 0.2 * noise, noise)).astype(np.uint8)


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
