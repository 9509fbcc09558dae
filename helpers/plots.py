"""What it looks like: image grids, training curves, confusion matrices, drawings of blocks and networks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor, nn

from helpers import results, verdicts
from helpers.blocks import Bottleneck
from helpers.models import ResidualNet, layer_table
from helpers.runtime import UserError

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442"]  # Okabe and Ito (2008)
_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _VERMILION, _BLACK, _YELLOW = PALETTE
COLOURS = {  # a colour a family, told apart by colour-blind readers; in grey, markers tell all of them apart
    "resnext50_32x4d": _BLUE,
    "torchvision/resnext50_32x4d": _ORANGE,
    "torchvision/resnet18": _GREEN,
    "torchvision/resnet50": _GREEN,
    "resnext29_32x4d": _SKY,
    "resnext29_under5m": _SKY,
    "slim_resnet": _PINK,
    "slim_resnet_trial1": _PINK,
    "slim_resnet_trial2": _PINK,
    "slim_resnet_trial3": _PINK,
    "slim_resnet_strong": _PINK,
    "simplenet": _YELLOW,
    "res2next29_6c24w4s": _YELLOW,
    "zoo_resnext1": _VERMILION,
    "zoo_resnext2": _VERMILION,
    "zoo_resnext3": _VERMILION,
    "zoo_resnext1_rectified": _VERMILION,
    "zoo_resnext1_doubling": _VERMILION,
    "wrn16_2": _BLACK,
    "wrn16_4": _BLACK,
    "wrn16_8": _BLACK,
    "wrn16_16": _BLACK,
    "wrn28_2": _BLACK,
    "wrn28_4": _BLACK,
}
MARKERS = dict(zip(COLOURS, itertools.product(("full", "none"), "os^DvPX*h<>pd"), strict=False))  # fill and shape
DPI = 300  # of a figure in print
LAYER, GROUPED, SHORTCUT = "#E6E6E6", "#9CCBEB", "#E69F00"  # 1×1 convolutions and the rest, the 3×3, the shortcut


def colour(model: str) -> str:
    """The colour of a model's family, the same in every figure; grey for a model without one."""
    return COLOURS.get(model, "#666666")


def stamp(figure: Figure) -> Figure:
    """Write SAMPLE across a figure made from generated data, so that it is never taken for a result."""
    figure.text(0.5, 0.5, "SAMPLE", fontsize=56, color="0.5", alpha=0.35, rotation=25, ha="center", va="center")
    return figure


def image_grid(images, titles: Sequence[str] | None = None, columns: int = 8, sample: bool = False) -> Figure:
    """A grid of images, uint8 (N, 3, H, W), each under its title."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height = 1.25 if titles is None else 1.55
    figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns, height * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for index, image in enumerate(images):
        axes.flat[index].imshow(image.permute(1, 2, 0).cpu().numpy())
        if titles is not None:
            axes.flat[index].set_title(titles[index], fontsize=8)
    return stamp(figure) if sample else figure


def curves(histories: Mapping[str, Sequence[Mapping]], sample: bool = False, models: Sequence[str] = ()) -> Figure:
    """Loss and accuracy by epoch, training dashed and validation solid, one colour a run.

    Args:
        histories: a label for each run's history, as a run record keeps it.
        models: the runs' models; each gets its own colour, unless two of them have the same.
    """
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    own = [colour(model) for model in models]
    palette = own if own and len(set(own)) == len(histories) else PALETTE
    for index, (label, history) in enumerate(histories.items()):
        epochs = [row["epoch"] for row in history]
        for axis, name in ((loss, "loss"), (accuracy, "accuracy")):
            for split, style in (("train", "--"), ("val", "-")):
                values = [row[f"{split}_{name}"] for row in history]
                text = f"{label}, {'training' if split == 'train' else 'validation'}"
                axis.plot(epochs, values, style, color=palette[index % len(palette)], marker=".", label=text)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats per image)", ylim=(0, None))
    accuracy.set(xlabel="epoch", ylabel="accuracy (fraction)", ylim=(None, 1))
    for axis in (loss, accuracy):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=max(2, len(histories)), fontsize=8)
    return stamp(figure) if sample else figure


def loss_around(radii: Sequence[float], losses: Mapping[str, np.ndarray], sample: bool = False) -> Figure:
    """The loss along random directions around trained networks: thin a direction, thick their mean, one colour a network.

    Args:
        losses: a label for each (directions, len(radii)) array, as `landscape.obtain` gives it.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for ink, (label, curves_around) in zip(PALETTE, losses.items(), strict=False):
        axis.plot(radii, curves_around.T, color=ink, linewidth=0.8, alpha=0.5)
        axis.plot(radii, curves_around.mean(0), color=ink, linewidth=2.4, label=label)
    axis.set(xlabel="distance from the trained weights (1: as long as the weights)", ylabel="cross-entropy (nats per image)")
    centre = max(around.mean(0).min() for around in losses.values())
    axis.set(ylim=(0, 4 * centre))  # far out it may rise a hundredfold, and hide the bottom of the valley
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(losses), fontsize=8)
    return stamp(figure) if sample else figure


