"""What goes in: photographs from every source, splits, generated sample data, the audit, batches on the device."""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from helpers.runtime import UserError, data_dir, progress

NAMES = ("pikachu",)
KAGGLE = {"pikachu": "hal0samuel/pikachu-classification-dataset"}
SAMPLE_CLASSES = {"pikachu": ["not_pikachu", "pikachu"]}

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
SPLIT_FRACTIONS = {"validation": 0.2, "test": 0.2}
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
# A short list, since Pillow would hand an EPS file to Ghostscript, a program that runs what is in it.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
NOT_DATA = {"__macosx", "thumbs.db", "desktop.ini"}
CACHE_VERSION = 1
AUGMENTS = ("none", "flip", "crop_flip")
NEAR_IDENTICAL = 0.97


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, decoded.

    images: uint8 (N, 3, H, W); labels: int64 (N,); names: N paths relative to the dataset's folder;
    digests: N content hashes of the files; sizes: int64 (N, 2), width and height of the files in pixels.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    digests: list[str] = field(default_factory=list)
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split with images and labels on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.names, self.digests, self.sizes)

    def subset(self, indices: Sequence[int] | Tensor) -> "Split":
        """The images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64).cpu()
        positions = chosen.tolist()
        on_device = chosen.to(self.images.device)
        return Split(
            self.images[on_device],
            self.labels[on_device],
            [self.names[i] for i in positions],
            [self.digests[i] for i in positions] if self.digests else [],
            None if self.sizes is None else self.sizes[chosen],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of labelled images, and where they came from.

    source: in words; fingerprint: hex hash of which file, by content, is in which split; skipped: (file, why) pairs.
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
        """Whether the images were generated: such numbers are never results."""
        return self.source == "sample"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, validation, test."""
        return {name: getattr(self, name) for name in SPLITS}


# --------------------------------------------------------------------------------------------------------------- load


def names(folder: str | Path | None = None) -> list[str]:
    """The names `load` knows: the published sets, and the image folders that lie in the data folder."""
    base = data_dir(folder)
    own = [path.name for path in _folders(base) if _is_image_folder(path)] if base.is_dir() else []
    return sorted({*NAMES, *own})


def load(name: str, folder: str | Path | None = None, *, image_size: int = 224, seed: int = 0) -> Dataset:
    """Real images by name: decoded once, cached, split, and described in one printed line.

    Args:
        name: a name of `NAMES`, or an image folder in the data folder.
        folder: the data folder; None for `runtime.data_dir()`.
        image_size: pixels a model will see; a margin of one seventh more is stored, for crops.
        seed: decides the splits that the source does not bring itself.

    Raises:
        UserError: the folder, a class or a split is missing or empty; classes differ; nothing can be downloaded.
    """
    if image_size < 1:
        raise UserError(f"The image size is {image_size}; choose a positive number of pixels.")
    base = data_dir(folder)
    if not base.is_dir():
        raise UserError(f"There is no data folder '{base}'; create it, or set DATA_DIR to the folder that holds the data.")
    source, root = _find(name, base)
    root = _unwrap(root)
    files = _list_files(root, source)
    cache = base / "cache" / f"{Path(name).name}-{_stored_size(image_size)}.npz"
    pool = _load_pool(files, root, source, _stored_size(image_size), cache)
    dataset = _split_pool(name, source, pool, seed)
    counts = ", ".join(f"{len(split)} {key}" for key, split in dataset.splits.items())
    print(f"{name}: {source}; {counts} images in {len(dataset.classes)} classes.")
    if dataset.skipped:
        print("Left out: " + "; ".join(f"{file} ({why})" for file, why in dataset.skipped) + ".")
    return dataset


def _stored_size(image_size: int) -> int:
    return image_size * 8 // 7


def _find(name: str, base: Path) -> tuple[str, Path]:
    """Where the data called `name` lies: the source in words, and its folder."""
    own = base / name
    if own.is_dir():
        return f"folder {own.name}", own
    if name not in NAMES:
        raise UserError(f"There is no data '{name}' in the data folder; there is {', '.join(names(base))}.")
    if _is_image_folder(base):
        return f"folder {base.resolve().name}", base
    return f"kaggle {KAGGLE[name]}", _download_from_kaggle(name)


