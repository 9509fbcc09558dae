"""How convolutions are computed while training: the same sums, by whatever takes least time on the device."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from helpers.training.recipe import Recipe

FEW_PIXELS = 4  # at 16 and more, oneDNN's own convolution is faster


def convolutions(device: torch.device, recipe: Recipe) -> AbstractContextManager:
    """The context of every step: on a GPU cuDNN keeps to its choices, unless the recipe lets it try others."""
    if device.type == "cpu" and not recipe.compiled:
        return SmallMaps()
    return torch.backends.cudnn.flags(enabled=True, benchmark=not recipe.deterministic, deterministic=recipe.deterministic)


class SmallMaps(TorchFunctionMode):
    """Convolutions with at most `FEW_PIXELS` output pixels become a linear layer for each of these pixels.

    There the weights are most of the data, and oneDNN reorders all of them in every pass: forward and backward, 512 to 512
    channels of one pixel take 53 ms, and a linear layer under 9 (64 images, one core, bf16).
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d and not kwargs and len(args) == 7 and (sizes := _few_pixels(*args)):
            return pixel_by_pixel(*args[:5], sizes)
        return function(*args, **(kwargs or {}))


def _few_pixels(images: Tensor, weight: Tensor, bias, stride, padding, dilation, groups: int) -> tuple[int, int] | None:
    """Height and width of the output, where they are few pixels and the convolution has no other extras."""
    if groups != 1 or isinstance(padding, str) or tuple(dilation) != (1, 1):
        return None
    sides = list(zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True))
    height, width = ((side + 2 * border - kernel) // step + 1 for side, kernel, step, border in sides)
    inside = all(border < kernel for _, kernel, _, border in sides)  # every output pixel sees one of the input's
    return (height, width) if inside and height * width <= FEW_PIXELS else None


def pixel_by_pixel(images: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, sizes: tuple[int, int]) -> Tensor:
    """The convolution of (N, C, H, W) images, each output pixel of which sees a part of the map by a part of the weights."""
    images, weight = images.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)  # no copy in channels-last memory

    def parts(axis: int, index: int) -> tuple[slice, slice]:
        start = index * stride[axis] - padding[axis]
        return slice(max(start, 0), start + weight.shape[1 + axis]), slice(max(-start, 0), images.shape[1 + axis] - start)

    pixels = []
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            (seen_rows, rows), (seen_columns, columns) = parts(0, row), parts(1, column)
            seen = images[:, seen_rows, seen_columns].flatten(1)
            pixels.append(F.linear(seen, weight[:, rows, columns].flatten(1), bias))
    return torch.stack(pixels, 1).unflatten(1, sizes).permute(0, 3, 1, 2)
