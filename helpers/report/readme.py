"""What README shows: the comparison of the full runs, the claims in short and the speeds, each between its markers."""

import json
import re
from pathlib import Path

import pandas as pd

from helpers import runtime
from helpers.experiments import records as results
from helpers.report import figures, tables
from helpers.report.claims import table as claims
from helpers.runtime import ROOT, UserError

COMPARED = ("speed_fast", "speed_plain", "resnext29_under5m_sgd_same")  # the last is the same recipe for longer


def write(readme: Path = ROOT / "README.md") -> Path:
    """Put what the repository's records say between the markers of README, and touch nothing else.

    Raises:
        UserError: a marker is not there.
    """
    text = readme.read_text(encoding="utf-8")
    for name, part in parts().items():
        pieces = re.split(rf"(<!-- {name} -->\n|<!-- /{name} -->)", text)
        if len(pieces) != 5:
            raise UserError(f"{readme.name} has no <!-- {name} --> … <!-- /{name} --> to write the table between.")
        pieces[2] = part
        text = "".join(pieces)
    runtime.save_text(readme, text)
    return readme


def parts() -> dict[str, str]:
    """The text for each pair of markers, by its name."""
    return {"results": results_part(), "claims": claims_part(), "speed": speed_part()}


def results_part() -> str:
    """The comparison over seeds of the full runs, without the columns that need explaining."""
    table = tables.comparison_table(results.of_the_reports(results.load_all(profile="full")))
    return tables.markdown(table.drop(columns=["val loss", "val loss, report", "s per epoch", "device"]))


def claims_part() -> str:
    """The short form of the claims table, and the figure of all runs."""
    return (
        f"{tables.markdown(claims.counts(claims.claims_table()))}\n"
        "![Test accuracy against parameters and against minutes of training](results/figures/accuracy_parameters.png)\n\n"
        f"*{figures.ALL_RUNS}*\n"
    )


def speed_part(results_dir: str | Path | None = None) -> str:
    """A row a model and machine, from what `python -m helpers bench` kept in `R/bench`; and if both paths end alike."""
    rows = []
    for path in sorted((Path(results_dir or results.RESULTS) / "bench").glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        for row in measured["results"]:
            rows.append(
                {
                    "hardware": f"{measured['environment']['device']}, {measured['environment']['mixed_precision']}",
                    "model": row["model"],
                    "images": f"{row['image_size']}×{row['image_size']}",
                    "batch": row["batch"],
                    "textbook, images/s": f"{row['textbook_images_per_second']:.1f}",
                    "ours, images/s": f"{row['ours_images_per_second']:.1f}",
                    "ratio": f"{row['ratio']:.1f}×",
                    "input alone": f"{row['input_ratio']:.1f}×",
                    "peak memory, GiB": " → ".join(
                        f"{row[f'{side}_peak_memory_bytes'] / 2**30:.1f}" for side in ("textbook", "ours")
                    ),
                }
            )
    speeds = tables.markdown(pd.DataFrame(rows)) if rows else "Nothing was measured yet.\n"
    return speeds + agreement_part(results.load_all(results_dir, profile="full"))


def agreement_part(records: list[dict]) -> str:
    """One training by the fast path and by the plain one, beside what another seed changes; empty until all are recorded."""
    fast, plain, seeds = ([run for run in records if run["experiment"] == f"cifar10_tenth/{name}"] for name in COMPARED)
    if not fast or not plain or len(seeds) < 2:
        return ""
    ends = [f"{run['history'][-1]['train_loss']:.3f} and {run['test']['accuracy']:.2%}" for run in (fast[0], plain[0])]
    spread = [run["test"]["accuracy"] for run in seeds]
    return (
        f"\nHow alike they end: {len(fast[0]['history'])} epochs of {fast[0]['model']['name']} on a tenth of CIFAR-10, "
        "from the same weights, end at a training loss and test accuracy of "
        f"{ends[0]} by the fast path, {ends[1]} by the plain one (fp32, contiguous). "
        f"Two seeds of that recipe lie {100 * (max(spread) - min(spread)):.1f} points apart after "
        f"{len(seeds[0]['history'])} epochs.\n"
    )
