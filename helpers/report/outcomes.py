"""What a notebook tells of its own runs: one table, run or not, and sentences that stay true as further runs come."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import experiments
from helpers.report import statistics, tables
from helpers.report.reported import percent

SAMPLE = "SAMPLE, no result: "


def outcome_table(rows: Mapping[str, str], records: Iterable[dict]) -> pd.DataFrame:
    """One row per label and experiment, run or not: epochs, seeds, the mean test accuracy, what the report prints, minutes.

    `low` to `high` is the 95 % interval of another run: Wilson's for one seed, the prediction interval of two or more.
    Without a run, the epochs are those declared.
    """
    runs_of, table = tables.by_experiment(records), []
    for label, name in rows.items():
        runs, experiment = runs_of.get(name, []), experiments.find(name)
        accuracies = [run["test"]["accuracy"] for run in runs]
        low, high = statistics.accuracy_interval(accuracies, runs[0]["test"]["n"]) if runs else (None, None)
        table.append(
            {
                "run": label,
                "epochs": np.mean([len(run["history"]) for run in runs]) if runs else experiment.recipe.epochs,
                "seeds": len(runs),
                "test accuracy": np.mean(accuracies) if runs else tables.NOT_YET,
                "low": low,
                "high": high,
                "report": percent(experiment.reported.get("test_accuracy")),
                "minutes": np.mean([run["seconds"] for run in runs]) / 60 if runs else None,
            }
        )
    return pd.DataFrame(table)


def pair_sentences(
    records: Iterable[dict],
    pairs: Iterable[tuple[str, str]],
    results_dir: Path | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[str]:
    """A sentence for each pair of experiments (`paired_table`): which is better, or that it cannot be told; a last one names
    the pairs that are not run yet. Long ones are wrapped.

    Args:
        labels: what an experiment is called; by default its own name without the data set.
    """
    table = tables.paired_table(records, pairs, results_dir)
    sentences, missing = [], []
    for row in table.to_dict("records"):
        first, second = ((labels or {}).get(row[place], row[place].split("/")[1]) for place in ("first", "second"))
        if pd.isna(row["points"]):
            missing.append(f"{second} against {first}")
            continue
        found = f"{row['points']:+.1f} points, 95 % interval {row['from']:+.1f} to {row['to']:+.1f}, {row['seeds']:.0f} seed"
        found += "s" if row["seeds"] > 1 else ""
        if row["p"] >= statistics.LEVEL:
            sentences.append(f"{second} and {first} cannot be told apart ({found}).")
        else:
            sentences.append(f"{second} is {'better' if row['points'] > 0 else 'worse'} than {first} ({found}).")
    sentences += [f"Not run yet: {'; '.join(missing)}."] if missing else []
    return [textwrap.fill(sentence, 90, break_on_hyphens=False) for sentence in sentences]


def best_by_validation(names: Iterable[str], records: Iterable[dict]) -> str:
    """Of several experiments the one with the best mean validation accuracy; the first where there is no run."""
    runs_of = tables.by_experiment(records)
    return max(names, key=lambda name: tables.validation_accuracy(runs_of[name]) if name in runs_of else 0.0)
