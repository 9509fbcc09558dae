"""Layers, shapes, parameters, multiply–adds and receptive fields of a network."""

import copy
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.models.blocks import Bottleneck, Res2NetBlock, ResidualBlock
from helpers.models.registry import build
from helpers.models.resnet import ResidualNet
from helpers.models.zoo import ZooResNeXt


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> int:
    """Multiply–adds of convolutions and linear layers in one forward pass; what papers often call FLOPs."""
    return sum(row.macs for row in layer_table(model, input_shape))


class LayerRow(NamedTuple):
    """One child of a network."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def layer_table(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> list[LayerRow]:
    """The direct children of a network in execution order, for a batch of `input_shape` (N, 3, H, W)."""
    with FlopCounterMode(display=False) as counter:
        outputs = _outputs(model, input_shape, lambda name, layer: name and "." not in name)
    operations, root = counter.get_flop_counts(), type(model).__name__
    macs = {name: sum(operations.get(f"{root}.{name}", {}).values()) // 2 for name, _, _ in outputs}  # 2 per multiply–add
    return [LayerRow(name, shape, count_parameters(layer), macs[name]) for name, layer, shape in outputs]


def _outputs(model: nn.Module, input_shape: Sequence[int], wanted: Callable) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, layer and output shape of each wanted layer in execution order, from a copy on the meta device."""
    ghost, found = copy.deepcopy(model).to("meta").eval(), []

    def note(name: str, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        found.append((name, layer, tuple(output.shape)))

    for name, layer in ghost.named_modules():
        if wanted(name, layer):
            layer.register_forward_hook(partial(note, name))
    with torch.no_grad():
        ghost(torch.empty(input_shape, device="meta", dtype=next(ghost.parameters()).dtype))
    return found


@cache
def network(name: str, num_classes: int) -> nn.Module:
    """A named network on the meta device, in eval mode: its layers and shapes at no cost. Shared; do not change it."""
    with torch.device("meta"):
        return build(name, num_classes).eval()


def layers(kind: type[nn.Module], model: nn.Module) -> list[nn.Module]:
    """All layers of a kind, in registration order."""
    return [layer for layer in model.modules() if isinstance(layer, kind)]


convolutions, batch_norms, bottlenecks = (partial(layers, kind) for kind in (nn.Conv2d, nn.BatchNorm2d, Bottleneck))


def depth(model: nn.Module) -> int:
    """Layers with weights on the longest path: convolutions and linear layers, without the projections of shortcuts."""
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) and "downsample" not in name for name, layer in model.named_modules())


def image_sizes(model: nn.Module, image_size: int) -> list[int]:
    """Pixels a side after the stem's convolution and after each stage, such as 112, 56, 28, 14, 7."""
    rows = {row.name: row.output_shape for row in layer_table(model, (1, 3, image_size, image_size))}
    return [rows[name][-1] for name in ("conv1", *model.stage_names)]


class Line(NamedTuple):
    """One line of a printed summary: C(onvolution), (Batch)N(orm), B(lock) or L(inear); its output's channels and side."""

    kind: str
    channels: int
    side: int
    parameters: int


def lines(model: nn.Module, image_size: int) -> list[Line]:
    """The network line by line, as torchsummary prints it: a block has no parameters of its own."""
    kinds, found = {nn.Conv2d: "C", nn.BatchNorm2d: "N", nn.Linear: "L"}, []
    shown = (*kinds, ResidualBlock)
    for _, layer, shape in _outputs(model, (1, 3, image_size, image_size), lambda _, layer: isinstance(layer, shown)):
        kind = kinds.get(type(layer), "B")
        side = shape[2] if len(shape) > 2 else 1
        found.append(Line(kind, shape[1], side, 0 if kind == "B" else count_parameters(layer)))
    return found


def receptive_fields(block: Bottleneck | Res2NetBlock, parts: int, image_size: int = 11) -> Tensor:
    """(parts, image_size, image_size): how much each part of the channels before a block's last 1×1 depends on each pixel.

    The gradient of the part's middle pixel (summed over channels) with respect to a random image; absolute, channels summed.
    """
    block, seen = copy.deepcopy(block).eval(), {}  # in training mode, BatchNorm would mix all pixels
    weight = block.conv1.weight
    image = torch.randn(1, weight.shape[1], image_size, image_size, generator=torch.Generator().manual_seed(0))
    image = image.to(weight).requires_grad_()
    with block.conv3.register_forward_pre_hook(lambda _, inputs: seen.update(maps=inputs[0])):
        block(image)
    middle = seen["maps"].shape[-1] // 2
    pixels = [part[0, :, middle, middle].sum() for part in seen["maps"].chunk(parts, dim=1)]
    return torch.stack([torch.autograd.grad(pixel, image, retain_graph=True)[0][0].abs().sum(0) for pixel in pixels])


def stage_table(network: ResidualNet | ZooResNeXt) -> pd.DataFrame:
    """One row for the stem, each stage and the head: output shape, parameters, multiply–adds for a CIFAR image, shares."""
    rows = pd.DataFrame(layer_table(network, (1, 3, 32, 32))).rename(columns={"macs": "MACs"})
    rows["output"] = ["×".join(map(str, shape[1:])) for shape in rows["output_shape"]]
    inside = rows["name"].isin(network.stage_names)
    stages = rows["name"].where(inside, inside.cummax().map({False: "stem", True: "head"})).rename("stage")
    table = rows.groupby(stages, sort=False).agg({"output": "last", "parameters": "sum", "MACs": "sum"})
    shares = {f"share of {name}": table[name] / table[name].sum() for name in ("parameters", "MACs")}
    return table.assign(**shares).reset_index()
