"""Report `slim`'s data multiplication: every image four times an epoch, once as it is and thrice as it might have been."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COPIES = 4
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop
DEGREES = 90.0


def draw_views(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """float32 (4·count, 8): how each copy of each image is looked at; row c·count + i is copy c of image i.

    Copy 0 is the image as it is. The others are crops of a random size, shape and place, each drawn by itself, and
    then: copy 1 is mirrored left to right, copy 2 top to bottom, copy 3 is turned by up to 90 degrees either way. The
    columns are the crop's top, left, height and width in pixels, and the matrix that takes a place in the view (x to the
    right, y down, both from -1 to 1) to one in the crop, row by row.

    Source: report `slim`, "Project Overview" and "Methodology", and its code: both flips always happen.
    """
    whole = torch.tensor([0.0, 0.0, height, width]).expand(count, 4)
    boxes = torch.cat([whole, draw_crops((COPIES - 1) * count, height, width, generator)])
    turns = torch.empty(count).uniform_(-DEGREES, DEGREES, generator=generator).deg2rad()
    fixed = torch.tensor([[1.0, 0, 0, 1], [-1.0, 0, 0, 1], [1.0, 0, 0, -1]]).repeat_interleave(count, 0)
    turned = torch.stack([turns.cos(), -turns.sin(), turns.sin(), turns.cos()], 1)
    return torch.cat([boxes, torch.cat([fixed, turned])], 1)


def draw_crops(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """float32 (count, 4): top, left, height and width of random crops, in whole pixels.

    A crop has 8 to 100 % of the area, is 3/4 to 4/3 as wide as high, and lies anywhere. Of ten drawn for each image the
    first that fits counts; where none does, the crop is the whole image.

    Source: torchvision's `RandomResizedCrop.get_params`, for a whole epoch at once.
    """
    area = height * width * torch.empty(count, TRIES).uniform_(*AREA, generator=generator)
    ratio = torch.empty(count, TRIES).uniform_(*map(math.log, RATIO), generator=generator).exp()
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (1 <= heights) & (heights <= height) & (1 <= widths) & (widths <= width)
    first = fits.int().argmax(1, keepdim=True)
    heights, widths = (
        torch.where(fits.any(1), sizes.gather(1, first)[:, 0], torch.tensor(float(side)))
        for sizes, side in ((heights, height), (widths, width))
    )
    top, left = (
        (torch.rand(count, generator=generator) * (side - sizes + 1)).floor()
        for sizes, side in ((heights, height), (widths, width))
    )
    return torch.stack([top, left, heights, widths], 1)


def look(images: Tensor, views: Tensor, size: int) -> Tensor:
    """Each image through its own view: uint8 (B, 3, H, W) and (B, 8) to float32 (B, 3, size, size), from 0 to 255.

    Between pixels it is bilinear, and a pixel outside the crop never matters: as if the crop were cut out, resized and
    then turned, without the rounding in between. What a turn brings in from outside the crop is black.
    """
    height, width = images.shape[-2:]
    top, left, crop_height, crop_width, *matrix = views[:, :, None, None].unbind(1)
    steps = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    y, x = steps[:, None], steps[None, :]
    column, row = (matrix[i] * x + matrix[i + 1] * y for i in (0, 2))
    inside = (column.abs() <= 1) & (row.abs() <= 1)
    column = left + ((column + 1) / 2 * crop_width - 0.5).clamp_min(0).minimum(crop_width - 1)
    row = top + ((row + 1) / 2 * crop_height - 0.5).clamp_min(0).minimum(crop_height - 1)
    places = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], 3)
    return F.grid_sample(images.float(), places, padding_mode="border", align_corners=False) * inside[:, None]
