"""Plots: training curves, accuracies, confusion matrices and costs."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from sklearn.isotonic import isotonic_regression

from helpers.data.cifar import CIFAR100_CLASSES, CIFAR100_SUPERCLASSES, cifar100_superclasses
from helpers.experiments import EXPERIMENTS
from helpers.report import tables
from helpers.report.pictures import stamp

# Okabe and Ito (2008), with grey in place of their yellow, which is hard to see on white paper.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#888888"]
INKS = [*PALETTE, *(tuple((1 + part) / 2 for part in to_rgb(ink)) for ink in PALETTE)]  # of lines; from the ninth on, paler
FAMILIES = {  # by prefix of the model's name: colour, and marker, which tells families apart in greyscale
    "resnext50": ("#0072B2", "o"),
    "torchvision/resnext50": ("#E69F00", "s"),
    "torchvision/resnet": ("#009E73", "^"),
    "resnet18": ("#009E73", "^"),
    "resnext29": ("#56B4E9", "D"),
    "pikachu_resnext29": ("#56B4E9", "d"),
    "slim_resnet": ("#CC79A7", "v"),
    "simplenet": ("#888888", "P"),
    "res2next29": ("#888888", "X"),
    "zoo_resnext": ("#D55E00", "h"),
    "wrn": ("#000000", "p"),
}
LINES = ("-", "--", "-.", ":")
HOLLOW = {"marker": "D", "fillstyle": "none", "color": "black", "linewidth": 0.8, "markersize": 6}
TICK = {"marker": "|", "color": "0.5", "markersize": 12, "markeredgewidth": 1, "linestyle": ""}


def model_style(model: str) -> dict:
    """The colour and marker of a model's family, the same in every figure but the curves, as `plot` arguments."""
    ink, marker = next((style for start, style in FAMILIES.items() if model.startswith(start)), ("#666666", "."))
    return {"color": ink, "marker": marker}


def _label(axis, points: Mapping[str, tuple], at_edge: bool) -> None:
    """Label each (x, y, colour) beside its point or at the right edge, moving labels up or down so that no two overlap.

    A point that is not finite, from a run that diverged, gets no label.
    """
    axis.get_xlim(), axis.get_ylim()  # applies any pending autoscaling
    to_fraction = (axis.transData + axis.transAxes.inverted()).transform
    fractions = {label: to_fraction(point[:2]) for label, point in points.items() if math.isfinite(point[1])}
    if not fractions:
        return
    order = sorted(fractions, key=lambda label: (fractions[label][1], label))
    wide, tall = axis.figure.get_size_inches()
    height, letter = 9 / (72 * 0.75 * tall), 4.2 / (72 * 0.45 * wide)  # a line's height and a letter's width, of the axis
    steps = height * np.arange(len(order))
    apart = isotonic_regression([fractions[label][1] for label in order] - steps) + steps
    for label, place in zip(order, apart, strict=True):
        *point, ink = points[label]
        across = fractions[label][0]
        width, near = 0.03 + letter * len(label), [x - across for x, y in fractions.values() if abs(y - place) < height]
        beside = [across + gap for gap in near if 0 < gap < width]
        before = not at_edge and across > width and (across + width > 1 or bool(beside))  # no room for a label on the right
        if before and label == order[-1] and any(-width < gap < 0 for gap in near):
            place += height  # over the markers on the left
        across = max([across, *(right for right in beside if not before and right - across < 0.1)])
        at = (1.03 if at_edge else across + (-0.03 if before else 0.03), place)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
        line = {"arrowstyle": "-", "color": ink, "linestyle": ":", "relpos": (int(before), 0.5), "shrinkB": 2}
        style = {"ha": "right" if before else "left", "va": "center", "fontsize": 7.5, "bbox": box, "arrowprops": line}
        axis.annotate(label, point, at, textcoords="axes fraction", **style)


