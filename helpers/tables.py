"""What the run records say, as tables: runs, comparisons, paired tests, superclasses; as text, Markdown and CSV."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers import experiments, files, intervals, results
from helpers.cifar import CIFAR100_CLASSES, CIFAR100_SUPERCLASSES, cifar100_superclasses
from helpers.runtime import UserError


def runs_table(records: list[dict]) -> pd.DataFrame:
    """A row a run: what was trained on what, for how long, and what came out, beside what the report printed."""
    rows = []
    for record in records:
        test = record["test"]
        low, high = intervals.wilson(round(test["accuracy"] * test["n"]), test["n"])
        rows.append(
            {
                "experiment": record["experiment"],
                "profile": record["profile"],
                "seed": record["seed"],
                "data": record["dataset"]["source"],
                "parameters": record["model"]["params"],
                "epochs": len(record["history"]),
                "best epoch": record["best"]["epoch"],
                "val loss": record["best"]["val_loss"],
                "test accuracy": test["accuracy"],
                "low": low,
                "high": high,
                "report": _reported(record["experiment"]).get("test_accuracy"),
                "minutes": record["seconds"] / 60,
                "device": record["environment"]["device"],
                "stopped early": record["stopped_early"] or "",
            }
        )
    return pd.DataFrame(rows)


def _reported(name: str) -> dict:
    row = experiments.EXPERIMENTS.get(name)
    return row.reported if row else {}


def comparison_table(records: list[dict]) -> pd.DataFrame:
    """A row an experiment, over its seeds: mean and standard deviation, and the first seed's Wilson interval.

    The standard deviation is that of a sample (n − 1), empty for one seed. Seconds an epoch are a median, for the device named.
    """
    rows = []
    for name in dict.fromkeys(record["experiment"] for record in records):
        group = sorted((record for record in records if record["experiment"] == name), key=lambda record: record["seed"])
        first, reported = group[0], _reported(name)
        accuracies = [record["test"]["accuracy"] for record in group]
        low, high = intervals.wilson(round(accuracies[0] * first["test"]["n"]), first["test"]["n"])
        rows.append(
            {
                "experiment": name,
                "parameters": first["model"]["params"],
                "seeds": len(group),
                "val loss": np.mean([record["best"]["val_loss"] for record in group]),
                "val loss, report": reported.get("val_loss"),
                "test accuracy": np.mean(accuracies),
                "sd": np.std(accuracies, ddof=1) if len(group) > 1 else None,
                "low": low,
                "high": high,
                "accuracy, report": reported.get("test_accuracy"),
                "s per epoch": np.median([row["seconds"] for record in group for row in record["history"]]),
                "device": first["environment"]["device"],
            }
        )
    return pd.DataFrame(rows)


def mcnemar_table(records: list[dict], results_dir: str | Path | None = None) -> pd.DataFrame:
    """A row a pair of experiments with a run of the same seed on the same data: exact McNemar tests, pair by pair."""
    rows = []
    for index, first in enumerate(records):
        for second in records[index + 1 :]:
            same = first["seed"] == second["seed"] and first["dataset"]["fingerprint"] == second["dataset"]["fingerprint"]
            if first["experiment"] == second["experiment"] or not same:
                continue
            only_first, only_second, p = intervals.mcnemar(
                results.predictions(first, results_dir), results.predictions(second, results_dir)
            )
            rows.append(
                {
                    "first": first["experiment"],
                    "second": second["experiment"],
                    "seed": first["seed"],
                    "only first right": only_first,
                    "only second right": only_second,
                    "p": p,
                }
            )
    return pd.DataFrame(rows)


def superclass_confusion(record: dict) -> np.ndarray:
    """int64 (20, 20): a CIFAR-100 run's confusion matrix by superclass, true in rows, in the order of the published ones.

    Raises:
        UserError: the record is of other classes.
    """
    if record["dataset"]["classes"] != CIFAR100_CLASSES:
        raise UserError(f"{record['experiment']} is no run on the 100 classes of CIFAR-100, so it has no superclasses.")
    belongs = np.eye(len(CIFAR100_SUPERCLASSES), dtype=np.int64)[cifar100_superclasses()]
    return belongs.T @ np.array(record["test"]["confusion"]) @ belongs


def superclass_table(record: dict) -> pd.DataFrame:
    """A row a superclass of CIFAR-100 and a last one for all: its test images, and the part of them that is right.

    `accuracy` asks for the very class, `superclass accuracy` for any class of the right superclass.
    """
    coarse = superclass_confusion(record)
    fine = np.bincount(cifar100_superclasses(), weights=np.diag(record["test"]["confusion"]))
    images, right = coarse.sum(axis=1), np.diag(coarse)
    table = pd.DataFrame({"superclass": list(CIFAR100_SUPERCLASSES), "images": images})
    table["accuracy"], table["superclass accuracy"] = fine / images, right / images
    table.loc[len(table)] = ["all", images.sum(), fine.sum() / images.sum(), right.sum() / images.sum()]
    return table


_FORMATS = {
    "parameters": "{:,}",
    "val loss": "{:.4f}",
    "val loss, report": "{:.4f}",
    "val accuracy": "{:.2%}",
    "test accuracy": "{:.2%}",
    "sd": "{:.2%}",
    "low": "{:.2%}",
    "high": "{:.2%}",
    "report": "{:.2%}",
    "accuracy, report": "{:.2%}",
    "minutes": "{:.1f}",
    "s per epoch": "{:.0f}",
    "p": "{:.3f}",
    "accuracy": "{:.2%}",
    "superclass accuracy": "{:.2%}",
}


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every number as a reader wants it; an empty cell where there is none."""

    def cell(column: str, value) -> str:
        if isinstance(value, tuple):
            return " to ".join(cell(column, part) for part in value)
        return "" if pd.isna(value) else _FORMATS.get(column, "{}").format(value)

    return pd.DataFrame({name: [cell(name, value) for value in table[name]] for name in table.columns})


def markdown(table: pd.DataFrame) -> str:
    """The table in GitHub's Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *as_text(table).itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def write_tables(results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/tables` from `R/runs`: every run, the comparison over seeds and the paired tests, as CSV and Markdown.

    Raises:
        UserError: there is no record, a record is damaged, or the folder cannot be written.
    """
    folder = Path(results_dir or results.RESULTS).expanduser()
    records = results.load_all(folder)
    if not records:
        raise UserError(f"There is no run record under {folder.name}/runs; make one with python -m helpers run EXPERIMENT.")
    full = [record for record in records if record["profile"] == "full"]
    tables = {"runs": runs_table(records)}
    for report in dict.fromkeys(record["report"] for record in full):
        own = [record for record in full if record["report"] == report]
        tables |= {f"{report}_comparison": comparison_table(own), f"{report}_mcnemar": mcnemar_table(own, folder)}
    return save_tables({name: table for name, table in tables.items() if not table.empty}, folder)


def save_tables(tables: dict[str, pd.DataFrame], results_dir: str | Path | None = None) -> list[Path]:
    """Write each table into `R/tables`, as CSV and as Markdown.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(results_dir or results.RESULTS).expanduser()
    written = []
    try:
        (folder / "tables").mkdir(exist_ok=True)
        for name, table in tables.items():
            for suffix, text in ((".csv", table.to_csv(index=False)), (".md", markdown(table))):
                written.append(folder / "tables" / f"{name}{suffix}")
                files.save_text(written[-1], text)
    except OSError as error:
        raise UserError(f"The tables could not be written ({error.strerror}); choose another --results-dir.") from error
    return written