def confusion(matrices: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], sample: bool = False) -> Figure:
    """Confusion matrices side by side: rows are the true class, columns the predicted one, each cell a count.

    Args:
        matrices: a title for each (C, C) matrix of counts.
    """
    size = max(2.6, 0.55 * len(classes))
    figure, axes = plt.subplots(
        1, len(matrices), figsize=((size + 0.5) * len(matrices), size + 0.5), squeeze=False, layout="constrained"
    )
    for axis, (title, matrix) in zip(axes.flat, matrices.items(), strict=True):
        matrix = np.asarray(matrix)
        share = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(matrix):
            ink = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=ink)
        ticks = range(len(classes))
        axis.set_xticks(ticks, classes, rotation=0 if len(classes) < 4 else 45, fontsize=8)
        axis.set_yticks(ticks, classes, rotation=90 if len(classes) < 4 else 0, va="center", fontsize=8)
        axis.set(title=title, xlabel="predicted", ylabel="true")
        axis.title.set_fontsize(9)
    return stamp(figure) if sample else figure


def budget_bars(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Parameters and multiply–adds of each stage, one colour a network, with the totals in the legend.

    Args:
        tables: a label for each network's `budget.stage_table`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(tables)
    stages = max((list(table["stage"]) for table in tables.values()), key=len)
    for axis, name in zip(axes, ("parameters", "MACs"), strict=True):
        for index, (label, table) in enumerate(tables.items()):
            places = [stages.index(stage) + (index + 0.5) * width - 0.4 for stage in table["stage"]]
            text = f"{label}: {table['parameters'].sum():,} parameters, {table['MACs'].sum() / 1e6:,.1f} million MACs"
            axis.bar(places, table[name] / 1e6, width, color=PALETTE[index % len(PALETTE)], label=text)
        axis.set_xticks(range(len(stages)), stages)
        axis.set(ylabel=f"{name} (million)")
        axis.grid(alpha=0.3, axis="y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return figure


def search_heat_map(table: pd.DataFrame, sample: bool = False) -> Figure:
    """The best validation accuracy of each trial: a panel a batch size, a row a weight decay, a column a learning rate.

    A trial that is not there, or that diverged, stays white.

    Args:
        table: `search.table`.
    """
    batch_sizes = sorted(table["batch size"].unique())
    rates, decays = (sorted(table[name].unique(), reverse=True) for name in ("learning rate", "weight decay"))
    panel = (1.1 * len(rates) + 1.2, 0.7 * len(decays) + 1.4)
    figure, axes = plt.subplots(
        1, len(batch_sizes), figsize=(panel[0] * len(batch_sizes), panel[1]), squeeze=False, layout="constrained"
    )
    low, high = table["val accuracy"].min(), table["val accuracy"].max()
    for axis, batch_size in zip(axes.flat, batch_sizes, strict=True):
        trials = table[table["batch size"] == batch_size]
        cells = trials.pivot(index="weight decay", columns="learning rate", values="val accuracy")
        cells = cells.reindex(index=decays, columns=rates).to_numpy(float)
        axis.imshow(cells, cmap="Blues", vmin=low, vmax=high, aspect="auto")
        for (row, column), accuracy in np.ndenumerate(cells):
            ink = "white" if accuracy > (low + high) / 2 else "black"
            text = "" if np.isnan(accuracy) else f"{accuracy:.1%}"
            axis.text(column, row, text, ha="center", va="center", color=ink)
        axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axis.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axis.set(title=f"batch {batch_size}", xlabel="learning rate", ylabel="weight decay")
    return stamp(figure) if sample else figure


def accuracy_against_cost(records: Sequence[Mapping]) -> Figure:
    """Test accuracy against parameters, and against minutes of training: a row a data set, a point an experiment.

    A point is the mean over seeds, in its model's colour and marker; its bar reaches over the 95 % Wilson intervals of all
    seeds. The minutes are those of each run's own machine.

    Raises:
        ValueError: there is no record.
    """
    groups: dict[str, dict[str, list]] = {}
    for record in records:
        groups.setdefault(record["experiment"].split("/")[0], {}).setdefault(record["experiment"], []).append(record)
    if not groups:
        raise ValueError("There is no run to draw.")
    height = 2.7 * len(groups) + 0.06 * len({record["model"]["name"] for record in records}) + 0.8
    figure, axes = plt.subplots(
        len(groups), 2, figsize=(10, height), squeeze=False, sharex="col", sharey="row", layout="constrained"
    )
    handles = {}
    for row, (data, experiments) in zip(axes, groups.items(), strict=True):
        for runs in experiments.values():
            model, accuracies = runs[0]["model"], [run["test"]["accuracy"] for run in runs]
            mean = np.mean(accuracies)
            low, high = verdicts.accuracy_interval(accuracies, runs[0]["test"]["n"])
            fill, shape = MARKERS.get(model["name"], ("full", "."))
            ink = colour(model["name"])
            edge = "0.15" if fill == "full" else ink
            for axis, x in zip(row, (model["params"] / 1e6, np.mean([run["seconds"] / 60 for run in runs])), strict=True):
                axis.plot([x, x], [low, high], color=ink, linewidth=1, alpha=0.6)
                (point,) = axis.plot(x, mean, shape, color=ink, fillstyle=fill, markeredgecolor=edge, markersize=8)
            handles[model["name"]] = point
        row[0].set_ylabel("test accuracy (fraction)")
        for axis in row:
            axis.set(xscale="log", title=data)
            axis.margins(x=0.15, y=0.1)
            axis.grid(alpha=0.3)
    for axis, label in zip(axes[-1], ("parameters (millions)", "minutes of training, each on its own machine"), strict=True):
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    ordered = sorted(handles, key=lambda name: [*COLOURS, name].index(name))
    figure.legend([handles[name] for name in ordered], ordered, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def write_figures(results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/figures` from the full runs of `R/runs`: accuracy against cost, and for each data set curves and confusion
    matrices of seed 0.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    folder = Path(results_dir or results.RESULTS).expanduser()
    every = results.load_all(folder, "full")
    records = [record for record in every if record["seed"] == 0]
    figures = {"accuracy_parameters": accuracy_against_cost(every)} if every else {}
    for data in dict.fromkeys(record["experiment"].split("/")[0] for record in records):
        own = {name: record for record in records for whose, name in [record["experiment"].split("/")] if whose == data}
        names = [record["model"]["name"] for record in own.values()]
        figures[f"{data}_curves"] = curves({name: record["history"] for name, record in own.items()}, models=names)
        figures[f"{data}_confusion"] = confusion(
            {f"{name}\n{record['test']['accuracy']:.1%}": record["test"]["confusion"] for name, record in own.items()},
            next(iter(own.values()))["dataset"]["classes"],
        )
    written = []
    try:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            written.append(folder / "figures" / f"{name}.png")
            figure.savefig(written[-1], dpi=DPI, metadata={"Software": None})
            plt.close(figure)
    except OSError as error:
        raise UserError(f"The figures could not be written ({error.strerror}); choose another --results-dir.") from error
    return written


def draw_block(block: Bottleneck) -> Figure:
    """The three equal forms of a ResNeXt block side by side, with the block's own numbers.

    A box is a convolution: channels in, kernel, channels out. The 3×3 is blue, the shortcut orange.

    Source: Xie et al. 2017, figure 3.
    """
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
    """Boxes one under the other, arrows between them; a 3×3 convolution is blue."""
    for number, text in enumerate(layers):
        y = top - 2 * number
        fill = GROUPED if "3×3" in text else colour
        axis.add_patch(plt.Rectangle((x - width / 2, y - 0.4), width, 0.8, facecolor=fill, edgecolor="0.3"))
        axis.text(x, y, text, ha="center", va="center", fontsize=8.5)
        if number:
            _arrow(axis, (x, y + 1.6), (x, y + 0.4))


def _arrow(axis, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0})


def draw_network(model: ResidualNet, image_size: int = 224) -> Figure:
    """A residual network from left to right: the higher a box, the larger its images (one step for each doubling).

    In a box stand its layers, under it the shape it gives, its parameters and its multiply–adds. Stages are blue.

    Source: Xie et al. 2017, table 1; figure 3.1 of the report.
    """
    rows = {row.name: row for row in layer_table(model, (1, 3, image_size, image_size))}
    stem = f"{_convolution(model.conv1)}\nstride {model.conv1.stride[0]}"
    columns = [("stem", stem, ("conv1", "bn1", "relu"), LAYER)]
    if isinstance(model.maxpool, nn.MaxPool2d):
        columns.append(("pooling", "3×3 max\nstride 2", ("maxpool",), LAYER))
    for name in model.stage_names:
        stage = model.get_submodule(name)
        convolutions = [layer for layer in stage[0].children() if isinstance(layer, nn.Conv2d)]
        layers = "\n".join(_convolution(layer) for layer in convolutions)
        columns.append((name, f"{len(stage)} blocks of\n{layers}", (name,), GROUPED))
    columns.append(("head", "average pool\nlinear", ("avgpool", "fc"), LAYER))

    figure, axis = plt.subplots(figsize=(1.7 * len(columns), 4.4), layout="constrained")
    axis.set(xlim=(-1.0, len(columns) - 0.55), ylim=(-7.1, 5.6))
    axis.axis("off")
    axis.text(-0.63, 0, f"3×{image_size}\n×{image_size}", ha="right", va="center", fontsize=8.5)
    for x, (title, layers, names, fill) in enumerate(columns):
        shape = rows[names[-1]].output_shape[1:]
        parameters, macs = (sum(getattr(rows[name], what) for name in names) for what in ("parameters", "macs"))
        height = 2.4 + math.log2(max(shape[1:], default=1))
        axis.add_patch(plt.Rectangle((x - 0.4, -height / 2), 0.8, height, facecolor=fill, edgecolor="0.3"))
        axis.text(x, 0, layers, ha="center", va="center", fontsize=8.5)
        axis.text(x, height / 2 + 0.15, title, ha="center", va="bottom", fontsize=9.5)
        sizes = f"{'×'.join(map(str, shape))}\n{parameters:,}\n{macs / 1e9:.2f}"
        axis.text(x, -5.0, sizes, ha="center", va="top", fontsize=8.5, linespacing=1.6)
        _arrow(axis, (x - 0.6, 0), (x - 0.4, 0))
    units = "shape\nparameters\nMACs (10⁹)"
    axis.text(-0.5, -5.0, units, ha="right", va="top", fontsize=8.5, linespacing=1.6, color="0.35")
    return figure


def _convolution(layer: nn.Conv2d) -> str:
    """Kernel and channels as the paper writes them; C is the cardinality."""
    text = f"{layer.kernel_size[0]}×{layer.kernel_size[0]}, {layer.out_channels}"
    return f"{text}, C={layer.groups}" if layer.groups > 1 else text


class Point(NamedTuple):
    """An accuracy in a picture: where it stands, and the ends of its interval."""

    x: float
    accuracy: float
    low: float
    high: float


def accuracies(
    panels: Mapping[str, Mapping[str, Point]],
    xlabel: str,
    joined: Mapping[str, Sequence[str]] | None = None,
    sample: bool = False,
) -> Figure:
    """Accuracies with their intervals, a panel a title, a point a model, over what each of them costs, on a log scale.

    Args:
        panels: a title for each panel's points; a model's name for each point.
        joined: a label for each row of models whose points are joined by a line, as far as a panel has them.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 4.5 * len(panels), 4.4), squeeze=False, layout="constrained")
    handles = {}
    for axis, (title, points) in zip(axes.flat, panels.items(), strict=True):
        for line, (label, names) in zip(("-", "--", ":"), (joined or {}).items(), strict=False):
            there = [points[name] for name in names if name in points]
            (handles[label],) = axis.plot([point.x for point in there], [point.accuracy for point in there], line, color="0.6")
        for model, point in points.items():
            fill, shape = MARKERS.get(model, ("full", "."))
            ink = colour(model)
            axis.vlines(point.x, point.low, point.high, color=ink, linewidth=1)
            (handles[model],) = axis.plot(point.x, point.accuracy, shape, color=ink, fillstyle=fill, markersize=8)
        axis.set(title=title, xlabel=xlabel, xscale="log")
        axis.margins(x=0.15, y=0.1)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes.flat[0].set_ylabel("test accuracy (fraction)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return stamp(figure) if sample else figure


def accuracy_over_time(groups: Mapping[str, Mapping[str, Sequence[Mapping]]], sample: bool = False) -> Figure:
    """Validation accuracy over the minutes that a run has trained and validated: a panel a group that has runs, a line a run.

    Args:
        groups: a title for each panel's runs; a label for each run's history.
    """
    groups = {title: histories for title, histories in groups.items() if histories}
    size = (1 + 4 * len(groups), 4)
    figure, axes = plt.subplots(1, len(groups), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for axis, (title, histories) in zip(axes.flat, groups.items(), strict=True):
        for ink, (label, history) in zip(itertools.cycle(PALETTE), histories.items(), strict=False):
            minutes = np.cumsum([row["seconds"] / 60 for row in history])
            axis.plot(minutes, [row["val_accuracy"] for row in history], color=ink, marker=".", markersize=4, label=label)
        axis.set(title=title, xlabel="minutes of training")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    axes.flat[0].set_ylabel("validation accuracy (fraction)")
    return stamp(figure) if sample else figure


def receptive_fields(fields: Mapping[str, Tensor], columns: int = 4) -> Figure:
    """Receptive fields (H, W), a panel a title: the darker a pixel, the more it counts; a square around all that count.

    Args:
        fields: a title for each of `anatomy.receptive_fields`.
    """
    rows = -(-len(fields) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, field) in zip(axes.flat, fields.items(), strict=False):
        axis.imshow((field / field.max()).numpy(), cmap="Blues", vmin=0, vmax=1)
        (top, left), (bottom, right) = (corner.tolist() for corner in (field > 0).nonzero()[[0, -1]])
        corner, size = (left - 0.5, top - 0.5), (right - left + 1, bottom - top + 1)
        axis.add_patch(plt.Rectangle(corner, *size, fill=False, edgecolor=SHORTCUT, linewidth=1.8))
        axis.set_title(title, fontsize=9)
    return figure