def _plain_numbers(axis) -> None:
    """Ticks at 1, 2, 5, 10, 20 … on a logarithmic axis, an `xaxis` or a `yaxis`."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def curves(runs: Mapping[str, Mapping], sample: bool = False) -> plt.Figure:
    """Training curves of runs by label: validation accuracy, and losses on a logarithmic axis, with a label on each line."""
    figure, axes = plt.subplots(1, 2, figsize=(12, max(3.6, 0.2 * len(runs) + 1)), layout="constrained")
    axes[1].set_yscale("log")
    ends: tuple[dict, dict] = ({}, {})
    for (label, run), ink in zip(runs.items(), itertools.cycle(INKS), strict=False):
        history = pd.DataFrame(run["history"]).set_index("epoch")
        style = {"color": ink, "marker": "o" if len(history) == 1 else "", "markersize": 4}
        for axis, end, name in zip(axes, ends, ("val_accuracy", "val_loss"), strict=True):
            axis.plot(history[name], linewidth=1.8, **style)
            end[label] = (history.index[-1], history[name].iloc[-1], ink)
        axes[1].plot(history["train_loss"], "--", linewidth=1, **style)
    smoothed = any(run.get("recipe", {}).get("label_smoothing") for run in runs.values())
    against = "\n(the training loss is against smoothed labels if the recipe uses them)" if smoothed else ""
    titles = ("Validation accuracy", f"Cross-entropy (nats per image): validation solid, training dashed{against}")
    for axis, end, title in zip(axes, ends, titles, strict=True):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        _label(axis, end, at_edge=True)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    _plain_numbers(axes[1].yaxis)
    return stamp(figure) if sample else figure


def accuracy_chart(groups: Mapping[str, Mapping[str, str]], records: Iterable[dict], reported: bool = True) -> plt.Figure:
    """Test accuracies as dots, all on one scale: a panel per title, with a row per labelled experiment, run or not.

    A dot is a seed, a coloured line the mean over seeds, a hollow diamond the report's value (two joined by a line: a
    range), and a grey tick an accuracy published elsewhere for the network on this data set. `reported=False` leaves out
    the report's value, for runs that do not use its recipe and images.
    """
    runs_of = tables.by_experiment(records)
    tall = [len(rows) + 0.2 for rows in groups.values()]
    size = (9, 0.21 * sum(tall) + 0.35 * len(groups) + 0.6)
    figure, axes = plt.subplots(len(groups), sharex=True, squeeze=False, height_ratios=tall, figsize=size, layout="constrained")
    for axis, (title, rows) in zip(axes.flat, groups.items(), strict=True):
        for place, name in enumerate(rows.values()):
            style = model_style(EXPERIMENTS[name].model) | {"marker": "o", "linestyle": ""}
            axis.axhline(place, color="0.93", zorder=0)
            if accuracies := [run["test"]["accuracy"] for run in runs_of.get(name, [])]:
                axis.plot(accuracies, [place] * len(accuracies), markersize=5, alpha=0.6, label="one seed", **style)
                mean = {"color": style["color"], "markeredgewidth": 2.4, "label": "mean over seeds"}
                axis.plot(np.mean(accuracies), place, **TICK | mean)
            if reported and (printed := tables.printed_accuracy(name)):
                axis.plot(np.broadcast_to(printed, 2), [place] * 2, label="the report's value", **HOLLOW)
            if known := tables.known_elsewhere(name):
                axis.plot(known, place, label="published elsewhere", **TICK)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axis.tick_params(length=0)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[-1, 0].set_xlabel("test accuracy")
    marks = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label()[0] != "_"}
    figure.legend(handles=marks.values(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def accuracy_against_cost(
    table: pd.DataFrame, joined: Sequence[Sequence[str]] = (), hollow: Sequence[str] = (), sample: bool = False
) -> plt.Figure:
    """Accuracy against parameters and against multiply–adds, each on a logarithmic axis, with a label on each point.

    `table` has the labels as its index, and the columns `model`, `parameters`, `million MACs` and `accuracy` (a fraction). A
    grey line joins the points of each list of `joined` labels that are in the table; those in `hollow` are drawn hollow.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, max(4, 0.28 * len(table) + 1.5)), sharey=True, layout="constrained")
    costs = {"parameters": table["parameters"] / 1e6, "multiply–adds per image": table["million MACs"]}
    for axis, (name, cost) in zip(axes, costs.items(), strict=True):
        axis.set(xscale="log", xlabel="millions (logarithmic axis)")
        for line, labels in zip(LINES, joined, strict=False):
            there = [label for label in labels if label in table.index]
            axis.plot(cost[there], table["accuracy"][there], line, color="0.7", zorder=0)
        points = {}
        for label, model, x, y in zip(table.index, table["model"], cost, table["accuracy"], strict=True):
            style = model_style(model)
            fill = {"markerfacecolor": "white"} if label in hollow else {"markeredgecolor": "0.2", "markeredgewidth": 0.6}
            axis.plot(x, y, linestyle="", markersize=7, zorder=4, **style, **fill)
            points[label] = (x, y, style["color"])
        axis.margins(x=0.18, y=0.12)
        axis.grid(alpha=0.3)
        axis.set_title(f"Test accuracy against {name}", loc="left", fontsize=10)
        _plain_numbers(axis.xaxis)
        _label(axis, points, at_edge=False)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    return stamp(figure) if sample else figure


