"""What README shows of the records: each part between its own pair of markers."""

import json
import re
from pathlib import Path

import pandas as pd

from helpers import runtime
from helpers.experiments import records as results
from helpers.report import claims, figures
from helpers.report.formats import markdown
from helpers.report.reported import headline_table, reported_table
from helpers.runtime import ROOT, UserError


def write(records: list[dict], readme: Path = ROOT / "README.md") -> Path:
    """Put what the records say between the markers of README, and touch nothing else; a missing marker is a UserError."""
    text = readme.read_text(encoding="utf-8")
    for name, part in parts(records).items():
        pieces = re.split(rf"(<!-- {name} -->\n|<!-- /{name} -->)", text)
        if len(pieces) != 5:
            raise UserError(f"{readme.name} has no <!-- {name} --> … <!-- /{name} --> to write the table between.")
        pieces[2] = part
        text = "".join(pieces)
    runtime.save_text(readme, text)
    return readme


def parts(records: list[dict]) -> dict[str, str]:
    """The text for each pair of markers, by its name."""
    picture = f"![Test accuracy by experiment](results/figures/accuracy.png)\n\n*{figures.ACCURACY}*\n"
    return {
        "headline": markdown(headline_table(records)),
        "reported": markdown(reported_table(records)),
        "accuracy": picture,
        "claims": markdown(claims.counts(claims.claims_table(records=records))),
        "speed": speed_part(),
    }


SPEED_COLUMNS = ["hardware", "model", "images", "batch", "textbook, images/s", "ours, images/s", "ratio", "input alone"]
SPEED_COLUMNS += ["peak memory, GiB"]


def speed_part(results_dir: str | Path | None = None) -> str:
    """One row per model and machine, from what `python -m helpers bench` kept in `R/bench`."""
    rows = []
    for path in sorted((Path(results_dir or results.RESULTS) / "bench").glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        hardware = f"{measured['environment']['device']}, {measured['environment']['mixed_precision']}"
        for row in measured.get("results", ()):
            speeds = [f"{row[f'{side}_images_per_second']:.1f}" for side in ("textbook", "ours")]
            ratios = [f"{row[name]:.1f}×" for name in ("ratio", "input_ratio")]
            memory = " → ".join(f"{row[f'{side}_peak_memory_bytes'] / 2**30:.1f}" for side in ("textbook", "ours"))
            size = f"{row['image_size']}×{row['image_size']}"
            rows.append((hardware, row["model"], size, row["batch"], *speeds, *ratios, memory))
    return markdown(pd.DataFrame(rows, columns=SPEED_COLUMNS)) if rows else "Nothing was measured yet.\n"
