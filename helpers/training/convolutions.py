"""Faster equivalents of operations that torch runs slowly."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from helpers.training.recipe import Recipe

HEAVY = 2  # weights per input value; from this ratio on, a matrix product is faster
NARROW = 8  # channels per group; with fewer, wider groups are faster


def convolutions(device: torch.device, recipe: Recipe) -> AbstractContextManager:
    """The context of every step and evaluation. In full precision, a CPU's step is the textbook's bit for bit."""
    if device.type == "cpu":
        return FasterOnCPU() if recipe.mixed_precision and not recipe.compiled else nullcontext()
    # cuDNN makes the same choices in every run, unless the recipe lets it pick the fastest. Full precision is not TF32.
    chosen = {"benchmark": not recipe.deterministic, "deterministic": recipe.deterministic}
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=recipe.mixed_precision, **chosen)


class FasterOnCPU(TorchFunctionMode):
    """Compute in another way what torch computes slowly on a CPU. The timings are from one AMX core in bf16.

    - Convolutions with at least `HEAVY` times as many weights as inputs, as in the last stages, become matrix products.
      oneDNN reorders the weights and their gradients in every pass: forward and backward, a 3×3 convolution of 512 to 512
      channels on one pixel takes 60 ms, the product 3 ms; on 4×4 pixels, 99 and 35 ms (64 and 32 images).
    - In bf16, groups of fewer than `NARROW` channels are joined: a 3×3 convolution of 128 channels takes 99 ms with 32
      groups and 61 ms with 16 (128 images of 32×32 pixels).
    - ReLU is not done in place: 12 ms instead of 37 (128 images of 256 channels and 32×32 pixels).
    """

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        if function is F.conv2d and not kwargs and len(args) == 7:
            if _is_heavy(*args):
                return product(*args[:5])
            if torch.is_autocast_enabled("cpu"):  # without bf16, joined groups are slower
                weight, groups = joined(args[1], args[6])
                return function(args[0], weight, *args[2:6], groups)
        if function is F.relu:
            return function(args[0])
        return function(*args, **(kwargs or {}))


def _is_heavy(images: Tensor, weight: Tensor, bias, stride, padding, dilation, groups: int) -> bool:
    if images.dim() != 4 or groups != 1 or tuple(dilation) != (1, 1) or isinstance(padding, str):
        return False
    sides = zip(images.shape[2:], padding, weight.shape[2:], strict=True)
    inside = all(border < kernel <= side + 2 * border for side, border, kernel in sides)
    return inside and weight.numel() >= HEAVY * images.numel()


def joined(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """The weights (O, I, h, w) and number of groups of the same convolution, its groups joined to `NARROW` channels or more.

    Each output channel's weights for the channels that join its group are zero. A depthwise convolution stays as it is.
    """
    outputs, inputs, *kernel = weight.shape
    if groups == 1 or not 1 < inputs < NARROW:
        return weight, groups
    together = next((n for n in range(2, groups) if groups % n == 0 and n * inputs >= NARROW), groups)
    blocks = weight.view(groups // together, together, -1, 1, inputs, *kernel)
    own = torch.eye(together, dtype=weight.dtype).view(1, together, 1, together, 1, 1, 1)
    return (blocks * own).reshape(outputs, together * inputs, *kernel), groups // together


def product(images: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    """The convolution of images (N, C, H, W): the pixels that each weight sees, side by side, times weights (O, C, h, w).

    Weights that see only the padding are left out.
    """
    places = []  # per axis: (the weights that see a pixel, and the pixels of the padded image that each of them sees)
    for size, kernel, step, border in zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True):
        reach = (size + 2 * border - kernel) // step * step  # how far the kernel moves
        first, last = max(border - reach, 0), min(border + size, kernel)
        places.append((slice(first, last), [slice(start, start + reach + 1, step) for start in range(first, last)]))
    (rows, seen_rows), (columns, seen_columns) = places
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    seen = torch.cat([padded[:, down, across] for down in seen_rows for across in seen_columns], dim=3)
    return F.linear(seen, weight.permute(0, 2, 3, 1)[:, rows, columns].flatten(1), bias).permute(0, 3, 1, 2)
