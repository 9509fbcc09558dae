"""Print-quality figures of all recorded runs, each with its caption, as drawn by `python -m helpers table`."""

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from helpers import experiments, runtime
from helpers.report import plots, tables

DPI = 200
DATA = dict(pikachu="Pikachu photographs", cifar10="CIFAR-10", cifar10_5k="5,000 images of CIFAR-10", cifar100="CIFAR-100")
ACCURACY = (
    "Test accuracy by experiment: a dot for each seed, their mean, the value that the report prints, and an accuracy\n"
    "published elsewhere for the same or a similar network. Rows with `_fast` in their names are our short recipes; a\n"
    "row without a dot has not been run yet."
)


def write(records: list[dict], results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/figures` from all records in `R/runs`: PNG files and a README with their captions; delete other PNG files.

    Raises a UserError if the folder cannot be written.
    """
    folder = Path(results_dir or experiments.records.RESULTS).expanduser() / "figures"
    captions = {}
    with runtime.writing("The figures"):
        folder.mkdir(exist_ok=True)
        for name, figure, caption in drawn(records):
            captions[name] = caption
            _save(figure, folder / f"{name}.png")
            plt.close(figure)
        written = [folder / f"{name}.png" for name in captions]
        for stale in set(folder.glob("*.png")) - set(written):
            stale.unlink()
        runtime.save_text(folder / "README.md", readme(captions))
    return [*written, folder / "README.md"]


def _save(figure: plt.Figure, path: Path) -> None:
    """Write a figure as a 256-colour PNG, a third of the size: it has few colours, and the rest are antialiasing shades."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI)
    with Image.open(content) as image, runtime.whole(path) as file:
        # Without k-means, the palette has no light grey, and grids turn pink.
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True, dpi=(DPI, DPI))


def drawn(records: list[dict]) -> Iterator[tuple[str, plt.Figure, str]]:
    """Yield (name, figure, caption): all accuracies, then each data set's costs, curves and best run's confusion matrix."""
    records = tables.full_runs(records)
    runs_of = tables.by_experiment(records)
    if runs_of:  # a row for every experiment that was run or that a report prints, grouped by network
        plan = sorted(experiments.EXPERIMENTS.items(), key=lambda item: (item[1].model.removeprefix("torchvision/"), item[0]))
        shown = [(name, row.dataset) for name, row in plan if name in runs_of or tables.printed_accuracy(name)]
        rows = {title: {name.split("/")[1]: name for name, of in shown if of == data} for data, title in DATA.items()}
        yield "accuracy", plots.accuracy_chart(rows, records), ACCURACY
    for data, title in DATA.items():
        own = {name.split("/")[1]: runs for name, runs in runs_of.items() if name.split("/")[0] == data}
        if not own:
            continue
        if len({runs[0]["model"]["name"] for runs in own.values()}) > 3:
            caption = f"{title}: each network's best experiment, by validation accuracy, and what the network costs."
            yield f"{data}_cost", plots.accuracy_against_cost(_costs(own)), caption
        for report in tables.REPORTS:
            first = {name: runs[0] for name, runs in own.items() if runs[0]["report"] == report}
            if first:
                caption = f"{title}, report `{report}`, first seed: accuracy and loss by epoch."
                yield f"{data}_{report}_curves", plots.curves(first), caption
        best = max(own, key=lambda name: tables.validation_accuracy(own[name]))
        what = "superclass" if data == "cifar100" else "class"
        caption = f"{title}, the best experiment by validation, first seed: true (rows) against predicted (columns) {what}."
        yield f"{data}_confusion", plots.confusion_matrices({best: own[best][0]}), caption


def _costs(own: dict[str, list[dict]]) -> pd.DataFrame:
    """The table for `plots.accuracy_against_cost`: each network's best experiment on a data set, by validation accuracy."""
    ascending = sorted(own, key=lambda name: tables.validation_accuracy(own[name]))
    best = {own[name][0]["model"]["name"].removeprefix("torchvision/"): name for name in ascending}  # the last one wins
    rows = {}
    for name in best.values():
        model = own[name][0]["model"]
        rows[name] = model["name"], model["params"], model["macs"] / 1e6, tables.mean_accuracy(own[name])
    return pd.DataFrame.from_dict(rows, orient="index", columns=["model", "parameters", "million MACs", "accuracy"])


def readme(captions: dict[str, str]) -> str:
    """The README of the figures, showing each with its caption."""
    parts = ["# Figures", "Drawn from the run records by `python -m helpers table`."]
    for name, caption in captions.items():
        parts += [f"## {name}", f"![{name}]({name}.png)", caption]
    return "\n\n".join(parts) + "\n"
