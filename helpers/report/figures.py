"""The figures of all recorded runs, fit for print, each with its caption: what `python -m helpers table` draws."""

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from helpers import runtime
from helpers.data.cifar import CIFAR100_CLASSES
from helpers.experiments import records as results
from helpers.report import plots, tables
from helpers.runtime import UserError

DPI = 300  # of a figure in print
ALL_RUNS = (
    "Every recorded full run of a report's experiment, a row a data set and report: the mean over seeds, and a bar over the\n"
    "95 % Wilson intervals of all seeds. Several experiments with one network are numbered; those with about the same\n"
    "parameters stand side by side. The minutes are those of different machines, which the table of all runs names."
)


def write(results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/figures` from the full runs of `R/runs`: the PNG files, and a README that shows each with its caption.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    folder = Path(results_dir or results.RESULTS).expanduser()
    captions, written = {}, []
    try:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure, caption in draw(results.load_all(folder, "full")):
            captions[name] = caption
            written.append(folder / "figures" / f"{name}.png")
            _save(figure, written[-1])
            plt.close(figure)
        written.append(folder / "figures" / "README.md")
        runtime.save_text(written[-1], readme(captions))
    except OSError as error:
        raise UserError(f"The figures could not be written ({error.strerror}); choose another --results-dir.") from error
    return written


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 256 colours, for a third of the size: it has few, and the rest are shades at edges."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True, dpi=(DPI, DPI))


def draw(records: list[dict]) -> Iterator[tuple[str, Figure, str]]:
    """Name, figure and caption: accuracy against cost; then, for each report and data set, curves and confusion matrices of the
    runs with seed 0.
    """
    records = results.of_the_reports(records)
    if records:
        yield "accuracy_parameters", plots.accuracy_against_cost(records), ALL_RUNS
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for record in records:
        data, name = record["experiment"].split("/")
        if record["seed"] == 0:
            groups.setdefault((record["report"], data), {})[name] = record
    for (report, data), own in sorted(groups.items()):
        what = f"Report `{report}` on `{data}`, seed 0"
        histories = {name: record["history"] for name, record in own.items()}
        figure = plots.curves(histories, models=[record["model"]["name"] for record in own.values()])
        yield f"{report}_{data}_curves", figure, f"{what}: loss and accuracy by epoch, training dashed, validation solid."
        figure, images = _confusion(own)
        yield f"{report}_{data}_confusion", figure, f"{what}: {images}; the darker, the larger its part of its row."


def _confusion(own: dict[str, dict]) -> tuple[Figure, str]:
    """The runs' confusion matrices, and what they show; a hundred classes are too many for a page."""
    titles = {name: f"{name}\n{record['test']['accuracy']:.1%}" for name, record in own.items()}
    first = next(iter(own.values()))
    classes = first["dataset"]["classes"]
    if classes == CIFAR100_CLASSES:
        matrices = {titles[name]: tables.superclass_confusion(record) for name, record in own.items()}
        images = "test images by true superclass (rows) and predicted one (columns), with the accuracy by class"
        return plots.confusion(matrices, list(tables.superclasses(first))), images
    matrices = {titles[name]: record["test"]["confusion"] for name, record in own.items()}
    return plots.confusion(matrices, classes), "test images by true class (rows) and predicted one (columns)"


def readme(captions: dict[str, str]) -> str:
    """The README of the figures: each with its caption."""
    parts = ["# Figures", "Drawn from the run records by `python -m helpers table`."]
    for name, caption in captions.items():
        parts += [f"## {name}", f"![{name}]({name}.png)", caption]
    return "\n\n".join(parts) + "\n"
