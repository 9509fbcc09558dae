"""What a network is made of: its layers in the order of their use, its image sizes, and how wide they are."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helpers import models
from helpers.models.blocks import Bottleneck, Res2NetBlock, ResidualBlock


class Line(NamedTuple):
    """A line of a printed summary: C(onvolution), (Batch)N(orm), B(lock) or L(inear); its output's channels and side."""

    kind: str
    channels: int
    side: int
    parameters: int


@cache
def network(name: str, num_classes: int) -> nn.Module:
    """A named network without data: its layers and shapes at no cost. Not to be changed: every caller gets the same one."""
    with torch.device("meta"):
        return models.build(name, num_classes).eval()


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """All convolutions, in the order of registration."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def bottlenecks(model: nn.Module) -> list[Bottleneck]:
    """All bottlenecks, from the stem to the head."""
    return [layer for layer in model.modules() if isinstance(layer, Bottleneck)]


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """All BatchNorms, in the order of registration."""
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def depth(model: nn.Module) -> int:
    """Layers with weights on the longest path: convolutions and linear layers, without the projections of shortcuts."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return sum("downsample" not in name for name in names)


def directly_activated(model: nn.Module) -> int:
    """Convolutions of a bottleneck network with a ReLU behind their BatchNorm; the others are added to something first."""
    projections = sum(block.downsample is not None for block in bottlenecks(model))
    return len(convolutions(model)) - len(bottlenecks(model)) - projections


def kernel(layer: nn.Conv2d | nn.MaxPool2d) -> str:
    """A kernel as the reports write it: `3x3`."""
    size = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size,) * 2
    return f"{size[0]}x{size[1]}"


def image_sizes(model: nn.Module, image_size: int) -> list[int]:
    """The sides of the images that the stem's convolution and each stage give, such as 112, 56, 28, 14, 7."""
    rows = {row.name: row.output_shape for row in models.layer_table(model, (1, 3, image_size, image_size))}
    return [rows[name][-1] for name in ("conv1", *model.stage_names)]


def stages(model: nn.Module) -> str:
    """Widths, groups and blocks of a bottleneck network, a stage after the other: `128, 128 C=32, 256 ×3; …`."""
    texts = []
    for name in model.stage_names:
        stage = model.get_submodule(name)
        widths = [stage[0].get_submodule(layer).out_channels for layer in ("conv1", "conv2", "conv3")]
        groups = f" C={stage[0].conv2.groups}" if stage[0].conv2.groups > 1 else ""
        texts.append(f"{widths[0]}, {widths[1]}{groups}, {widths[2]} ×{len(stage)}")
    return "; ".join(texts)


def lines(model: nn.Module, image_size: int) -> list[Line]:
    """The network line by line, as torchsummary prints it: convolutions, BatchNorms, blocks and the linear layer."""
    kinds = {nn.Conv2d: "C", nn.BatchNorm2d: "N", nn.Linear: "L"}
    found = []

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        kind = kinds.get(type(layer), "B")
        parameters = 0 if kind == "B" else models.count_parameters(layer)
        found.append(Line(kind, output.shape[1], output.shape[2] if output.dim() == 4 else 1, parameters))

    layers = [layer for layer in model.modules() if type(layer) in kinds or isinstance(layer, ResidualBlock)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def receptive_fields(block: Bottleneck | Res2NetBlock, parts: int, image_size: int = 11) -> Tensor:
    """What each part of the channels before a block's last 1×1 convolution sees of the input: (parts, image_size, image_size).

    The absolute gradient of the part's middle pixel, summed over its channels, by each pixel of a random image, summed over
    the image's channels; zero where the pixel is not seen.
    """
    weight = block.conv1.weight
    image = torch.randn(1, weight.shape[1], image_size, image_size, generator=torch.Generator().manual_seed(0))
    image = image.to(weight).requires_grad_()
    seen = {}
    handle = block.conv3.register_forward_pre_hook(lambda _, inputs: seen.update(maps=inputs[0]))
    try:
        block(image)
    finally:
        handle.remove()
    middle = seen["maps"].shape[-1] // 2
    pixels = [part[0, :, middle, middle].sum() for part in seen["maps"].chunk(parts, dim=1)]
    return torch.stack([torch.autograd.grad(pixel, image, retain_graph=True)[0][0].abs().sum(0) for pixel in pixels])


def field_width(field: Tensor) -> int:
    """On how many columns a receptive field (H, W) is not zero."""
    return int((field > 0).any(0).sum())