def _download_from_kaggle(name: str) -> Path:
    advice = f"put the photographs into the data folder as '{name}/train/<class>/...', or try again with a network"
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(f"kagglehub is not installed; run 'pip install kagglehub', or {advice}.") from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE[name]))
    except Exception as error:  # requests, urllib3, kagglehub's own: the download failed, whatever it was called
        raise UserError(f"Kaggle's '{KAGGLE[name]}' cannot be had ({type(error).__name__}); {advice}.") from error


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(
            (e for e in entries if not e.name.startswith(".") and e.name.lower() not in NOT_DATA), key=lambda e: e.name
        )


def _folders(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _visible(folder) if e.is_dir()]


def _holds_images(folder: Path) -> bool:
    return any(e.is_file() and Path(e.name).suffix.lower() in EXTENSIONS for e in _visible(folder))


def _split_folders(folder: Path) -> dict[str, Path]:
    found = {}
    for path in _folders(folder):
        split = SPLIT_FOLDERS.get(path.name.lower())
        if split and not _holds_images(path):
            found[split] = path
    return found


def _is_image_folder(folder: Path) -> bool:
    return "train" in _split_folders(folder) or sum(map(_holds_images, _folders(folder))) > 1


def _unwrap(folder: Path) -> Path:
    """The folder inside a folder that archives often add, or the folder itself."""
    while not _is_image_folder(folder):
        inner = _folders(folder)
        if len(inner) != 1 or _holds_images(inner[0]):
            break
        folder = inner[0]
    return folder


