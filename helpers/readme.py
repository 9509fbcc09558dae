"""What README shows: the comparison of the full runs, the claims in short and the speeds, each between its markers."""

import json
import re
from pathlib import Path

import pandas as pd

from helpers import claims, figures, files, results, tables
from helpers.runtime import ROOT, UserError


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
    files.save_text(readme, text)
    return readme


def parts() -> dict[str, str]:
    """The text for each pair of markers, by its name."""
    return {"results": results_part(), "claims": claims_part(), "speed": speed_part()}


def results_part() -> str:
    """The comparison over seeds of the full runs, without the columns that need explaining."""
    table = tables.comparison_table(results.load_all(profile="full"))
    return tables.markdown(table.drop(columns=["val loss", "val loss, report", "s per epoch", "device"]))


def claims_part() -> str:
    """The short form of the claims table, and the figure of all runs."""
    return (
        f"{tables.markdown(claims.counts(claims.claims_table()))}\n"
        "![Test accuracy against parameters and against minutes of training](results/figures/accuracy_parameters.png)\n\n"
        f"*{figures.ALL_RUNS}*\n"
    )


def speed_part(results_dir: str | Path | None = None) -> str:
    """A row a model and machine, from what `python -m helpers bench` kept in `R/bench`."""
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
    return tables.markdown(pd.DataFrame(rows)) if rows else "Nothing was measured yet.\n"
