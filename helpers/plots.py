"""What it looks like: image grids, training curves, confusion matrices, drawings of blocks and networks."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

COLOURS = {  # Okabe and Ito (2008): told apart by colour-blind readers, and in grey by their lightness
    "resnext50_32x4d": "#0072B2",
    "torchvision/resnext50_32x4d": "#E69F00",
    "torchvision/resnet18": "#009E73",
    "torchvision/resnet50": "#CC79A7",
}


def colour(model: str) -> str:
    """The colour of a model, the same in every figure; grey for a model without one."""
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


def curves(histories: Mapping[str, Sequence[Mapping]], sample: bool = False) -> Figure:
    """Loss and accuracy by epoch, training dashed and validation solid, one colour a run.

    Args:
        histories: a label for each run's history, as a run record keeps it.
    """
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    palette = list(COLOURS.values())
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
