"""Diagrams of networks and blocks, with sizes and costs read from the model, and of receptive fields."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from torch import Tensor, nn

from helpers.models import Bottleneck, layer_table
from helpers.models.resnet import ResidualNet

LAYER, GROUPED, SHORTCUT = "#E6E6E6", "#9CCBEB", "#E69F00"  # 1×1 convolutions and other layers; 3×3; shortcuts


def draw_block(block: Bottleneck) -> plt.Figure:
    """The three equivalent forms of a ResNeXt block, with this one's sizes (in, kernel, out): Xie et al. 2017, figure 3."""
    cardinality, width = block.conv2.groups, block.conv2.in_channels
    narrow, channels, out = width // cardinality, block.conv1.in_channels, block.conv3.out_channels
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.8), width_ratios=(10.8, 10.8, 7.6), layout="constrained")
    titles = ("(a) split branches", "(b) early concatenation", "(c) grouped convolution")
    shortcut = "shortcut: identity" if block.downsample is None else f"shortcut: {channels}, 1×1, {out}"
    for axis, title, centre, right in zip(axes, titles, (5, 5, 3.2), (10.8, 10.8, 7.6), strict=True):
        axis.set(xlim=(0, right), ylim=(-0.6, 10.4))
        axis.axis("off")
        axis.set_title(title, fontsize=11)
        axis.text(centre, 9.7, f"{channels} channels in", ha="center", va="bottom", fontsize=9)
        axis.text(centre, -0.1, f"ReLU: {out} channels out", ha="center", va="top", fontsize=9)
        axis.plot((centre, right - 0.2, right - 0.2, centre), (9.55, 9.55, 0.6, 0.6), color=SHORTCUT, linewidth=1.8)
        axis.text(right - 0.3, 5, shortcut, ha="right", va="center", rotation=90, fontsize=8, color="0.35")
        circle = {"boxstyle": "circle", "facecolor": "white", "edgecolor": "0.3"}
        axis.text(centre, 0.6, "+", ha="center", va="center", fontsize=12, bbox=circle)
    split, early, grouped = axes
    down, inner, up = f"{channels}, 1×1, {narrow}", f"{narrow}, 3×3, {narrow}", f"{narrow}, 1×1, {out}"
    for axis, layers in ((split, (down, inner, up)), (early, (down, inner))):
        for number, x in zip((1, 2, cardinality), (1.6, 4.4, 8.4), strict=True):
            _arrow(axis, (5, 9.55), (x, 8.55))
            axis.text(x - 0.15, 7.15, f"path {number}", ha="right", va="center", fontsize=8, color="0.35")
            _layers(axis, x, 2.5, layers)
        axis.text(6.4, 6.3, "…", ha="center", fontsize=16, color="0.35")
    for x in (1.6, 4.4, 8.4):
        _arrow(split, (x, 3.75), (5, 2.75))
        _arrow(early, (x, 5.75), (x, 4.75))
    _layers(split, 5, 3.4, ("sum of all paths",), top=2.35, colour="white")
    _layers(early, 5, 9.3, (f"concatenate: {width} channels",), top=4.35, colour="white")
    _arrow(early, (5, 3.95), (5, 2.75))
    _layers(early, 5, 3.4, (f"{width}, 1×1, {out}",), top=2.35)
    _arrow(grouped, (3.2, 9.55), (3.2, 8.55))
    inner = f"{width}, 3×3, {width}, {cardinality} groups"
    _layers(grouped, 3.2, 4.8, (f"{channels}, 1×1, {width}", inner, f"{width}, 1×1, {out}"))
    for axis, x, bottom in ((split, 5, 1.95), (early, 5, 1.95), (grouped, 3.2, 3.75)):
        _arrow(axis, (x, bottom), (x, 1.0))
    return figure


def _layers(axis, x: float, width: float, layers: Sequence[str], top: float = 8.15, colour: str = LAYER) -> None:
    """Draw a column of boxes with arrows between them; 3×3 convolutions are blue."""
    for number, text in enumerate(layers):
        y = top - 2 * number
        fill = GROUPED if "3×3" in text else colour
        axis.add_patch(plt.Rectangle((x - width / 2, y - 0.4), width, 0.8, facecolor=fill, edgecolor="0.3"))
        axis.text(x, y, text, ha="center", va="center", fontsize=8.5)
        if number:
            _arrow(axis, (x, y + 1.6), (x, y + 0.4))


