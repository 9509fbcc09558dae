"""What it looks like: image grids, training curves, confusion matrices, accuracies."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from helpers.report.claims import verdicts

# Okabe and Ito (2008), with a grey in the place of their yellow, which is hard to see on white paper.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#888888"]
_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _VERMILION, _BLACK, _GREY = PALETTE
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
    "simplenet": _GREY,
    "res2next29_6c24w4s": _GREY,
    "zoo_resnext1": _VERMILION,
    "zoo_resnext2": _VERMILION,
    "zoo_resnext3": _VERMILION,
    "zoo_resnext1_rectified": _VERMILION,
    "zoo_resnext1_doubling": _VERMILION,
    "zoo_resnext1_doubling_wide": _VERMILION,
    "wrn16_2": _BLACK,
    "wrn16_4": _BLACK,
    "wrn16_8": _BLACK,
    "wrn16_16": _BLACK,
    "wrn28_2": _BLACK,
    "wrn28_4": _BLACK,
    "slim_resnet_max_pool": _PINK,
    "slim_resnet_stride_second": _PINK,
}
MARKERS = dict(zip(COLOURS, itertools.product(("full", "none"), "os^DvPX*h<>pd8"), strict=False))  # fill and shape
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx")


def colour(model: str) -> str:
    """The colour of a model's family, the same in every figure; dark grey for a model without one."""
    return COLOURS.get(model, "#666666")


def look(model: str) -> dict:
    """Colour, marker and fill of a model, the same in every figure, as arguments of `plot`."""
    fill, shape = MARKERS.get(model, ("full", "."))
    ink = colour(model)
    return {"color": ink, "marker": shape, "fillstyle": fill, "markeredgecolor": "0.15" if fill == "full" else ink}


def stamp(figure: Figure) -> Figure:
    """Write SAMPLE across a figure made from generated data, so that it is never taken for a result."""
    figure.text(0.5, 0.5, "SAMPLE", fontsize=56, color="0.5", alpha=0.35, rotation=25, ha="center", va="center")
    return figure


def image_grid(
    images, titles: Sequence[str] | None = None, columns: int = 8, sample: bool = False, inches: float = 1.25
) -> Figure:
    """A grid of images, uint8 (N, 3, H, W), so many inches wide, each under its title."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    size = (inches * columns, (inches if titles is None else inches + 0.3) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for index, image in enumerate(images):
        axes.flat[index].imshow(image.permute(1, 2, 0).cpu().numpy())
        if titles is not None:
            axes.flat[index].set_title(titles[index], fontsize=8)
    return stamp(figure) if sample else figure


def middle(image: Tensor, size: int) -> Tensor:
    """What a network with inputs of `size` pixels sees of an image (3, H, W): its middle, (3, size, size)."""
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A heat map (S, S), from 0 to 1, over the middle of an image, uint8 (3, H, W): uint8 (3, S, S).

    The image turns grey, so that its own colours are not taken for heat.
    """
    grey = middle(image, len(heat)).float().mean(0)
    colours = 255 * torch.from_numpy(plt.get_cmap("inferno")(heat.numpy())[..., :3]).permute(2, 0, 1)
    return (0.4 * grey + 0.6 * colours).round().to(torch.uint8)


