"""What came out: run records on disk, confidence intervals and paired tests, and the tables made from the records."""

import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, ttest_rel

from helpers import experiments
from helpers.cifar import CIFAR100_CLASSES, CIFAR100_SUPERCLASSES, cifar100_superclasses
from helpers.runtime import ROOT, UserError

RESULTS = ROOT / "results"


@cache
def _temporary_folder() -> Path:
    """One folder for all smoke runs of this process."""
    return Path(tempfile.mkdtemp(prefix="smoke-"))


def folder_for(profile: str, fingerprint: str | None = None, name: str | None = None) -> Path:
    """The results folder of a profile: the repository's, a temporary one for `smoke`, and `data/results` for other images.

    Args:
        fingerprint, name: those of the data set at hand. Where the repository's records of that name are of other images,
            as when somebody puts their own photographs in the place of ours, records must not mix.
    """
    if profile == "smoke":
        return _temporary_folder()
    known = {record["dataset"]["fingerprint"] for record in load_all() if record["dataset"]["name"] == name}
    return RESULTS if fingerprint is None or not known or fingerprint in known else ROOT / "data" / "results"


def checkpoint_folder(profile: str, results_dir: str | Path) -> Path | None:
    """Where `obtain` leaves checkpoints: a smoke run's beside its record, as none is resumed from an older program; None: the
    usual place.
    """
    return Path(results_dir) / "checkpoints" if profile == "smoke" else None


def record_path(name: str, profile: str, seed: int, results_dir: str | Path | None = None) -> Path:
    """Where the record of a run lies: `R/runs/<experiment>/<profile>/seed<k>.json`."""
    return Path(results_dir or RESULTS).expanduser() / "runs" / name / profile / f"seed{seed}.json"


def save(record: dict, predictions: dict[str, np.ndarray], results_dir: str | Path | None = None) -> Path:
    """Write a record and its predictions, each whole or not at all, the record last; returns the record's path.

    Raises:
        UserError: the folder cannot be written, or it holds the record of a run on other images, or of a whole run while
            this one stopped early.
    """
    path = record_path(record["experiment"], record["profile"], record["seed"], results_dir)
    if path.exists():
        there, where = load(path), f"{path.name} of {record['experiment']}"
        if there["dataset"]["fingerprint"] != record["dataset"]["fingerprint"]:
            raise UserError(f"{where} is a run on other images; it was not replaced, choose another --results-dir.")
        if record["stopped_early"] and not there["stopped_early"]:
            raise UserError(f"{where} is a whole run and this one stopped early; it was not replaced.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path.with_name(record["predictions"]), **predictions)
        save_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"The record {path.name} could not be written ({error.strerror}); choose another --results-dir."
        ) from error
    return path


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as one compressed `.npz` file, whole or not at all."""
    with _whole(path) as file:
        np.savez_compressed(file, **arrays)


def save_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    save_bytes(path, text.encode())


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with _whole(path) as file:
        file.write(content)


class _whole:
    """A binary file that appears under its name only when everything was written."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        self.file = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=self.path.name, delete=False)
        return self.file

    def __exit__(self, kind, *_):
        try:
            with self.file:
                self.file.flush()
                os.fsync(self.file.fileno())
            if kind is None:
                os.chmod(self.file.name, 0o644)
                os.replace(self.file.name, self.path)
        finally:
            Path(self.file.name).unlink(missing_ok=True)  # still there only where something went wrong


def load(path: Path) -> dict:
    """One run record, checked against itself.

    Raises:
        UserError: the file is not a run record, or its confusion matrix does not give its own accuracy and test size.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, test = record["experiment"], record["test"]
        counts = np.array(test["confusion"])
        whole = counts.sum() == test["n"] and abs(np.trace(counts) / test["n"] - test["accuracy"]) < 1e-9
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path.name} under {path.parent.name} is not a run record; remove it and run it again.") from error
    if not whole:
        raise UserError(f"{path.name} of {name} contradicts itself: its confusion matrix gives another accuracy.")
    return record


def load_all(results_dir: str | Path | None = None, profile: str | None = None) -> list[dict]:
    """Every run record under a results folder, of one profile or of all, by experiment, profile and seed."""
    folder = Path(results_dir or RESULTS).expanduser() / "runs"
    records = [load(path) for path in sorted(folder.glob("*/*/*/seed*.json"))]
    return [record for record in records if profile in (None, record["profile"])]


def predictions(record: dict, results_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """The predictions that lie beside a record: `true` and `predicted` (N,), and `confidence` (N,)."""
    path = record_path(record["experiment"], record["profile"], record["seed"], results_dir)
    with np.load(path.with_name(record["predictions"]), allow_pickle=False) as arrays:
        return dict(arrays)


def obtain(
    name: str,
    seed: int,
    profile: str,
    results_dir: str | Path | None = None,
    *,
    train: bool = True,
    retrain: bool = False,
    **arguments,
) -> dict | None:
    """The record of a run: loaded if it is there, else trained now and saved; None if it is not there and `train` is False.

    Args:
        results_dir: where the record lies or goes; `folder_for(profile)` by default.
        retrain: train even so; the record that is there is replaced when the new run has ended, and not before.
        arguments: passed on to `experiments.run`.
    """
    results_dir = results_dir or folder_for(profile)
    arguments.setdefault("checkpoint_dir", checkpoint_folder(profile, results_dir))
    path = record_path(name, profile, seed, results_dir)
    if path.exists() and not retrain:
        print(f"{name}, seed {seed}: loaded the record of a {profile} run.")
        return load(path)
    if not train:
        print(f"{name}, seed {seed}: not run yet; python -m helpers run {name} --seed {seed} --profile {profile}")
        return None
    save(*experiments.run(name, seed, profile, resume=not retrain, **arguments), results_dir)
    return load(path)


def obtain_all(
    names: Iterable[str],
    seeds: Iterable[int],
    profile: str,
    results_dir: str | Path | None = None,
    *,
    device: torch.device,
    drive: Path | None = None,
    **arguments,
) -> list[dict]:
    """The records of several experiments at several seeds, as `obtain` gets them, without those that are not there.

    A `full` run that is missing is trained where there is a GPU, and only named where there is none: there it takes hours.

    Args:
        drive: folder that the checkpoints are copied to.
    """
    found = [
        obtain(
            name,
            seed,
            profile,
            results_dir,
            train=profile != "full" or device.type == "cuda",
            mirror=drive / "checkpoints" / name / profile if drive else None,
            **arguments,
        )
        for name, seed in itertools.product(names, seeds)
    ]
    return [record for record in found if record is not None]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy (Wilson 1927), as fractions."""
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return interval.low, interval.high


