"""Figures made of images: grids, and images above their class probabilities."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from torch import Tensor


def stamp(figure: plt.Figure) -> plt.Figure:
    """Write SAMPLE across a figure made from generated data, so that it is never mistaken for a result."""
    figure.text(0.5, 0.5, "SAMPLE", fontsize=56, color="0.5", alpha=0.35, rotation=25, ha="center", va="center")
    return figure


def image_grid(images: Tensor, titles: Sequence[str] | None = None, columns=8, sample=False, inches=1.25) -> plt.Figure:
    """A grid of images, uint8 (N, 3, H, W), each `inches` wide and under its title."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    size = (inches * columns, (inches if titles is None else inches + 0.3) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat[: len(images)], images, titles or [""] * len(images), strict=True):
        axis.imshow(image.permute(1, 2, 0).cpu().numpy())
        axis.set_title(title, fontsize=8, parse_math=False)
    return stamp(figure) if sample else figure


def probability_bars(
    images: Sequence[Tensor], titles: Sequence[str], shares: Tensor, classes: Sequence[str], sample: bool = False
) -> plt.Figure:
    """Images, each uint8 (3, H, W), with a title above and the five most likely classes by `shares` (N, C) below."""
    count = min(5, len(classes))
    size, heights = (2.3 * len(images), 2.5 + 0.36 * count), (2.4, 0.36 * count)
    figure, axes = plt.subplots(2, len(images), figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for (photograph, bars), image, title, share in zip(axes.T, images, titles, shares, strict=True):
        photograph.imshow(image.permute(1, 2, 0).cpu().numpy())
        photograph.set_title(title, fontsize=9, parse_math=False)
        values, labels = (found.tolist() for found in share.topk(count))
        bars.barh(range(count), 1, 0.25, color="0.9")
        bars.barh(range(count), values, 0.25, color="#0072B2")
        for place, (value, label) in enumerate(zip(values, labels, strict=True)):
            bars.text(0, place - 0.2, classes[label], va="bottom", fontsize=8, parse_math=False)
            bars.text(1, place - 0.2, f"{value:.1%}", va="bottom", ha="right", fontsize=8)
        bars.set(xlim=(0, 1), ylim=(count - 0.8, -0.8))
        for axis in (photograph, bars):
            axis.axis("off")
    return stamp(figure) if sample else figure