def probability_bars(
    images: Sequence[Tensor], titles: Sequence[str], shares: Tensor, classes: Sequence[str], sample: bool = False
) -> Figure:
    """Images, each uint8 (3, H, W), under their titles and over the probabilities of their five most likely classes.

    Args:
        shares: the probability of each class, (N, C).
    """
    count = min(5, len(classes))
    size, heights = (2.3 * len(images), 2.5 + 0.36 * count), (2.4, 0.36 * count)
    figure, axes = plt.subplots(2, len(images), figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for (photograph, bars), image, title, share in zip(axes.T, images, titles, shares, strict=True):
        photograph.imshow(image.permute(1, 2, 0).cpu().numpy())
        photograph.set_title(title, fontsize=9)
        values, labels = share.topk(count)
        bars.barh(range(count), 1, 0.25, color="0.9")
        bars.barh(range(count), values, 0.25, color=PALETTE[0])
        for place, (value, label) in enumerate(zip(values.tolist(), labels.tolist(), strict=True)):
            bars.text(0, place - 0.2, classes[label], va="bottom", fontsize=8)
            bars.text(1, place - 0.2, f"{value:.1%}", va="bottom", ha="right", fontsize=8)
        bars.set(xlim=(0, 1), ylim=(count - 0.8, -0.8))
        for axis in (photograph, bars):
            axis.axis("off")
    return stamp(figure) if sample else figure


def curves(
    histories: Mapping[str, Sequence[Mapping]], sample: bool = False, models: Sequence[str] = (), minutes: bool = False
) -> Figure:
    """Loss and accuracy by epoch, training dashed and validation solid.

    Up to four runs share two panels, each in its own model's colour and marker. More, or several of one colour, have two panels
    each, over the validation curves of the others in light grey.

    Args:
        histories: a label for each run's history, as a run record keeps it.
        models: the runs' models; without them, colours are given in turn.
        minutes: over the minutes that a run has trained and validated, instead of its epochs.
    """
    looks = [look(model) for model in models] or [{"color": ink, "marker": "."} for ink in PALETTE]
    own = {style["color"] for style in looks[: len(histories)]}
    together = len(histories) <= 4 and len(own) == len(histories)
    figure = (_curves_together if together else _curves_apart)(histories, looks, minutes)
    return stamp(figure) if sample else figure


CURVES = {"loss": "cross-entropy (nats per image)", "accuracy": "accuracy (fraction)"}
TIMES = ("epoch", "minutes of training")  # over epochs, over minutes


def _curves_together(histories: Mapping[str, Sequence[Mapping]], looks: Sequence[dict], minutes: bool) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, (name, label) in zip(axes, CURVES.items(), strict=True):
        for (run, history), style in zip(histories.items(), looks, strict=False):
            _draw_history(axis, _times(history, minutes), history, name, style, 25, f"{run}, ")
        axis.xaxis.get_major_locator().set_params(integer=not minutes)
        axis.set(xlabel=TIMES[minutes], ylabel=label)
    axes[0].set_ylim(0, None)
    axes[1].set_ylim(None, 1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=max(2, len(histories)), fontsize=8)
    return figure


def _curves_apart(histories: Mapping[str, Sequence[Mapping]], looks: Sequence[dict], minutes: bool) -> Figure:
    """A column a run, at most five in a row: its loss, and below it its accuracy."""
    bands = math.ceil(len(histories) / 5)
    columns = math.ceil(len(histories) / bands)
    size = (2.2 * columns + 0.5, 4 * bands + 0.4)
    figure, axes = plt.subplots(2 * bands, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    panels = [axes[2 * (index // columns) :, index % columns][:2] for index in range(bands * columns)]
    for pair in panels[len(histories) :]:
        for axis in pair:
            axis.remove()
    for index, ((run, history), style) in enumerate(zip(histories.items(), itertools.cycle(looks), strict=False)):
        for axis, shared, (name, label) in zip(panels[index], panels[0], CURVES.items(), strict=True):
            for other in histories.values():
                axis.plot(_times(other, minutes), [row[f"val_{name}"] for row in other], color="0.85", linewidth=1)
            _draw_history(axis, _times(history, minutes), history, name, style, 10)
            if index:
                axis.sharey(shared)
            first = index % columns == 0
            axis.tick_params(labelleft=first, labelbottom=name == "accuracy", labelsize=8)
            axis.set_ylabel(label if first else "", fontsize=7.5)
        panels[index][0].set_title(run, fontsize=8)
        panels[index][1].set_xlabel(TIMES[minutes], fontsize=8)
        panels[index][1].xaxis.get_major_locator().set_params(integer=not minutes)
    panels[0][0].set_ylim(0, None)
    lines = [plt.Line2D([], [], color=ink, linestyle=line) for ink, line in (("0.15", "--"), ("0.15", "-"), ("0.85", "-"))]
    names = ("training", "validation", "validation of the other runs")
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _times(history: Sequence[Mapping], minutes: bool) -> list[float]:
    return list(itertools.accumulate(row["seconds"] / 60 for row in history) if minutes else (row["epoch"] for row in history))


def _draw_history(axis, times: list[float], history: Sequence[Mapping], name: str, style: dict, markers: int, label: str = ""):
    """One run's loss or accuracy, with so many markers on each line at most."""
    drawn = {"markersize": 5, "markeredgewidth": 0.5, "markevery": math.ceil(len(times) / markers), **style}
    for split, words, line, width in (("train", "training", "--", 1), ("val", "validation", "-", 1.5)):
        values = [row[f"{split}_{name}"] for row in history]
        axis.plot(times, values, line, linewidth=width, label=f"{label}{words}", **drawn)
    axis.grid(alpha=0.3)


def loss_around(radii: Sequence[float], losses: Mapping[str, np.ndarray], sample: bool = False) -> Figure:
    """The loss along random directions around trained networks: thin a direction, thick their mean, a colour and line
    style a network.

    Args:
        losses: a label for each (directions, len(radii)) array, as `landscape.obtain` gives it.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for ink, line, (label, curves_around) in zip(PALETTE, itertools.cycle(LINES), losses.items(), strict=False):
        axis.plot(radii, curves_around.T, line, color=ink, linewidth=0.8, alpha=0.5)
        axis.plot(radii, curves_around.mean(0), line, color=ink, linewidth=2.4, label=label)
    axis.set(xlabel="distance from the trained weights (1: as long as the weights)", ylabel="cross-entropy (nats per image)")
    centre = max(around.mean(0).min() for around in losses.values())
    axis.set(ylim=(0, 4 * centre))  # far out it may rise a hundredfold, and hide the bottom of the valley
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(losses), fontsize=8)
    return stamp(figure) if sample else figure


def confusion(matrices: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], sample: bool = False) -> Figure:
    """Confusion matrices, at most four side by side: rows are the true class, columns the predicted one.

    A cell is the darker, the larger its part of its row, and has its count in it, but where there is no room: in more than four
    matrices of more than ten classes.

    Args:
        matrices: a title for each (C, C) matrix of counts.
    """
    counted = len(classes) <= 10 or len(matrices) <= 4
    side = max(2.0, (0.3 if counted else 0.16) * len(classes))  # inches
    bands = math.ceil(len(matrices) / min(4, max(1, int(13 / side))))
    columns = math.ceil(len(matrices) / bands)
    size = (side * columns + 1.1, (side + 0.45) * bands + 0.9)
    figure, axes = plt.subplots(bands, columns, figsize=size, squeeze=False, layout="compressed")
    ticks, few = range(len(classes)), len(classes) < 4
    baseline = "center" if few else "center_baseline"  # names with and without an underscore on one line
    for axis in axes.flat[len(matrices) :]:
        axis.remove()
    for index, (axis, (title, matrix)) in enumerate(zip(axes.flat, matrices.items(), strict=False)):
        matrix = np.asarray(matrix)
        share = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(matrix) if counted else ():
            ink = "white" if share[row, column] > 0.6 else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=10 if few else 7.5)
        first, last = index % columns == 0, index + columns >= len(matrices)
        axis.set_xticks(ticks if last else [], classes if last else [], rotation=0 if few else 90, fontsize=8)
        axis.set_yticks(ticks if first else [], classes if first else [], rotation=90 if few else 0, va=baseline, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("predicted" if last else "", fontsize=9)
        axis.set_ylabel("true" if first else "", fontsize=9)
    return stamp(figure) if sample else figure


def budget_bars(tables: Mapping[str, pd.DataFrame], models: Sequence[str]) -> Figure:
    """Parameters and multiply–adds of each stage, in the colours of the models, with the totals in the legend.

    Args:
        tables: a label for each network's `budget.stage_table`.
        models: the networks' models, `""` for one that is none.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(tables)
    stages = max((list(table["stage"]) for table in tables.values()), key=len)
    for axis, name in zip(axes, ("parameters", "MACs"), strict=True):
        for index, ((label, table), model) in enumerate(zip(tables.items(), models, strict=True)):
            places = [stages.index(stage) + (index + 0.5) * width - 0.4 for stage in table["stage"]]
            text = f"{label}: {table['parameters'].sum():,} parameters, {table['MACs'].sum() / 1e6:,.1f} million MACs"
            hatch = HATCHES[index % len(HATCHES)]
            axis.bar(places, table[name] / 1e6, width, color=colour(model), edgecolor="white", hatch=hatch, label=text)
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
            axis.vlines(point.x, point.low, point.high, color=colour(model), linewidth=1)
            (handles[model],) = axis.plot(point.x, point.accuracy, linestyle="", markersize=8, **look(model))
        axis.set(title=title, xlabel=xlabel, xscale="log")
        axis.margins(x=0.15, y=0.1)
        axis.grid(alpha=0.3)
        _plain_numbers(axis)
    axes.flat[0].set_ylabel("test accuracy (fraction)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return stamp(figure) if sample else figure


def accuracy_against_cost(records: Sequence[Mapping]) -> Figure:
    """Test accuracy against parameters, and against minutes of training: a row a data set and report, a point an experiment.

    A point is the mean over seeds, in its model's colour and marker; its bar reaches over the 95 % Wilson intervals of all
    seeds. Several experiments with one model are numbered; those with about the same parameters stand side by side. The minutes
    are those of each run's own machine.

    Raises:
        ValueError: there is no record.
    """
    groups: dict[tuple, dict[str, list]] = {}
    for record in records:
        data, name = record["experiment"].split("/")
        groups.setdefault((data, record["report"]), {}).setdefault(name, []).append(record)
    if not groups:
        raise ValueError("There is no run to draw.")
    size = (10, 2.2 * len(groups) + 0.4)
    figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharex="col", sharey="row", layout="constrained")
    sizes = [record["model"]["params"] / 1e6 for record in records]
    step = max(4, max(sizes) / min(sizes)) ** 0.033  # a thirtieth of the axis, so that bars do not hide one another
    for row, ((data, report), experiments) in zip(axes, sorted(groups.items()), strict=True):
        names = [runs[0]["model"]["name"] for runs in experiments.values()]
        places = _side_by_side([runs[0]["model"]["params"] / 1e6 for runs in experiments.values()], step)
        for index, (experiment, runs) in enumerate(experiments.items()):
            number = f"{names[:index].count(names[index]) + 1} " if names.count(names[index]) > 1 else ""
            style = look(names[index]) | {"linestyle": "", "markersize": 7, "label": number + experiment}
            accuracies = [run["test"]["accuracy"] for run in runs]
            for axis, x in zip(row, (places[index], np.mean([run["seconds"] / 60 for run in runs])), strict=True):
                axis.vlines(x, *verdicts.accuracy_interval(accuracies, runs[0]["test"]["n"]), color=style["color"], linewidth=1)
                axis.plot(x, np.mean(accuracies), **style)
                axis.annotate(number, (x, np.mean(accuracies)), (4, 3), textcoords="offset points", fontsize=7)
        row[0].set_title(f"{data}, report {report}", loc="left", fontsize=10)
        row[0].set_ylabel("test accuracy (fraction)", fontsize=9)
        row[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, labelspacing=0.3, frameon=False)
        for axis in row:
            axis.set_xscale("log")
            axis.margins(x=0.1, y=0.1)
            axis.grid(alpha=0.3)
    for axis, label in zip(axes[-1], ("parameters (millions)", "minutes of training, each on its own machine"), strict=True):
        axis.set_xlabel(label, fontsize=9)
        _plain_numbers(axis)
    figure.align_ylabels(axes[:, 0])
    return figure


def _plain_numbers(axis) -> None:
    """Ticks at 1, 2, 5, 10, 20 … on a logarithmic axis."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _side_by_side(values: Sequence[float], step: float) -> list[float]:
    """Places on a logarithmic axis: values within 5 % of one another are set apart by the factor `step`."""
    places = []
    for index, value in enumerate(values):
        near = [other for other, size in enumerate(values) if abs(size / value - 1) < 0.05]
        places.append(value * step ** (near.index(index) - (len(near) - 1) / 2))
    return places