def loss_around(radii: Sequence[float], losses: Mapping[str, np.ndarray], sample: bool = False) -> plt.Figure:
    """The loss around trained networks on a logarithmic axis: a thin line per random direction, a thick one for their mean.
    `losses` maps labels to (directions, len(radii)) arrays, as returned by `landscape.obtain`.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for ink, line, (label, curves_around) in zip(INKS, itertools.cycle(LINES), losses.items(), strict=False):
        axis.semilogy(radii, curves_around.T, line, color=ink, linewidth=0.8, alpha=0.5)
        axis.semilogy(radii, curves_around.mean(0), line, color=ink, linewidth=2.4, label=label)
    axis.set(xlabel="distance from the trained weights (in units of their norm)", ylabel="cross-entropy (nats per image)")
    _plain_numbers(axis.yaxis)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(losses), fontsize=8)
    return stamp(figure) if sample else figure


def confusion_matrices(runs: Mapping[str, Mapping], sample: bool = False) -> plt.Figure:
    """Confusion matrices of runs by label, at most four side by side: true classes in rows, predicted ones in columns.

    CIFAR-100's are by superclass. The darker a cell, the larger its share of its row. Non-zero counts are printed where
    there is room: with up to four matrices or up to ten classes.
    """
    matrices, what = {label: np.array(run["test"]["confusion"]) for label, run in runs.items()}, ""
    classes = next(iter(runs.values()))["dataset"]["classes"]
    if list(classes) == list(CIFAR100_CLASSES):
        classes, what = list(CIFAR100_SUPERCLASSES), " by superclass"
        belongs = np.eye(len(classes), dtype=int)[cifar100_superclasses().numpy()]
        matrices = {label: belongs.T @ matrix @ belongs for label, matrix in matrices.items()}
    counted, few = len(classes) <= 10 or len(matrices) <= 4, len(classes) < 4
    side = max(2.0, (0.3 if counted else 0.16) * len(classes))  # inches
    bands = math.ceil(len(matrices) / min(4, max(1, int(13 / side))))
    columns = math.ceil(len(matrices) / bands)
    size = (side * columns + 1.1, (side + 0.45) * bands + 0.9)
    figure, axes = plt.subplots(bands, columns, figsize=size, squeeze=False, layout="compressed")
    ticks, names = range(len(classes)), [name.replace("_", " ") for name in classes]
    for axis in axes.flat[len(matrices) :]:
        axis.remove()
    for index, (axis, (label, matrix)) in enumerate(zip(axes.flat, matrices.items(), strict=False)):
        shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for place in np.argwhere(matrix) if counted else ():
            style = {"color": "white" if shares[*place] > 0.6 else "black", "fontsize": 10 if few else 7.5}
            axis.text(*place[::-1], matrix[*place], ha="center", va="center", **style)
        first, last = index % columns == 0, index + columns >= len(matrices)
        axis.set_xticks(ticks if last else [], names if last else [], rotation=0 if few else 90, fontsize=8)
        axis.set_yticks(ticks if first else [], names if first else [], rotation=90 if few else 0, va="center", fontsize=8)
        axis.set_title(f"{label}: {np.trace(matrix) / matrix.sum():.1%}{what}", fontsize=9)
        axis.set_xlabel("predicted" if last else "", fontsize=9)
        axis.set_ylabel("true" if first else "", fontsize=9)
    return stamp(figure) if sample else figure


def stage_bars(networks: Mapping[str, pd.DataFrame], models: Sequence[str]) -> plt.Figure:
    """Parameters and multiply–adds of each stage, with the totals in the legend.
    `networks` maps labels to `stage_table`s; `models` has the model name that sets each one's colour, `""` if it has none.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(networks)
    stages = max((list(table["stage"]) for table in networks.values()), key=len)
    for axis, name in zip(axes, ("parameters", "MACs"), strict=True):
        for index, ((label, table), model) in enumerate(zip(networks.items(), models, strict=True)):
            places = [stages.index(stage) + (index + 0.5) * width - 0.4 for stage in table["stage"]]
            text = f"{label}: {table['parameters'].sum():,} parameters, {table['MACs'].sum() / 1e6:,.1f} million MACs"
            style = {"color": model_style(model)["color"], "edgecolor": "white", "hatch": ("", "///", "...", "xxx")[index % 4]}
            axis.bar(places, table[name] / 1e6, width, label=text, **style)
        axis.set(xticks=range(len(stages)), xticklabels=stages, ylabel=f"{name} (million)")
        axis.grid(alpha=0.3, axis="y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return figure
