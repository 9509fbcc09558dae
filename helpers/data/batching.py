"""Batches on the device: shuffled, augmented and normalised whole batches at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.data import augment
from helpers.data.datasets import Split
from helpers.runtime import UserError

AUGMENTS = ("none", "flip", "crop_flip", "resized_crop_flip", "fourfold")
BORDERS = ("zero", "reflect")


def images_shown(split: Split, augment_name: str) -> int:
    """How many images a shuffled pass over a split shows."""
    return len(split) * (augment.COPIES if augment_name == "fourfold" else 1)


@dataclass(frozen=True)
class View:
    """How images become a network's input.

    Attributes:
        image_size: pixels a side.
        mean, std: of each channel, in units of white.
        augment: of shuffled passes: 'none' is the centre crop, 'flip' mirrors half of the images as well, 'crop_flip' also
            cuts each at a place of its own, after `padding` pixels were put on every side; 'resized_crop_flip' enlarges a
            crop of 35 to 100 % of the area and mirrors half of them; 'fourfold' shows each image four times
            (`augment.sample_views`).
        border: the pixels of the padding: black ('zero') or mirrored at the edge ('reflect').
        cutout: side of the square of mean colour that hides a part of each shuffled image; 0: none.

    Raises:
        UserError: one of them cannot be.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    augment: str = "none"
    padding: int = 0
    border: str = "zero"
    cutout: int = 0

    def __post_init__(self):
        if self.augment not in AUGMENTS:
            raise UserError(f"There is no augmentation '{self.augment}'; choose from {', '.join(AUGMENTS)}.")
        if self.padding < 0:
            raise UserError(f"The padding is {self.padding} pixels; choose 0 or more.")
        if self.border not in BORDERS:
            raise UserError(f"There is no border '{self.border}'; choose from {', '.join(BORDERS)}.")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(self.std):
            raise UserError(f"Pixels cannot be normalised by mean {self.mean} and std {self.std}; give finite ones, std not 0.")
        if not 0 <= self.cutout <= max(self.image_size, 0):
            raise UserError(f"The cutout is {self.cutout} pixels; choose 0 to {self.image_size}, the image size.")


def batches(
    split: Split, batch_size: int, *, generator: torch.Generator | None = None, mirror: Tensor | None = None, **view
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split in batches, cropped, augmented and normalised on the split's own device.

    Without a generator the images come in order and centre-cropped. With one they are shuffled, and augmented each by
    itself. All that is random in the pass is sampled before its first batch, on the CPU, and moved to the device once:
    every device sees the same images, and the loop waits for none. The last batch is smaller when the numbers do not divide.

    Args:
        mirror: bool (N,), which images of the split to mirror, instead of a coin for each.
        view: the fields of `View`: image_size, mean and std, and what augments.

    Yields:
        images, float32 (B, 3, image_size, image_size) in channels-last memory, (x / 255 - mean) / std; labels (B,).

    Raises:
        UserError: the batch size, the image size, the padding or the augmentation cannot be.
    """
    view = View(**view)
    height, width = split.images.shape[-2:]
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; choose at least 1.")
    if not 1 <= view.image_size <= min(height, width):
        raise UserError(f"The image size is {view.image_size}, but images are stored at {width}x{height}; choose less.")
    if view.border == "reflect" and view.padding >= min(height, width):
        raise UserError(f"The padding is {view.padding} pixels, but {width}x{height} images reflect fewer; choose less.")
    return _batches(split, batch_size, view, generator, mirror)


def _batches(split, batch_size, view: View, generator, mirror):
    count, device = len(split), split.images.device
    order, windows, views, holes = _sample(split, view, generator, mirror)
    order, windows, views, holes = (None if x is None else x.to(device) for x in (order, windows, views, holes))
    top, left = ((side - view.image_size) // 2 for side in split.images.shape[-2:])
    mean, std = (torch.tensor(x, dtype=torch.float32, device=device).view(1, 3, 1, 1) * 255 for x in (view.mean, view.std))
    padding = view.padding if view.augment == "crop_flip" else 0
    for start in range(0, len(order), batch_size):
        now = slice(start, start + batch_size)
        chosen = order[now] % count
        whole = split.images[chosen]
        images = whole[..., top : top + view.image_size, left : left + view.image_size]
        if windows is not None:
            images = augment.cut(whole, windows[now], view.image_size, padding, view.border == "reflect")
        elif view.augment == "fourfold" and views is not None:
            plain = (order[now] < count)[:, None, None, None]
            images = torch.where(plain, images, augment.render(whole, views[order[now]], view.image_size))
        elif views is not None:
            images = augment.render(whole, views[now], view.image_size)
        images = images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)
        yield images if holes is None else augment.fill_holes(images, holes[now], view.cutout), split.labels[chosen]


def _sample(split: Split, view: View, generator, mirror):
    """What is random in a pass, on the CPU: the order of the images, and their windows, views and holes, or None."""
    count, size = len(split), split.images.shape[-2:]
    order, windows, views, holes = torch.arange(count), None, None, None
    if generator is not None:
        order = torch.randperm(images_shown(split, view.augment), generator=generator)
        if view.augment == "fourfold":
            views = augment.sample_views(count, *size, generator)
        elif view.augment == "resized_crop_flip":
            views = augment.sample_gentle_views(count, *size, generator)
        elif view.augment != "none":
            padding = view.padding if view.augment == "crop_flip" else None
            windows = augment.sample_windows(size, view.image_size, padding, count, generator)
        if view.cutout:
            holes = augment.sample_holes(len(order), view.image_size, view.cutout, generator)
    elif mirror is not None:
        windows = augment.sample_windows(size, view.image_size, None, count, torch.Generator())
    if mirror is not None and windows is not None:
        windows[:, 2] = mirror[order]
    elif mirror is not None and view.augment == "resized_crop_flip":
        views[:, 4] = 1 - 2 * mirror[order].float()
    return order, windows, views, holes
