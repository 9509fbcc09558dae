"""Batches on the device: shuffled, cropped, flipped and normalised whole batches at a time."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.data import fourfold
from helpers.data.datasets import Split
from helpers.runtime import UserError

AUGMENTS = ("none", "flip", "crop_flip", "fourfold")


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
