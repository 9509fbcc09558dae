"""Augmentation of whole batches: fixed-size crops, resized crops, four copies of each image, cutout."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COPIES = 4
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop
GENTLE_AREA = (0.35, 1.0)  # for `resized_crop_flip`


def sample_windows(size: tuple[int, int], image_size: int, padding: int | None, count: int, generator) -> Tensor:
    """int64 (count, 3): the top row, left column and mirroring (0 or 1) of each crop of `image_size` pixels.

    Positions are random in images of `size` (height, width) with `padding` pixels on every side; None: centre crops.
    """
    if padding is not None:
        top, left = (torch.randint(side + 2 * padding - image_size + 1, (count,), generator=generator) for side in size)
    else:
        top, left = (torch.full((count,), (side - image_size) // 2) for side in size)
    return torch.stack([top, left, sample_mirrors(count, generator).long()], dim=1)


def sample_mirrors(count: int, generator: torch.Generator) -> Tensor:
    """bool (count,): whether to mirror each image, with probability 1/2."""
    return torch.rand(count, generator=generator) < 0.5


def cut(images: Tensor, windows: Tensor, image_size: int, padding: int, reflect: bool) -> Tensor:
    """Crop each image to its own window, with one gather: (B, C, H, W) and (B, 3) to (B, C, image_size, image_size).

    Windows are relative to the image with `padding` pixels on every side, black or, with `reflect`, mirrored at the edge.
    """
    if padding and not reflect:
        images = F.pad(images, [padding] * 4)
    count, channels, height, width = images.shape
    top, left, mirror = windows[:, :, None].unbind(1)
    steps = torch.arange(image_size, device=images.device)
    rows = top + steps
    columns = left + torch.where(mirror == 1, image_size - 1 - steps, steps)
    if reflect:
        rows = height - 1 - (height - 1 - (rows - padding).abs()).abs()
        columns = width - 1 - (width - 1 - (columns - padding).abs()).abs()
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).view(count, channels, image_size, image_size)


def sample_views(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """float32 (4·count, 8): one view for each copy of each image; row c·count + i is copy c of image i.

    Copy 0 is the unchanged image. The others are independent random crops: copy 1 is mirrored left to right, copy 2 top to
    bottom, and copy 3 is rotated by up to 90 degrees either way. The columns are the crop's top, left, height and width in
    pixels, then, row by row, the matrix that maps a point in the view (x right, y down, -1 to 1) to a point in the crop.
    Source: report `slim`, "Project Overview" and "Methodology", and its code: both flips always happen.
    """
    whole = torch.tensor([0.0, 0.0, height, width]).expand(count, 4)
    boxes = torch.cat([whole, sample_crops((COPIES - 1) * count, height, width, generator)])
    turns = torch.empty(count).uniform_(-90.0, 90.0, generator=generator).deg2rad()
    fixed = torch.tensor([[1.0, 0, 0, 1], [-1.0, 0, 0, 1], [1.0, 0, 0, -1]]).repeat_interleave(count, 0)
    turned = torch.stack([turns.cos(), -turns.sin(), turns.sin(), turns.cos()], 1)
    return torch.cat([boxes, torch.cat([fixed, turned])], 1)


def sample_gentle_views(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """float32 (count, 8): a crop of 35 to 100 % of each image, mirrored half of the time; columns as in `sample_views`."""
    boxes = sample_crops(count, height, width, generator, GENTLE_AREA)
    matrices = torch.tensor([1.0, 0, 0, 1]).repeat(count, 1)
    matrices[sample_mirrors(count, generator), 0] = -1
    return torch.cat([boxes, matrices], 1)


def sample_crops(count: int, height: int, width: int, generator: torch.Generator, area: tuple = AREA) -> Tensor:
    """float32 (count, 4): top, left, height and width of random crops, in whole pixels, sampled as in torchvision.

    Ten crops are drawn with random area and aspect ratio (3/4 to 4/3). The first that fits is used, or else the whole image.
    """
    areas = height * width * torch.empty(count, TRIES).uniform_(*area, generator=generator)
    ratios = torch.empty(count, TRIES).uniform_(*map(math.log, RATIO), generator=generator).exp()
    heights, widths = (areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()
    fits = (1 <= heights) & (heights <= height) & (1 <= widths) & (widths <= width)
    first = fits.int().argmax(1, keepdim=True)  # 0 if none fits; the next line then gives the whole image's size
    heights, widths = torch.where(fits, heights, height).gather(1, first), torch.where(fits, widths, width).gather(1, first)
    tops = (torch.rand(count, 1, generator=generator) * (height - heights + 1)).floor()
    lefts = (torch.rand(count, 1, generator=generator) * (width - widths + 1)).floor()
    return torch.cat([tops, lefts, heights, widths], 1)


def render(images: Tensor, views: Tensor, image_size: int) -> Tensor:
    """Apply each image's view: uint8 (B, 3, H, W) and (B, 8) to float32 (B, 3, image_size, image_size), 0 to 255.

    As if the crop were cut out, resized (bilinear) and then rotated (nearest pixel, as in torchvision's `RandomRotation`),
    without rounding in between. Pixels outside the crop are black.
    """
    height, width = images.shape[-2:]
    top, left, crop_height, crop_width, a, b, c, d = views[:, :, None, None].unbind(1)
    x = (2 * torch.arange(image_size, device=images.device) + 1) / image_size - 1
    column, row = a * x + b * x[:, None], c * x + d * x[:, None]
    inside = (column.abs() <= 1) & (row.abs() <= 1)
    column, row = ((2 * ((place + 1) / 2 * image_size).floor() + 1) / image_size - 1 for place in (column, row))
    column = left + ((column + 1) / 2 * crop_width - 0.5).clamp_min(0).minimum(crop_width - 1)
    row = top + ((row + 1) / 2 * crop_height - 0.5).clamp_min(0).minimum(crop_height - 1)
    places = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], 3)
    return F.grid_sample(images.float(), places, padding_mode="border", align_corners=False) * inside[:, None]


def fill_holes(images: Tensor, holes: Tensor, side: int) -> Tensor:
    """Cutout as in airbench, inside the image: a square of each normalised one becomes 0, the mean colour. `holes`: (B, 2)."""
    steps = torch.arange(images.shape[-1], device=images.device)
    rows, columns = ((start <= steps) & (steps < start + side) for start in holes[:, :, None].unbind(1))
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def resize(images: Tensor, pixels: int) -> Tensor:
    """Resize images to `pixels` a side, bilinear with antialiasing; unchanged if they already have that size."""
    if images.shape[-1] != pixels:
        images = F.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
    return images
