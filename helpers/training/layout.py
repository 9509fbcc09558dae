"""The same arithmetic, arranged for speed: memory layout and width of the convolution groups, chosen by measurement.

Grouped convolutions are the trap: in some shapes cuDNN ran 30 to 40 times slower in one memory layout than in the other
(pytorch issues 34977, 70954 and 10290), and groups of four channels leave a matrix unit idle. So nothing is believed here.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 5
CLEARLY_FASTER = 0.9  # of the time of the first: smaller gains are noise, which must not decide how a run rounds
GROUP_WIDTHS = (16, 64)


@dataclass(frozen=True)
class Arrangement:
    """How a network computes what it computes.

    Attributes:
        channels_last: the channels of a pixel lie side by side in memory; else those of an image, torch's default.
        group_width: convolution groups narrower than this many channels are computed several at a time.
    """

    channels_last: bool = True
    group_width: int = 1


PLAIN = Arrangement(channels_last=False)


class MergedConv2d(nn.Conv2d):
    """A grouped convolution computed in fewer and wider groups; its parameters and outputs are those of the narrow ones."""

    merged: int

    def forward(self, x: Tensor) -> Tensor:
        weight, groups = merge_groups(self.weight, self.merged), self.groups // self.merged
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, groups)


def merge_groups(weight: Tensor, merged: int) -> Tensor:
    """The weight of a grouped convolution with `merged` neighbouring groups made one, zeros between them.

    Fewer and wider groups feed a matrix unit better, at `merged` times the arithmetic; the outputs are the same.

    Args:
        weight: (out_channels, group_width, k, k) of a convolution with as many channels in as out.

    Returns:
        (out_channels, merged · group_width, k, k).
    """
    out_channels, width, *kernel = weight.shape
    blocks = weight.view(-1, merged, width, 1, width, *kernel)
    eye = torch.eye(merged, dtype=weight.dtype, device=weight.device).view(1, merged, 1, merged, 1, 1, 1)
    return (blocks * eye).reshape(out_channels, merged * width, *kernel)


def arrange(model: nn.Module, arrangement: Arrangement) -> nn.Module:
    """The model, rearranged in place; its parameters stay the same objects, with the same names."""
    for conv in model.modules():
        if not isinstance(conv, nn.Conv2d) or conv.groups == 1 or conv.in_channels != conv.out_channels:
            continue
        width, conv.merged = conv.in_channels // conv.groups, 1
        while width * conv.merged < arrangement.group_width and conv.groups % (2 * conv.merged) == 0:
            conv.merged *= 2
        conv.__class__ = MergedConv2d if conv.merged > 1 else nn.Conv2d  # in place, as torch's parametrizations do it
    return model.to(memory_format=torch.channels_last if arrangement.channels_last else torch.contiguous_format)


def fastest(seconds_of: Callable[[Arrangement], float]) -> Arrangement:
    """The arrangement of least time: first the better layout, then in it the width of the groups.

    What is not clearly faster than the first, channels-last with the groups as they are, does not displace it.
    """
    best = Arrangement()
    fewest = seconds_of(best)
    for changes in [{"channels_last": False}] + [{"group_width": width} for width in GROUP_WIDTHS]:
        other = Arrangement(**{"channels_last": best.channels_last} | changes)
        seconds = seconds_of(other)
        if seconds < CLEARLY_FASTER * fewest:
            best, fewest = other, seconds
    return best


def step_seconds(model: nn.Module, arrangement: Arrangement, step: Callable[[nn.Module], None]) -> float:
    """The median seconds of a step on a copy of the model, after one that is not counted; infinite if it does not fit."""
    device = next(model.parameters()).device
    candidate, times = arrange(copy.deepcopy(model), arrangement), []
    try:
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            step(candidate)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return math.inf
    return statistics.median(times[1:])