def _list_files(root: Path, source: str) -> list[tuple[str, int, int]]:
    """Every file of every class: (path relative to `root`, bytes, modification time in ns), sorted by path."""
    splits = _split_folders(root)
    groups = list(splits.values()) or [root]
    files = []
    for group in groups:
        for folder in _folders(group):
            for entry in _visible(folder):
                if entry.is_file():
                    status = entry.stat()
                    files.append((Path(entry.path).relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    if not files:
        raise UserError(f"The {source} holds no images; it needs one folder per class with image files in it.")
    return sorted(files)


# --------------------------------------------------------------------------------------------------- decode and cache


def _load_pool(files, root: Path, source: str, size: int, cache: Path) -> dict:
    key = hashlib.sha256(json.dumps([CACHE_VERSION, source, size, files]).encode()).hexdigest()
    pool = _read_cache(cache, key)
    if pool is None:
        pool = _decode_all(files, root, size)
        _write_cache(cache, {"key": key, "source": source}, pool)
    return pool


def _decode_all(files, root: Path, size: int) -> dict:
    paths = [path for path, _, _ in files]
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def decode(position: int):
        content = (root / paths[position]).read_bytes()
        square, original = decode_photograph(content, size)
        images[position] = square
        return hashlib.sha256(content).hexdigest(), original

    def attempt(position: int):
        try:
            return decode(position)
        except Exception as error:  # a broken file makes Pillow raise almost anything
            return _why(error)

    Image.init()
    # Threads, since Pillow releases the lock while it decodes: 1.2 times as fast as processes, and nothing to pickle.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as executor:
        warnings.simplefilter("ignore")
        results = list(progress(executor.map(attempt, range(len(paths))), "decoding", len(paths)))
    good = [i for i, result in enumerate(results) if not isinstance(result, str)]
    return {
        "images": images if len(good) == len(paths) else images[good],
        "sizes": np.array([results[i][1] for i in good], np.int64).reshape(-1, 2),
        "names": [paths[i] for i in good],
        "digests": [results[i][0] for i in good],
        "skipped": [(paths[i], why) for i, why in enumerate(results) if isinstance(why, str)],
    }


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels, a decompression bomb"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def decode_photograph(content: bytes, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A photograph's middle square as uint8 (3, size, size), and its width and height in pixels."""
    if not content:
        raise ValueError("an empty file")
    with Image.open(BytesIO(content), formats=[f for f in FORMATS if f in Image.OPEN]) as image:
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        width, height = reversed(image.size) if turned else image.size
        image.draft(None, (2 * size, 2 * size))  # JPEG is decoded at a half, a quarter ... while twice the size remains
        image.load()
        upright = _to_rgb(ImageOps.exif_transpose(image))
    side = min(upright.size)
    left, top = (upright.width - side) / 2, (upright.height - side) / 2
    # The square is cut out before it is resized, or a file of 1 x 10,000 pixels would grow to millions first.
    square = upright.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1), (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        scale = 255 if values.max() <= 1 else 1 if values.max() <= 255 else 1 / 257
        image = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _read_cache(path: Path, key: str) -> dict | None:
    try:
        with np.load(path, allow_pickle=False) as stored:  # a zip file: reading checks its checksums
            about = json.loads(stored["about"].tobytes())
            if about["key"] != key:
                return None
            return about | {"images": stored["images"], "sizes": stored["sizes"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f"The cache file {path.name} is damaged and is made again.")
        return None


def _write_cache(path: Path, about: dict, pool: dict) -> None:
    about = about | {key: pool[key] for key in ("names", "digests", "skipped")}
    temporary = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
            np.savez(file, about=encoded, images=pool["images"], sizes=pool["sizes"])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        print(f"No cache is kept in the data folder ({error.strerror}); the images are decoded again next time.")
        if temporary:
            Path(temporary).unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------------- split


def _split_pool(name: str, source: str, pool: dict, seed: int) -> Dataset:
    parts = [path.split("/") for path in pool["names"]]
    has_splits = all(len(part) == 3 for part in parts)
    classes = sorted({part[-2] for part in parts})
    label_of = {label: i for i, label in enumerate(classes)}
    labels = np.array([label_of[part[-2]] for part in parts])
    if has_splits:
        of = np.array([SPLIT_FOLDERS[part[0].lower()] for part in parts])
    else:
        of = np.full(len(parts), "train", dtype="<U10")
        _hold_out(of, labels, "test", SPLIT_FRACTIONS["test"], seed)
    if not (of == "validation").any():
        fraction = SPLIT_FRACTIONS["validation"] / (1 if has_splits else 1 - SPLIT_FRACTIONS["test"])
        _hold_out(of, labels, "validation", fraction, seed + 1)
    images, sizes, labels = (torch.from_numpy(x) for x in (pool["images"], pool["sizes"], labels))
    splits = {}
    hasher = hashlib.sha256()
    for key in SPLITS:
        where = np.flatnonzero(of == key)
        splits[key] = Split(
            images[where], labels[where], [pool["names"][i] for i in where], [pool["digests"][i] for i in where], sizes[where]
        )
        for file, digest in zip(splits[key].names, splits[key].digests, strict=True):
            hasher.update(f"{key}\0{file}\0{digest}\n".encode())
    skipped = [tuple(pair) for pair in pool["skipped"]]
    return Dataset(name, source, hasher.hexdigest()[:16], classes, **splits, skipped=skipped)


def _hold_out(of: np.ndarray, labels: np.ndarray, split: str, fraction: float, seed: int) -> None:
    """Move `fraction` of each class, at least one image, from train to `split`."""
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        mine = np.flatnonzero((labels == label) & (of == "train"))
        of[rng.permutation(mine)[: max(1, round(fraction * len(mine)))]] = split


# ------------------------------------------------------------------------------------------------------------- sample


def sample(name: str, *, image_size: int = 64, counts: Sequence[int] = (48, 16, 16)) -> Dataset:
    """Generated images in place of the real ones: a disc whose colour tells the class, on a noisy ground."""
    if name not in SAMPLE_CLASSES:
        raise UserError(f"There is no sample data '{name}'; there is {', '.join(SAMPLE_CLASSES)}.")
    classes = SAMPLE_CLASSES[name]
    size = _stored_size(image_size)
    rng = np.random.default_rng(0)
    hues = np.array([[0.3, 0.4, 0.9], [0.95, 0.85, 0.2]])
    rows, columns = np.mgrid[:size, :size] / size
    splits = {}
    for key, count in zip(SPLITS, counts, strict=True):
        labels = np.arange(count) % len(classes)
        images = rng.uniform(0, 0.6, (count, 3, size, size))
        centre, radius = rng.uniform(0.4, 0.6, (count, 2, 1, 1)), rng.uniform(0.2, 0.35, (count, 1, 1))
        disc = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2
        images = np.where(disc[:, None], 0.8 * hues[labels][:, :, None, None] + images / 3, images)
        pixels = torch.from_numpy((images * 255).astype(np.uint8))
        digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in pixels]
        files = [f"{key}/{classes[label]}/{i:04}" for i, label in enumerate(labels)]
        splits[key] = Split(pixels, torch.from_numpy(labels), files, digests, torch.full((count, 2), size))
    fingerprint = hashlib.sha256("".join(d for s in splits.values() for d in s.digests).encode()).hexdigest()[:16]
    return Dataset(name, "sample", fingerprint, list(classes), **splits)


# ------------------------------------------------------------------------------------------------------------ batches


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
    """Batches of one pass over a split, cropped, augmented and normalised on the split's device.

    Without a generator: in order, the centre crop. With one: shuffled by it, and augmented image by image: 'none' is
    the centre crop, 'flip' mirrors half of the images, 'crop_flip' also cuts each at its own place after `padding`
    black pixels were put on each side. The last batch is smaller when the numbers do not divide.

    All random numbers of the pass are drawn first, on the CPU, and moved to the device at once: every device sees the
    same images, and the loop waits for nothing.

    Yields:
        images float32 (B, 3, image_size, image_size) in channels-last memory, (x / 255 - mean) / std; labels (B,).

    Raises:
        UserError: an unknown augmentation, a batch of no images, or a crop larger than the images.
    """
    height, width = split.images.shape[-2:]
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; choose a positive number of images.")
    if augment not in AUGMENTS:
        raise UserError(f"There is no augmentation '{augment}'; choose one of {', '.join(AUGMENTS)}.")
    if not 1 <= image_size <= min(height, width):
        raise UserError(f"The image size is {image_size}, but the stored images are {width}x{height}; choose less.")
    return _batches(split, batch_size, image_size, mean, std, augment, padding, generator)


def _batches(split, batch_size, image_size, mean, std, augment, padding, generator):
    count, device = len(split), split.images.device
    height, width = split.images.shape[-2:]
    order = torch.arange(count)
    top, left = torch.full((count,), (height - image_size) // 2), torch.full((count,), (width - image_size) // 2)
    flip = torch.zeros(count, dtype=torch.bool)
    if generator is None or augment != "crop_flip":
        padding = 0
    if generator is not None:
        order = torch.randperm(count, generator=generator)
        if augment == "crop_flip":
            top = torch.randint(height + 2 * padding - image_size + 1, (count,), generator=generator)
            left = torch.randint(width + 2 * padding - image_size + 1, (count,), generator=generator)
        if augment != "none":
            flip = torch.rand(count, generator=generator) < 0.5
    order, top, left, flip = (x.to(device) for x in (order, top, left, flip))
    mean = 255 * torch.as_tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    std = 255 * torch.as_tensor(std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    for start in range(0, count, batch_size):
        now = slice(start, start + batch_size)
        images = F.pad(split.images[order[now]], (padding,) * 4)
        images = _crop(images, top[now], left[now], flip[now], image_size)
        images = images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)
        yield images, split.labels[order[now]]


def _crop(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> Tensor:
    """Each image's own window of `size` x `size` pixels, mirrored where `flip` says so; no loop over images."""
    steps = torch.arange(size, device=images.device)
    rows = top[:, None] + steps
    columns = left[:, None] + torch.where(flip[:, None], size - 1 - steps, steps)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(3, device=images.device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every pixel of a split, a channel at a time, in [0, 1].

    Exact, from a count of each of the 256 values; not the mean of each image's own deviation, which is smaller.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(split.images.shape[1]):
        share = torch.bincount(split.images[:, channel].flatten(), minlength=256).cpu().double()
        share /= share.sum()
        mean.append(float(share @ values))
        std.append(float((share @ (values - mean[-1]) ** 2).sqrt()))
    return tuple(mean), tuple(std)
