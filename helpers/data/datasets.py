"""Labelled images in three splits: loaded by name, split, fingerprinted and measured."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import basename, dirname

import numpy as np
import torch
from torch import Tensor

from helpers.data import cifar, photographs
from helpers.data.pools import SPLITS, Pool, is_image_folder, listed_files, place, subfolders, unwrap
from helpers.runtime import UserError, data_dir, require

NAMES = (*photographs.KAGGLE, *cifar.NAMES)


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split."""

    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,)
    names: list[str]  # paths relative to the data set's folder, with '/'
    digests: list[str] = field(default_factory=list)  # hex SHA-256, of the file for photographs, else of the pixels
    sizes: Tensor | None = None  # int64 (N, 2), each file's width and height

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split with its images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "Split":
        """The images at `indices`, in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        positions, on_device = indices.tolist(), indices.to(self.images.device)
        names = [self.names[i] for i in positions]
        digests = [self.digests[i] for i in positions] if self.digests else []
        sizes = None if self.sizes is None else self.sizes[indices]
        return Split(self.images[on_device], self.labels[on_device], names, digests, sizes)


def stratified(split: Split, n: int, seed: int = 0) -> Split:
    """`n` random images of a split, or all if it has fewer, in its order and with nearly the same class proportions."""
    require(n >= 1, f"A subset of {n} images was requested; choose 1 or more.")
    rng = np.random.default_rng(seed)
    labels = split.labels.cpu().numpy()
    rank = np.empty(len(labels))  # each image's random rank in its class, as a fraction of the class size
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    return split.subset(np.sort(np.argsort(rank)[:n]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of labelled images."""

    name: str
    source: str  # a description of where the images came from
    fingerprint: str  # a hash of which image, by content, is in which split
    classes: list[str]  # the name of each label, sorted
    train: Split
    validation: Split
    test: Split
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, reason) for each file that could not be read

    @property
    def is_sample(self) -> bool:
        """Whether the images were generated; numbers measured on them are not results."""
        return self.source == "sample"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name: train, validation, test."""
        return {split: getattr(self, split) for split in SPLITS}


def names(folder: str | Path | None = None) -> list[str]:
    """The names that `load` accepts: the published data sets, and each image folder in the data folder."""
    base = data_dir(folder)
    own = [path.name for path in subfolders(base) if is_image_folder(unwrap(path))] if base.is_dir() else []
    return sorted({*NAMES, *own})


def stored_size(name: str, image_size: int) -> int:
    """The size images are stored at for inputs of `image_size`: a seventh larger, to allow crops; CIFAR stays at 32."""
    return cifar.PIXELS if name in cifar.NAMES else image_size * 8 // 7


def load(
    name: str, folder: str | Path | None = None, *, image_size: int | None = None, seed: int = 0, resize: str = "crop"
) -> Dataset:
    """Find real images, decode them once, cache and split them, and print a one-line description.

    Args:
        name: one of `names()`: a published data set, or an image folder in the data folder.
        folder: the data folder, by default `runtime.data_dir()`.
        image_size: the model's input size in pixels, by default 32 for CIFAR and 224 for photographs.
        seed: chooses the images of a validation or test split that the source does not provide.
        resize: how photographs become square: `crop` keeps the middle, `squash` the whole image but not its aspect ratio.

    A UserError if a folder, class or split is missing or empty, images are too few or not as published, or a download fails.
    """
    is_cifar, base = name in cifar.NAMES, data_dir(folder)
    if image_size is None:
        image_size = cifar.PIXELS if is_cifar else 224
    possible = image_size >= 1 and seed >= 0
    require(possible, f"The image size is {image_size} and the seed {seed}; choose a size above 0 and a seed of 0 or more.")
    require(resize in photographs.RESIZES, f"There is no resize '{resize}'; choose from {', '.join(photographs.RESIZES)}.")
    require(base.is_dir(), f"There is no data folder '{base}'; create it, or set DATA_DIR to the right one.")
    if name not in NAMES and not os.path.isdir(base / name):  # unlike Path.is_dir, also if the name is too long for a folder
        raise UserError(f"There is no '{name}' in the data folder; choose from {', '.join(names(base))}, or put it there.")
    if is_cifar:
        pool = cifar.read_pool(name, base, image_size)
    else:
        pool = photographs.read_pool(name, base, stored_size(name, image_size), resize)
    classes, splits = _divide(pool, cifar.HELD_OUT if is_cifar else photographs.HELD_OUT, seed)
    counts = ", ".join(f"{len(split)} {key}" for key, split in splits.items())
    print(f"{name} ({pool.source}): {counts} images, {len(classes)} classes.")
    if pool.skipped:
        print(f"Left out {len(pool.skipped)}: {listed_files(pool.skipped)}.")
    return Dataset(name, pool.source, fingerprint(splits, named=not is_cifar), classes, **splits, skipped=pool.skipped)


def _divide(pool: Pool, held_out: float, seed: int) -> tuple[list[str], dict[str, Split]]:
    """The sorted classes and the three splits; a UserError if a class has no readable images, or too few to hold any out.

    Images stay in their split. For each split that the source does not provide, a random share `held_out` of each
    training class, at least one image, is moved out of train.
    """
    folders = [dirname(path) for path in pool.names]
    if empty := sorted({dirname(file) for file, _ in pool.skipped} - set(folders)):
        lost = listed_files([pair for pair in pool.skipped if dirname(pair[0]) == empty[0]], most=3)
        raise UserError(f"No image of class '{place(empty[0])[1]}' of the {pool.source} can be read: {lost}; replace them.")
    split_of = np.array([place(folder)[0] for folder in folders], dtype="<U10")
    classes, labels = np.unique([place(folder)[1] for folder in folders], return_inverse=True)
    missing = [split for split in SPLITS if split not in split_of]
    for label, class_name in enumerate(classes):
        members = np.flatnonzero((labels == label) & (split_of == "train"))
        few = f"The class '{class_name}' of the {pool.source} has {len(members)} readable images, too few to split"
        require(not missing or len(members) > len(missing), f"{few}; it needs {len(missing) + 1}.")
        shuffled = np.random.default_rng([seed, label]).permutation(members)
        count = max(1, round(held_out * len(members)))
        for number, split in enumerate(missing):
            split_of[shuffled[number * count : (number + 1) * count]] = split
    images, labels, sizes = (torch.from_numpy(array) for array in (pool.images, labels, pool.sizes))
    everything = Split(images, labels, pool.names, pool.digests, sizes)
    return classes.tolist(), {split: everything.subset(np.flatnonzero(split_of == split)) for split in SPLITS}


def fingerprint(splits: dict[str, Split], named: bool = True) -> str:
    """A hash of which file is in which split; unless `named`, it covers the file's content and class but not its name."""
    hasher = hashlib.sha256()
    for name, split in splits.items():
        files = split.names if named else [basename(dirname(file)) for file in split.names]
        lines = (f"{name}\0{file}\0{digest}\n" for file, digest in zip(files, split.digests, strict=True))
        hasher.update("".join(lines).encode(errors="surrogateescape"))  # a file name need not be UTF-8
    return hasher.hexdigest()[:16]


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of all images, with pixels in [0, 1].

    The mean of the per-image standard deviations, which is often quoted instead, is smaller: it ignores the differences
    between images.
    """
    found = [torch.std_mean(channel.double() / 255, correction=0) for channel in split.images.unbind(1)]
    return tuple(mean.item() for _, mean in found), tuple(deviation.item() for deviation, _ in found)
