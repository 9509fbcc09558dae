"""Batches on the device: shuffled, augmented and normalised, a whole batch at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.data import augment
from helpers.data.datasets import Split
from helpers.runtime import require

AUGMENTS = ("none", "flip", "crop_flip", "resized_crop_flip", "fourfold")
BORDERS = ("zero", "reflect")
# Bytes of float32 images that are cropped and normalised at once. On a GPU, launching these dozen kernels for each batch of
# small images takes longer than running them, so one launch serves many batches. On a CPU, a single batch stays in cache.
AT_ONCE = {"cuda": 2**27}


def images_shown(split: Split, augment_name: str) -> int:
    """The number of images in one shuffled pass over a split."""
    return len(split) * (augment.COPIES if augment_name == "fourfold" else 1)


@dataclass(frozen=True)
class View:
    """How images become a network's input; invalid settings raise a `UserError`."""

    image_size: int  # pixels a side
    mean: Sequence[float]  # of each channel, with white as 1; likewise std
    std: Sequence[float]
    # In shuffled passes: 'none' is the centre crop; 'flip' mirrors half of the images; 'crop_flip' also crops each one at a
    # random position, after adding `padding` pixels on every side; 'resized_crop_flip' resizes a crop of 35 to 100 % of the
    # area and mirrors half of the images; 'fourfold' shows each image four times (`augment.sample_views`).
    augment: str = "none"
    padding: int = 0
    border: str = "zero"  # padding pixels are black ('zero') or mirrored at the edge ('reflect')
    cutout: int = 0  # side of the mean-coloured square that hides part of each shuffled image; 0: none

    def __post_init__(self):
        require(self.augment in AUGMENTS, f"There is no augmentation '{self.augment}'; choose from {', '.join(AUGMENTS)}.")
        require(self.border in BORDERS, f"There is no border '{self.border}'; choose from {', '.join(BORDERS)}.")
        require(self.padding >= 0, f"The padding is {self.padding} pixels; choose 0 or more.")
        normal = all(map(math.isfinite, (*self.mean, *self.std))) and all(self.std)
        require(normal, f"Pixels cannot be normalised by mean {self.mean} and std {self.std}; give finite ones, std not 0.")
        fits = 0 <= self.cutout <= max(self.image_size, 0)
        require(fits, f"The cutout is {self.cutout} pixels; choose 0 to {self.image_size}, the image size.")


def batches(
    split: Split, batch_size: int, *, generator: torch.Generator | None = None, mirror: Tensor | None = None, **view
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split in batches, cropped, augmented and normalised on the split's own device.

    Without a generator, images come in order and centre-cropped. With one, they are shuffled and augmented independently.
    All random numbers of a pass are drawn on the CPU before its first batch and moved to the device once, so every device
    sees the same images, and the loop never waits for them. `mirror`, bool (N,), says which images of the split to mirror,
    instead of choosing at random; `view` holds the fields of `View`. Invalid settings raise a `UserError`.

    Yields images, float32 (B, 3, image_size, image_size) in channels-last memory, (x / 255 - mean) / std; labels (B,).
    """
    view = View(**view)
    height, width = split.images.shape[-2:]
    require(batch_size >= 1, f"The batch size is {batch_size}; choose at least 1.")
    size, padding, shortest = view.image_size, view.padding, min(height, width)
    require(1 <= size <= shortest, f"The image size is {size}, but images are {width}x{height}; choose 1 to {shortest}.")
    excess = f"The padding is {padding} pixels, but {width}x{height} images can reflect at most {shortest - 1}; choose less."
    require(view.border != "reflect" or padding < shortest, excess)
    return _batches(split, batch_size, view, generator, mirror)


def _batches(split, batch_size, view: View, generator, mirror):
    device, size = split.images.device, view.image_size
    order, *drawn = (x if x is None else x.to(device) for x in _sample(split, view, generator, mirror))
    top, left = ((side - size) // 2 for side in split.images.shape[-2:])
    mean, std = (torch.tensor(x, dtype=torch.float32, device=device).view(1, 3, 1, 1) * 255 for x in (view.mean, view.std))
    step = batch_size * max(1, AT_ONCE.get(device.type, 0) // (batch_size * 3 * size**2 * 4))
    padding = view.padding if view.augment == "crop_flip" and generator else 0
    for start in range(0, len(order), step):
        now = slice(start, start + step)
        chosen = order[now] % len(split)
        whole = split.images[chosen]
        windows, views, holes = (x if x is None else x[now] for x in drawn)
        images = whole[..., top : top + size, left : left + size]
        if windows is not None:
            images = augment.cut(whole, windows, size, padding, view.border == "reflect")
        elif views is not None:
            rendered, plain = augment.render(whole, views, size), (order[now] < len(split))[:, None, None, None]
            images = torch.where(plain, images, rendered) if view.augment == "fourfold" else rendered
        images = images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)
        if holes is not None:
            augment.fill_holes(images, holes, view.cutout)
        yield from zip(images.split(batch_size), split.labels[chosen].split(batch_size), strict=True)


def _sample(split, view: View, generator, mirror):
    """The random choices of a pass, on the CPU: image order and, in that order, windows, views and holes, or None."""
    count, size, shuffled = len(split), split.images.shape[-2:], generator is not None
    kind = view.augment if shuffled else "none"
    shown = images_shown(split, kind)
    order = torch.randperm(shown, generator=generator) if shuffled else torch.arange(shown)
    windows = views = holes = None
    if kind == "fourfold":
        views = augment.sample_views(count, *size, generator)[order]
    elif kind == "resized_crop_flip":
        views = augment.sample_gentle_views(count, *size, generator)
        if mirror is not None:
            views[:, 4] = 1 - 2 * mirror[order].float()
    elif kind != "none" or (mirror is not None and not shuffled):
        padding = view.padding if kind == "crop_flip" else None
        windows = augment.sample_windows(size, view.image_size, padding, count, generator or torch.Generator())
        if mirror is not None:
            windows[:, 2] = mirror[order]
    if shuffled and view.cutout:
        holes = torch.randint(view.image_size - view.cutout + 1, (shown, 2), generator=generator)
    return order, windows, views, holes
