"""What goes in: names, real images and generated ones, in three splits; the audit; batches on the device."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import basename, dirname

import numpy as np
import torch
from torch import Tensor

from helpers.data import cifar, photographs
from helpers.data.cifar import CIFAR100_SUPERCLASSES, cifar100_superclasses  # noqa: F401 (users call them here)
from helpers.data.folders import SPLITS, is_image_folder, subfolders, unwrap
from helpers.data.photographs import decode_photograph  # noqa: F401 (users call it here)
from helpers.data.pools import Pool, divide, listed
from helpers.runtime import UserError, data_dir

NAMES = (*photographs.KAGGLE, *cifar.NAMES)
SAMPLE_CLASSES = {
    "pikachu": ["not_pikachu", "pikachu"],
    **cifar.CLASSES,
    **{part: cifar.CLASSES[whole] for part, (whole, _) in cifar.PARTS.items()},
}
SAMPLE_COUNTS = {2: (48, 16, 16), 10: (40, 20, 20), 100: (200, 100, 100)}  # by the number of classes


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


def load(
    name: str, folder: str | Path | None = None, *, image_size: int | None = None, seed: int = 0, resize: str = "crop"
) -> Dataset:
    """Real images: found, decoded once, cached, split, and described in one printed line.

    Args:
        name: one of `names()`: a published data set, or an image folder in the data folder.
        folder: the data folder, by default `runtime.data_dir()`.
        image_size: pixels of a model's input. Photographs, by default for 224, are stored a seventh larger (256), as
            room for crops; CIFAR stays at its 32.
        seed: decides who goes where when the source brings no validation or test split of its own.
        resize: how photographs become square: `crop` keeps the middle, `squash` the whole without its aspect ratio.

    Raises:
        UserError: the folder, a class or a split is missing or empty, there are too few classes or images, a file is
            not the published one, or a download failed.
    """
    if image_size is None:
        image_size = cifar.PIXELS if name in cifar.NAMES else 224
    if image_size < 1 or seed < 0:
        raise UserError(f"Image size {image_size} with seed {seed} cannot be; the size starts at 1 and the seed at 0.")
    if resize not in photographs.RESIZES:
        raise UserError(f"There is no resize '{resize}'; choose from {', '.join(photographs.RESIZES)}.")
    base = data_dir(folder)
    if not base.is_dir():
        raise UserError(f"There is no data folder '{base}'; create it, or set DATA_DIR to the right one.")
    if name not in NAMES and not (base / name).is_dir():
        raise UserError(f"There is no '{name}' in the data folder; choose from {', '.join(names(base))}, or put it there.")
    if name in cifar.NAMES:
        dataset = _divide(*cifar.load(name, base, image_size), cifar.HELD_OUT, seed, named=False)
    else:
        dataset = _divide(name, photographs.load(name, base, image_size * 8 // 7, resize), photographs.HELD_OUT, seed)
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
