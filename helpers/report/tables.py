"""What the run records say, as tables: runs, comparisons, paired tests, time budgets, confusions; as text, Markdown, CSV."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import experiments, models, runtime
from helpers.data.cifar import CIFAR10_GROUPS, CIFAR100_SUPERCLASSES
from helpers.experiments import records as results
from helpers.models import inspect as anatomy
from helpers.report import statistics as intervals
from helpers.report.claims import verdicts
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


TIME_COLUMNS = "network,parameters,million MACs,seeds,images/s,minutes,epochs,estimated,at 1,low,high,at 5".split(",")


def time_table(names: Iterable[str], records: Iterable[dict], num_classes: int) -> pd.DataFrame:
    """A row an experiment with a time budget, run or not: what its network costs, what its time has bought, what came out.

    The costs are those with `num_classes` outputs, for one image. The rest is empty where there is no record; else it is the
    mean over seeds, but for `low` to `high`, which reaches over the 95 % Wilson intervals of all seeds. `estimated` is how
    many epochs the first ones let expect within the budget.
    """
    records, rows = list(records), []
    for name in names:
        experiment = experiments.find(name)
        network, size = anatomy.network(experiment.model, num_classes), experiment.recipe.image_size
        row = {
            "network": name.split("/")[1],
            "parameters": models.count_parameters(network),
            "million MACs": models.count_macs(network, (1, 3, size, size)) / 1e6,
        }
        if runs := [record for record in records if record["experiment"] == name]:
            accuracies = [run["test"]["accuracy"] for run in runs]
            low, high = verdicts.accuracy_interval(accuracies, runs[0]["test"]["n"])
            row |= {
                "seeds": len(runs),
                "images/s": np.mean([run["images_per_second"] for run in runs]),
                "minutes": np.mean([run["seconds"] / 60 for run in runs]),
                "epochs": np.mean([len(run["history"]) for run in runs]),
                "estimated": np.mean([run["limits"]["estimated_epochs"] for run in runs]),
                "at 1": np.mean(accuracies),
                "low": low,
                "high": high,
                "at 5": np.mean([run["test"]["accuracy_at_5"] for run in runs]),
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=TIME_COLUMNS)


def paired_table(
    pairs: Iterable[tuple[str, str]], records: Iterable[dict], results_dir: str | Path | None = None
) -> pd.DataFrame:
    """A row a pair of experiments: by how many points of test accuracy the second is better, image by image.

    Over the seeds that both were run with, `from` to `to` is the 95 % interval, and with p as in `verdicts.Paired`. Empty where
    there is none.
    """
    runs = {(record["experiment"], record["seed"]): record for record in records}
    rows = []
    for first, second in pairs:
        row = {"first": first, "second": second}
        both = [(one, runs[second, seed]) for (name, seed), one in runs.items() if name == first and (second, seed) in runs]
        if both:
            arrays = [[results.predictions(run, results_dir) for run in side] for side in zip(*both, strict=True)]
            right = [[found["predicted"] == found["true"] for found in side] for side in arrays]
            paired = verdicts.Paired(right[1], right[0])
            low, high = (100 * end for end in paired.interval)
            row |= {"seeds": len(both), "points": 100 * paired.difference, "from": low, "to": high, "p": paired.p}
        rows.append(row)
    return pd.DataFrame(rows, columns=["first", "second", "seeds", "points", "from", "to", "p"])


def most_confused(record: dict, most: int = 10) -> pd.DataFrame:
    """A row a pair of classes that a run confuses, those with the most images first, of equals the first by label.

    `share` is the part of the true class's images.
    """
    classes, counts = record["dataset"]["classes"], np.array(record["test"]["confusion"])
    wrong = counts - np.diag(np.diag(counts))
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        true, other = divmod(int(place), len(classes))
        share = wrong[true, other] / counts[true].sum()
        rows.append({"true": classes[true], "taken for": classes[other], "images": wrong[true, other], "share": share})
    table = pd.DataFrame(rows)
    return table[table["images"] > 0]


def superclasses(record: dict) -> dict[str, list[str]]:
    """The superclasses of a run's classes, each with its own: the published ones of CIFAR-100, and our two of CIFAR-10.

    Raises:
        UserError: the record is of other classes.
    """
    for groups in (CIFAR10_GROUPS, CIFAR100_SUPERCLASSES):
        if sorted(itertools.chain(*groups.values())) == record["dataset"]["classes"]:
            return groups
    raise UserError(f"{record['experiment']} is no run on the classes of CIFAR-10 or CIFAR-100, so it has no superclasses.")


def _belongs(record: dict) -> np.ndarray:
    """int64 (classes, superclasses): 1 where a class is of a superclass."""
    groups = superclasses(record).values()
    return np.array([[int(name in group) for group in groups] for name in record["dataset"]["classes"]])


def superclass_confusion(record: dict) -> np.ndarray:
    """A run's confusion matrix by superclass, int64, true in rows, in the order of `superclasses`.

    Raises:
        UserError: the record's classes have no superclasses.
    """
    belongs = _belongs(record)
    return belongs.T @ np.array(record["test"]["confusion"]) @ belongs


def superclass_table(record: dict) -> pd.DataFrame:
    """A row a superclass and a last one for all: its test images, and the part of them that is right.

    `accuracy` asks for the very class, `superclass accuracy` for any class of the right superclass.
    """
    coarse = superclass_confusion(record)
    fine = np.diag(record["test"]["confusion"]) @ _belongs(record)
    images, right = coarse.sum(axis=1), np.diag(coarse)
    table = pd.DataFrame({"superclass": list(superclasses(record)), "images": images})
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
    "share": "{:.1%}",
    "million MACs": "{:,.1f}",
    "seeds": "{:.0f}",
    "images/s": "{:,.0f}",
    "epochs": "{:.0f}",
    "estimated": "{:.0f}",
    "at 1": "{:.2%}",
    "at 5": "{:.2%}",
    **dict.fromkeys(("points", "from", "to"), "{:+.2f}"),
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
                runtime.save_text(written[-1], text)
    except OSError as error:
        raise UserError(f"The tables could not be written ({error.strerror}); choose another --results-dir.") from error
    return written
