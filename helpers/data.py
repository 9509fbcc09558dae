"""What goes in: names, real images and generated ones, in three splits; the audit; batches on the device."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import basename, dirname

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import cifar, fourfold, photographs
from helpers.cifar import CIFAR100_SUPERCLASSES, cifar100_superclasses  # noqa: F401 (users call them here)
from helpers.folders import SPLITS, is_image_folder, subfolders, unwrap
from helpers.photographs import decode_photograph  # noqa: F401 (users call it here)
from helpers.pools import Pool, divide, listed
from helpers.runtime import UserError, data_dir

NAMES = (*photographs.KAGGLE, *cifar.NAMES)
SAMPLE_CLASSES = {
    "pikachu": ["not_pikachu", "pikachu"],
    **cifar.CLASSES,
    **{part: cifar.CLASSES[whole] for part, (whole, _) in cifar.PARTS.items()},
}
SAMPLE_COUNTS = {2: (48, 16, 16), 10: (40, 20, 20), 100: (200, 100, 100)}  # by the number of classes

AUGMENTS = ("none", "flip", "crop_flip", "fourfold")
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


def names(folder: str | Path | None = None) -> list[str]:
    """The names that `load` takes: the published data sets, and each image folder in the data folder."""
    base = data_dir(folder)
    own = [path.name for path in subfolders(base) if is_image_folder(unwrap(path))] if base.is_dir() else []
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
        image_size = cifar.PIXELS if name in cifar.NAMES else 224
    if image_size < 1 or seed < 0:
        raise UserError(f"Image size {image_size} with seed {seed} cannot be; the size starts at 1 and the seed at 0.")
    base = data_dir(folder)
    if not base.is_dir():
        raise UserError(f"There is no data folder '{base}'; create it, or set DATA_DIR to the right one.")
    if name not in NAMES and not (base / name).is_dir():
        raise UserError(f"There is no '{name}' in the data folder; choose from {', '.join(names(base))}, or put it there.")
    if name in cifar.NAMES:
        dataset = _divide(*cifar.load(name, base, image_size), cifar.HELD_OUT, seed, named=False)
    else:
        dataset = _divide(name, photographs.load(name, base, image_size * 8 // 7), photographs.HELD_OUT, seed)
    counts = ", ".join(f"{len(split)} {key}" for key, split in dataset.splits.items())
    print(f"{name}: found in {dataset.source}: {counts} images, {len(dataset.classes)} classes.")
    if dataset.skipped:
        print(f"Left out {len(dataset.skipped)}: {listed([f'{file} ({why})' for file, why in dataset.skipped])}.")
    return dataset


def _divide(name: str, pool: Pool, held_out: float, seed: int, named: bool = True) -> Dataset:
    classes, labels, split_of = divide(pool, held_out, seed)
    images, labels, sizes = (torch.from_numpy(array) for array in (pool.images, labels, pool.sizes))
    everything = Split(images, labels, pool.names, pool.digests, sizes)
    splits = {split: everything.subset(np.flatnonzero(split_of == split)) for split in SPLITS}
    return Dataset(name, pool.source, _fingerprint(splits, named), classes, **splits, skipped=pool.skipped)


def _fingerprint(splits: dict[str, Split], named: bool = True) -> str:
    """A hash of which file is in which split; unless `named`, only the file's class counts, and not what it is called."""
    hasher = hashlib.sha256()
    for name, split in splits.items():
        files = split.names if named else [basename(dirname(file)) for file in split.names]
        lines = (f"{name}\0{file}\0{digest}\n" for file, digest in zip(files, split.digests, strict=True))
        hasher.update("".join(lines).encode())
    return hasher.hexdigest()[:16]


