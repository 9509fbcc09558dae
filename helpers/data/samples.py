"""Generated images in place of real ones, for smoke runs and tests."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from helpers.data import cifar
from helpers.data.datasets import Dataset, Split, fingerprint, stored_size
from helpers.data.pools import SPLITS
from helpers.runtime import require

SAMPLE_CLASSES = {"pikachu": ["not_pikachu", "pikachu"]} | cifar.CLASSES
SAMPLE_CLASSES |= {part: cifar.CLASSES[whole] for part, (whole, _) in cifar.PARTS.items()}
SAMPLE_COUNTS = {2: (48, 16, 16), 10: (40, 20, 20), 100: (200, 100, 100)}  # by the number of classes


def sample(name: str, *, image_size: int = 64, counts: Sequence[int] | None = None) -> Dataset:
    """Generated images with the classes of a published data set: a disc whose colour encodes the class, on coloured noise.

    With more than ten classes, the colour around the disc encodes the label's last digit, and the disc the others. The
    images are the same in every call, and a model learns them in a few batches. To give the audit something to find, the
    first test image is a copy of the first training image, and the second nearly a copy of the second. Photographs are
    stored a seventh larger than `image_size`, as in `load`. `counts`: images in train, validation and test, each at least 2.
    """
    require(name in SAMPLE_CLASSES, f"There is no sample data for '{name}'; choose from {', '.join(SAMPLE_CLASSES)}.")
    classes = SAMPLE_CLASSES[name]
    counts = counts or SAMPLE_COUNTS[len(classes)]
    size, rng, splits = stored_size(name, image_size), np.random.default_rng(0), {}
    for split, count in zip(SPLITS, counts, strict=True):
        labels = np.arange(count) % len(classes)
        images = _discs(labels, len(classes), size, rng)
        if split == "test":
            copied = splits["train"].images[:2].numpy()
            images[0], images[1] = copied[0], copied[1] // 8 * 8
        files = [f"{split}/{classes[label]}/{index:04}.png" for index, label in enumerate(labels)]
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        splits[split] = Split(torch.from_numpy(images), torch.from_numpy(labels), files, digests, torch.full((count, 2), size))
    return Dataset(name, "sample", fingerprint(splits), list(classes), **splits)


def _discs(labels: np.ndarray, num_classes: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (N, 3, size, size): discs, with the class colours spread evenly around the colour circle."""
    count, two_colours = len(labels), num_classes > 10
    colours = _hues((labels // 10 * 10 if two_colours else labels) / num_classes)
    rows, columns = np.mgrid[:size, :size] / size
    centres = rng.uniform(0.4, 0.6, (2, count, 1, 1))
    inside = np.hypot(rows - centres[0], columns - centres[1]) < rng.uniform(0.2, 0.35, (count, 1, 1))
    noise = rng.uniform(0, 0.6, (count, 3, size, size))
    around = 0.8 * _hues(labels % 10 / 10) + 0.2 * noise if two_colours else noise
    return (255 * np.where(inside[:, None], 0.8 * colours + 0.2 * noise, around)).astype(np.uint8)


def _hues(turns: np.ndarray) -> np.ndarray:
    """float (N, 3, 1, 1): the colours at these positions on the colour circle, in turns."""
    return (0.55 + 0.35 * np.cos(2 * np.pi * (turns[:, None] + np.array([1, 2, 0]) / 3)))[:, :, None, None]
