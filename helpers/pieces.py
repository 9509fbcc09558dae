"""The pieces of a step alone: what dense work reaches on this machine, and grouped convolution in every form."""

import re
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.runtime import autocast_dtype

CONVOLUTIONS = {  # (batch, channels, image side) of the grouped 3×3 of ResNeXt-29's stages and of ResNeXt-50's first
    "ResNeXt-29, stage 1": (64, 128, 32),
    "ResNeXt-29, stage 3": (64, 512, 8),
    "ResNeXt-50, stage 1": (8, 128, 56),
}
CARDINALITY = 32
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def milliseconds(work: Callable[[], object], device: torch.device, seconds: float = 1.0) -> float:
    """The median time of a piece of work over as many turns as fit into so many seconds, at least three."""
    times = []
    work()
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def ceiling(device: torch.device, batch: int = 64, size: int = 4096) -> dict[str, float]:
    """The GFLOP/s that dense work reaches here in the training's arithmetic; a multiply–add is two operations.

    Args:
        batch: images of the 3×3 convolution, with 256 channels of 32×32 pixels in and out.
        size: rows and columns of the matrices that are multiplied.
    """
    dtype = autocast_dtype(device) or torch.float32
    images, weight, matrix = (
        torch.randn(shape, device=device, dtype=dtype) for shape in ((batch, 256, 32, 32), (256, 256, 3, 3), (size, size))
    )
    images, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (images, weight))
    works = {
        "dense 3×3 convolution": (lambda: F.conv2d(images, weight, padding=1), batch * 32**2 * 9 * 256**2),
        "matrix multiplication": (lambda: matrix @ matrix, size**3),
    }
    return {name: 2 * macs / milliseconds(work, device) / 1e6 for name, (work, macs) in works.items()}


def hardware(device: torch.device) -> dict[str, str]:
    """Driver and clocks of a GPU, or name and clock of a CPU, where the system tells them."""
    with suppress(OSError, subprocess.SubprocessError):
        if device.type == "cuda":
            names = ("driver_version", "clocks.sm", "clocks.max.sm")
            query = ["nvidia-smi", f"--id={torch.cuda.current_device()}", f"--query-gpu={','.join(names)}"]
            answer = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True, check=True, timeout=10)
            return dict(zip(names, answer.stdout.strip().split(", "), strict=True))
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return dict(re.findall(r"^(model name|cpu MHz)\s*: (.*)", facts, re.MULTILINE)[:2])
    return {}


def split_convolution(images: Tensor, weight: Tensor) -> Tensor:
    """A grouped convolution as `CARDINALITY` separate ones: form (a) of the paper's figure 3."""
    parts = zip(images.chunk(CARDINALITY, 1), weight.chunk(CARDINALITY), strict=True)
    return torch.cat([F.conv2d(part, own, padding=1) for part, own in parts], 1)


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


def grouped_forms(device: torch.device) -> list[dict]:
    """Forward and backward of one grouped 3×3 convolution: forms × memory layouts × arithmetics."""
    forms = {f"{CARDINALITY} branches": split_convolution}
    for merged in (1, 2, 4, 8):
        form = f"{CARDINALITY} groups" if merged == 1 else f"{CARDINALITY // merged} block-diagonal groups"
        forms[form] = lambda images, weight, merged=merged: F.conv2d(
            images, weight if merged == 1 else merge_groups(weight, merged), padding=1, groups=CARDINALITY // merged
        )
    rows, dtypes = [], dict.fromkeys((torch.float32, autocast_dtype(device) or torch.float32))
    for piece, form, layout, dtype in product(CONVOLUTIONS, forms, LAYOUTS, dtypes):
        batch, channels, side = CONVOLUTIONS[piece]
        images, weight = (
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=LAYOUTS[layout]).requires_grad_()
            for shape in ((batch, channels, side, side), (channels, channels // CARDINALITY, 3, 3))
        )

        def work(convolve=forms[form], images=images, weight=weight):
            torch.autograd.grad(convolve(images, weight).sum(), (images, weight))

        variant = f"{form}, {layout}, {str(dtype).removeprefix('torch.')}"
        rows.append({"piece": piece, "variant": variant, "milliseconds": milliseconds(work, device, 0.3)})
    return rows