def sample(name: str, *, image_size: int = 64, counts: Sequence[int] | None = None) -> Dataset:
    """Generated images in the place of real ones: a disc whose colour tells the class, on coloured noise.

    Of more than ten classes, the colour around the disc tells the last digit, and the disc those before it. They are
    the same at every call, nothing is read or written, and a model learns them in a few batches. So that the audit has
    something to find, the first test image is a copy of the first training image, and the second nearly so.

    Args:
        name: a name of `NAMES`, whose classes are taken over.
        image_size: as in `load`: photographs are stored a seventh larger, and CIFAR at 32.
        counts: images in train, validation and test, at least two in each; by default a few for each class.
    """
    if name not in SAMPLE_CLASSES:
        raise UserError(f"There is no sample data for '{name}'; choose from {', '.join(SAMPLE_CLASSES)}.")
    classes = SAMPLE_CLASSES[name]
    counts = SAMPLE_COUNTS[len(classes)] if counts is None else counts
    stored = cifar.PIXELS if name in cifar.NAMES else image_size * 8 // 7
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
        images, labels, sizes = torch.from_numpy(images), torch.from_numpy(labels), torch.full((count, 2), stored)
        splits[split] = Split(images, labels, files, digests, sizes)
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
    parts = [F.interpolate(part.float().mean(1, keepdim=True), THUMBNAIL, mode="area") for part in images.split(256)]
    grey = torch.cat(parts).flatten(1)
    return F.normalize(grey - grey.mean(1, keepdim=True), eps=1.0)


def leaked(dataset: Dataset, *, near: bool = True, seen: Sequence[str] = ("train", "validation")) -> Tensor:
    """int64 (N,), sorted: the test images that are also in `seen`, byte-identical or, with `near`, near-identical."""
    groups = duplicates(dataset)
    if near:
        groups += [[first, second] for first, second, _ in near_duplicates(dataset)]
    crossing = [group for group in groups if any(split in seen for split, _ in group)]
    indices = {index for group in crossing for split, index in group if split == "test"}
    return torch.tensor(sorted(indices), dtype=torch.int64)


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of all images, with pixels in [0, 1].

    Exact, from how often each of the 256 values occurs. The mean of each image's own deviation, which is often
    quoted instead, is smaller: it leaves out how images differ from each other.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    moments = []
    for channel in split.images.unbind(1):
        count = torch.bincount(channel.flatten(), minlength=256).cpu().double()
        share = count / count.sum()
        mean = (share * values).sum()
        moments.append((mean.item(), (share * (values - mean) ** 2).sum().sqrt().item()))
    means, deviations = zip(*moments, strict=True)
    return means, deviations


def images_shown(split: Split, augment: str) -> int:
    """How many images a shuffled pass over a split shows."""
    return len(split) * (fourfold.COPIES if augment == "fourfold" else 1)


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
    also cuts each at a place of its own, after `padding` black pixels were put on every side, and 'fourfold' shows
    each image four times: its centre crop and three other views (`fourfold.draw_views`). All that is random in
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
    order, windows, views = torch.arange(count), None, None
    top, left = ((side - image_size) // 2 for side in split.images.shape[-2:])
    if generator is not None:
        order = torch.randperm(images_shown(split, augment), generator=generator)
        if augment == "fourfold":
            views = fourfold.draw_views(count, *split.images.shape[-2:], generator).to(device)
        elif augment != "none":
            padding = padding if augment == "crop_flip" else 0
            windows = _draw_windows(split, image_size, augment, padding, generator).to(device)
    order = order.to(device)
    mean, std = (torch.tensor(x, dtype=torch.float32, device=device).view(1, 3, 1, 1) * 255 for x in (mean, std))
    for start in range(0, len(order), batch_size):
        now = slice(start, start + batch_size)
        chosen = order[now] % count
        whole = split.images[chosen]
        images = whole[..., top : top + image_size, left : left + image_size]
        if windows is not None:
            images = _cut(F.pad(whole, [padding] * 4), windows[now], image_size)
        if views is not None:
            plain = (order[now] < count)[:, None, None, None]
            images = torch.where(plain, images, fourfold.look(whole, views[order[now]], image_size))
        images = images.to(torch.float32, memory_format=torch.channels_last)
        yield images.sub_(mean).div_(std), split.labels[chosen]


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
