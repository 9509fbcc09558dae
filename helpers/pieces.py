"""The pieces of a step alone: grouped convolution in every form and layout, optimisers, evaluation."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers import data, models, training
from helpers.experiments.plan import AMP_SGD
from helpers.runtime import autocast_dtype
from helpers.training.layout import merge_groups

CONVOLUTIONS = {  # (batch, channels, image side) of the grouped 3×3 of ResNeXt-29's stages and of ResNeXt-50's first
    "ResNeXt-29, stage 1": (64, 128, 32),
    "ResNeXt-29, stage 3": (64, 512, 8),
    "ResNeXt-50, stage 1": (8, 128, 56),
}
CARDINALITY = 32


def milliseconds(work: Callable[[], object], device: torch.device, seconds: float = 1.0) -> float:
    """The median time of a piece of work over as many turns as fit into so many seconds, at least three."""
    times, spent = [], 0.0
    work()
    while spent < seconds or len(times) < 3:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        spent += times[-1]
    return 1000 * statistics.median(times)


def split_convolution(images: Tensor, weight: Tensor) -> Tensor:
    """A grouped convolution as `CARDINALITY` separate ones: form (a) of the paper's figure 3."""
    parts = zip(images.chunk(CARDINALITY, 1), weight.chunk(CARDINALITY), strict=True)
    return torch.cat([F.conv2d(part, own, padding=1) for part, own in parts], 1)


def grouped_forms(device: torch.device) -> list[dict]:
    """Forward and backward of one grouped 3×3 convolution: forms × memory layouts × arithmetics."""
    forms = {"32 groups": lambda images, weight: F.conv2d(images, weight, padding=1, groups=CARDINALITY)}
    for merged in (2, 4, 8):
        forms[f"{CARDINALITY // merged} block-diagonal groups"] = lambda images, weight, merged=merged: F.conv2d(
            images, merge_groups(weight, merged), padding=1, groups=CARDINALITY // merged
        )
    forms["32 branches"] = split_convolution
    rows = []
    for where, (batch, channels, side) in CONVOLUTIONS.items():
        for form, convolve in forms.items():
            for layout in (torch.contiguous_format, torch.channels_last):
                for dtype in dict.fromkeys((torch.float32, autocast_dtype(device) or torch.float32)):
                    images = torch.randn(batch, channels, side, side, device=device, dtype=dtype, requires_grad=True)
                    images = images.detach().to(memory_format=layout).requires_grad_()
                    weight = torch.randn(channels, channels // CARDINALITY, 3, 3, device=device, dtype=dtype) / 10
                    weight = weight.to(memory_format=layout).requires_grad_()
                    upstream = torch.ones_like(images)

                    def work(convolve=convolve, images=images, weight=weight, upstream=upstream):
                        torch.autograd.grad(convolve(images, weight), (images, weight), upstream)

                    layout_name = "channels-last" if layout == torch.channels_last else "contiguous"
                    variant = f"{form}, {layout_name}, {str(dtype).removeprefix('torch.')}"
                    rows.append({"piece": where, "variant": variant, "milliseconds": milliseconds(work, device, 0.3)})
    return rows


def optimizer_steps(device: torch.device) -> list[dict]:
    """One step of SGD with momentum over ResNeXt-50's parameters, in each of torch's implementations."""
    rows = []
    for variant in ("for-loop", "foreach", "fused"):
        parameters = list(models.build("resnext50_32x4d", 10).to(device).parameters())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-6)
        kind = {"foreach": variant == "foreach"} if variant != "fused" else {"fused": True}
        optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, **kind)
        rows.append({"piece": "SGD step, ResNeXt-50", "variant": variant, "milliseconds": milliseconds(optimizer.step, device)})
    return rows


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """The residual network in eval mode with every BatchNorm folded into the convolution before it, in place."""
    for module in [model, *model.modules()]:
        for number in (1, 2, 3):
            convolution, norm = getattr(module, f"conv{number}", None), getattr(module, f"bn{number}", None)
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, f"conv{number}", fuse_conv_bn_eval(convolution, norm))
                setattr(module, f"bn{number}", nn.Identity())
        downsample = getattr(module, "downsample", None)
        if isinstance(downsample, nn.Sequential) and isinstance(downsample[1], nn.BatchNorm2d):
            module.downsample = nn.Sequential(fuse_conv_bn_eval(downsample[0], downsample[1]), nn.Identity())
    return model


def evaluations(device: torch.device) -> list[dict]:
    """Milliseconds for 256 test images of CIFAR's size through ResNeXt-29: arithmetic, layout, batch, folding."""
    split = data.sample("cifar10", counts=(10, 10, 256)).test.to(device)
    rows = []
    for variant, batch, changes, folded in (
        ("fp32, contiguous, batches of 64", 64, {"channels_last": False, "mixed_precision": False}, False),
        ("ours, batches of 64", 64, {}, False),
        ("ours, batches of 256", 256, {}, False),
        ("ours, batches of 64, BatchNorm folded", 64, {}, True),
    ):
        recipe = replace(AMP_SGD, **changes)
        model = models.build("resnext29_32x4d", 10).to(device).eval()
        model = fold_batch_norm(model) if folded else model
        model = training.prepare(model, recipe, training.choose_arrangement(model, split, recipe))

        def work(model=model, recipe=recipe, batch=batch):
            training.predict(model, split, recipe, batch)

        rows.append({"piece": "evaluation, 256 images", "variant": variant, "milliseconds": milliseconds(work, device, 3)})
    return rows


def measure(device: torch.device) -> list[dict]:
    """All pieces: `{piece, variant, milliseconds}` each."""
    return grouped_forms(device) + optimizer_steps(device) + evaluations(device)