def mcnemar(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> tuple[int, int, float]:
    """Exact McNemar test of two models on the same images (McNemar 1947, as a binomial test on the discordant pairs).

    Returns:
        How many images only the first, and only the second, got right, and the two-sided p-value.

    Raises:
        ValueError: the two were not tested on the same images.
    """
    if not np.array_equal(first["true"], second["true"]):
        raise ValueError("The two sets of predictions are of different test images.")
    first_right = first["predicted"] == first["true"]
    second_right = second["predicted"] == second["true"]
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    return only_first, only_second, binomtest(only_first, discordant).pvalue if discordant else 1.0


def gap_over_seeds(records: list[dict], first: str, second: str) -> tuple[int, float, float, float]:
    """How much more accurate the second experiment is than the first, over the seeds that both were run with.

    Returns:
        The number of seeds, the mean difference of test accuracies, and its 95 % interval (paired t); the interval is
        NaN with fewer than two seeds, which say nothing about the spread.
    """
    one, other = (
        {record["seed"]: record["test"]["accuracy"] for record in records if record["experiment"] == name}
        for name in (first, second)
    )
    seeds = sorted(one.keys() & other.keys())
    before, after = [one[seed] for seed in seeds], [other[seed] for seed in seeds]
    mean = float(np.mean(after) - np.mean(before)) if seeds else float("nan")
    if len(seeds) < 2:
        return len(seeds), mean, float("nan"), float("nan")
    interval = ttest_rel(after, before).confidence_interval(0.95)
    return len(seeds), mean, float(interval.low), float(interval.high)


def runs_table(records: list[dict]) -> pd.DataFrame:
    """A row a run: what was trained on what, for how long, and what came out, beside what the report printed."""
    rows = []
    for record in records:
        test = record["test"]
        low, high = wilson(round(test["accuracy"] * test["n"]), test["n"])
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
        low, high = wilson(round(accuracies[0] * first["test"]["n"]), first["test"]["n"])
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
            only_first, only_second, p = mcnemar(predictions(first, results_dir), predictions(second, results_dir))
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
    folder = Path(results_dir or RESULTS).expanduser()
    records = load_all(folder)
    if not records:
        raise UserError(f"There is no run record under {folder.name}/runs; make one with python -m helpers run EXPERIMENT.")
    full = [record for record in records if record["profile"] == "full"]
    tables = {"runs": runs_table(records)}
    for report in dict.fromkeys(record["report"] for record in full):
        own = [record for record in full if record["report"] == report]
        tables |= {f"{report}_comparison": comparison_table(own), f"{report}_mcnemar": mcnemar_table(own, folder)}
    written = []
    try:
        (folder / "tables").mkdir(exist_ok=True)
        for name, table in tables.items():
            if table.empty:  # no pair of runs to compare yet
                continue
            for suffix, text in ((".csv", table.to_csv(index=False)), (".md", markdown(table))):
                written.append(folder / "tables" / f"{name}{suffix}")
                save_text(written[-1], text)
    except OSError as error:
        raise UserError(f"The tables could not be written ({error.strerror}); choose another --results-dir.") from error
    return written


def write_readme(readme: Path = ROOT / "README.md", **more: str) -> Path:
    """Put the comparison of the full runs, and the speeds, between their markers in README, and touch nothing else.

    Args:
        more: a text for each further pair of markers, by its name; the claims are made from these tables, not by them.

    Raises:
        UserError: a marker is not there.
    """
    text = readme.read_text(encoding="utf-8")
    for name, table in {"results": readme_table(), "speed": speed_table(), **more}.items():
        parts = re.split(rf"(<!-- {name} -->\n|<!-- /{name} -->)", text)
        if len(parts) != 5:
            raise UserError(f"{readme.name} has no <!-- {name} --> … <!-- /{name} --> to write the table between.")
        parts[2] = table
        text = "".join(parts)
    save_text(readme, text)
    return readme


def speed_table(results_dir: str | Path | None = None) -> str:
    """README's speed table: a row a model and machine, from what `python -m helpers bench` kept in `R/bench`."""
    rows = []
    for path in sorted((Path(results_dir or RESULTS) / "bench").glob("*.json")):
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
    return markdown(pd.DataFrame(rows)) if rows else "Nothing was measured yet.\n"


def readme_table(results_dir: str | Path | None = None) -> str:
    """README's results table: the comparison over seeds of the full runs, without the columns that need explaining."""
    table = comparison_table(load_all(results_dir, "full"))
    return markdown(table.drop(columns=["val loss", "val loss, report", "s per epoch", "device"]))