def _arrow(axis, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0})


def draw_network(model: ResidualNet, image_size: int = 224) -> plt.Figure:
    """A residual network from left to right: the taller a box, the larger its feature maps (one step per doubling)."""
    rows = {row.name: row for row in layer_table(model, (1, 3, image_size, image_size))}
    stem = f"{_convolution(model.conv1)}\nstride {model.conv1.stride[0]}"
    columns = [("stem", stem, ("conv1", "bn1", "relu"), LAYER)]
    if isinstance(model.maxpool, nn.MaxPool2d):
        columns.append(("pooling", "3×3 max\nstride 2", ("maxpool",), LAYER))
    for name in model.stage_names:
        stage = model.get_submodule(name)
        layers = "\n".join(_convolution(layer) for layer in stage[0].children() if isinstance(layer, nn.Conv2d))
        columns.append((name, f"{len(stage)} blocks of\n{layers}", (name,), GROUPED))
    columns.append(("head", "average pool\nlinear", ("avgpool", "fc"), LAYER))

    figure, axis = plt.subplots(figsize=(1.7 * len(columns), 4.4), layout="constrained")
    axis.axis("off")
    axis.text(-0.63, 0, f"3×{image_size}\n×{image_size}", ha="right", va="center", fontsize=8.5)
    shapes = [rows[names[-1]].output_shape[1:] for _, _, names, _ in columns]
    heights = [2.4 + math.log2(max(shape[1:], default=1)) for shape in shapes]
    foot = -max(heights) / 2 - 0.3
    axis.set(xlim=(-1.0, len(columns) - 0.55), ylim=(foot - 2.1, max(heights) / 2 + 0.8))
    for x, ((title, layers, names, fill), shape, height) in enumerate(zip(columns, shapes, heights, strict=True)):
        parameters, macs = (sum(getattr(rows[name], what) for name in names) for what in ("parameters", "macs"))
        axis.add_patch(plt.Rectangle((x - 0.4, -height / 2), 0.8, height, facecolor=fill, edgecolor="0.3"))
        axis.text(x, 0, layers, ha="center", va="center", fontsize=8.5)
        axis.text(x, height / 2 + 0.15, title, ha="center", va="bottom", fontsize=9.5)
        sizes = f"{'×'.join(map(str, shape))}\n{parameters:,}\n{macs / 1e9:.2f}"
        axis.text(x, foot, sizes, ha="center", va="top", fontsize=8.5, linespacing=1.6)
        _arrow(axis, (x - 0.6, 0), (x - 0.4, 0))
    axis.text(-0.5, foot, "shape\nparameters\nMACs (10⁹)", ha="right", va="top", fontsize=8.5, linespacing=1.6, color="0.35")
    return figure


def _convolution(layer: nn.Conv2d) -> str:
    """Kernel size and output channels in the paper's notation; C is the cardinality."""
    text = f"{layer.kernel_size[0]}×{layer.kernel_size[0]}, {layer.out_channels}"
    return f"{text}, C={layer.groups}" if layer.groups > 1 else text


def receptive_fields(fields: Mapping[str, Tensor]) -> plt.Figure:
    """The fields (H, W) of `models.inspect.receptive_fields`, a panel per title: darker pixels have more influence.

    A square encloses all pixels that have any.
    """
    figure, axes = plt.subplots(1, len(fields), figsize=(2.1 * len(fields), 2.5), squeeze=False, layout="constrained")
    for axis, (title, field) in zip(axes.flat, fields.items(), strict=True):
        axis.axis("off")
        axis.imshow((field / field.max()).numpy(), cmap="Blues", vmin=0, vmax=1)
        (top, left), (bottom, right) = (corner.tolist() for corner in (field > 0).nonzero().aminmax(dim=0))
        corner, size = (left - 0.5, top - 0.5), (right - left + 1, bottom - top + 1)
        axis.add_patch(plt.Rectangle(corner, *size, fill=False, edgecolor=SHORTCUT, linewidth=1.8))
        axis.set_title(title, fontsize=9)
    return figure
