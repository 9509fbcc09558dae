"""What the run records say, as tables: one function per table, each a DataFrame of at most nine columns."""

import itertools
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from helpers import experiments, models, runtime
from helpers.data.cifar import CIFAR10_GROUPS, CIFAR100_SUPERCLASSES
from helpers.experiments import records as results
from helpers.models import inspect as anatomy
from helpers.report import statistics
from helpers.runtime import UserError

NOT_YET = "not yet run"


def on_whole_data(records: Iterable[dict]) -> list[dict]:
    """The full runs of the reports' experiments on a whole data set without loss: not on a tenth of it, nor on JPEG copies."""
    return [
        record
        for record in results.of_the_reports(records)
        if record["profile"] == "full"
        and not record["experiment"].startswith("cifar10_tenth/")
        and "JPEG" not in record["dataset"]["source"]
    ]


def by_experiment(records: Iterable[dict]) -> dict[str, list[dict]]:
    """The records of each experiment, by seed."""
    groups: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        groups.setdefault(record["experiment"], []).append(record)
    return groups


def mean_accuracy(runs: list[dict]) -> float:
    """The mean test accuracy over the seeds of one experiment."""
    return float(np.mean([run["test"]["accuracy"] for run in runs]))


def validation_accuracy(runs: list[dict]) -> float:
    """The mean validation accuracy over the seeds of one experiment, each at its best epoch: what is chosen by."""
    return float(np.mean([run["best"]["val_accuracy"] for run in runs]))


def runs_table(records: list[dict]) -> pd.DataFrame:
    """One row per run: what was trained on which images, for how long, and what came out."""
    return pd.DataFrame(
        {
            "experiment": record["experiment"],
            "profile": record["profile"],
            "seed": record["seed"],
            "images": record["dataset"]["source"],
            "epochs": f"{len(record['history'])}{', stopped early' if record['stopped_early'] else ''}",
            "test accuracy": record["test"]["accuracy"],
            "report": reported(record["experiment"]),
            "minutes": record["seconds"] / 60,
            "device": record["environment"]["device"],
        }
        for record in records
    )


def reported(name: str) -> float | tuple[float, float] | None:
    """The test accuracy that a report prints for an experiment: a fraction, a range, or None where it prints none."""
    row = experiments.EXPERIMENTS.get(name)
    return row.reported.get("test_accuracy") if row else None


COMPARISON_COLUMNS = "experiment,parameters,seeds,val loss,test accuracy,sd,low,high,report".split(",")


def comparison_table(records: list[dict]) -> pd.DataFrame:
    """One row per experiment: means over its seeds, and the standard deviation of its accuracy over them.

    The standard deviation is that of a sample (n − 1), empty for one seed. `low` to `high` is the 95 % Wilson interval around
    the mean: how far other test images might move it.
    """
    rows = []
    for name, runs in by_experiment(records).items():
        accuracy, n = mean_accuracy(runs), runs[0]["test"]["n"]
        loss = np.mean([run["best"]["val_loss"] for run in runs])
        deviation = np.std([run["test"]["accuracy"] for run in runs], ddof=1) if len(runs) > 1 else None
        interval = statistics.wilson(round(accuracy * n), n)
        rows.append((name, runs[0]["model"]["params"], len(runs), loss, accuracy, deviation, *interval, reported(name)))
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


TIME_COLUMNS = "network,parameters,million MACs,seeds,images/s,epochs,estimated,at 1,at 5".split(",")


def time_table(names: Iterable[str], records: Iterable[dict], num_classes: int) -> pd.DataFrame:
    """One row per experiment with a time budget, run or not: what its network costs, and what its time bought.

    The costs are those of one image, with `num_classes` outputs. The rest is a mean over seeds, empty where there is no record;
    `estimated` is how many epochs its first ones let expect within the budget, `at 1` and `at 5` are test accuracies.
    """
    runs_of, rows = by_experiment(records), []
    for name in names:
        experiment, runs = experiments.find(name), runs_of.get(name, [])
        network, size = anatomy.network(experiment.model, num_classes), experiment.recipe.image_size
        cost = models.count_parameters(network), models.count_macs(network, (1, 3, size, size)) / 1e6
        bought = [
            (run["images_per_second"], len(run["history"]), run["limits"]["estimated_epochs"])
            + (run["test"]["accuracy"], run["test"]["accuracy_at_5"])
            for run in runs
        ]
        rows.append((name.split("/")[1], *cost, len(runs) or None, *(np.mean(bought, axis=0) if runs else [None] * 5)))
    return pd.DataFrame(rows, columns=TIME_COLUMNS)


PAIRED_COLUMNS = "first,second,seeds,only first right,only second right,points,from,to,p".split(",")


def paired_table(
    records: Iterable[dict], pairs: Iterable[tuple[str, str]] | None = None, results_dir: str | Path | None = None
) -> pd.DataFrame:
    """One row per pair of experiments: by how many points of test accuracy the second is better, image by image.

    Over the seeds that both were run with on the same images; without one, the row is empty. An image counts for the experiment
    that got it right under more seeds; `p` is exact, and McNemar's for one seed. `from` to `to` is the 95 % interval.

    Args:
        pairs: names of experiments; by default all pairs that share a seed and the images.
    """
    runs, predictions = {}, {}
    for record in records:
        key = record["experiment"], (record["seed"], record["dataset"]["fingerprint"])
        runs.setdefault(key[0], []).append(key[1])
        predictions[key] = results.predictions(record, results_dir)
    rows = []
    for first, second in itertools.combinations(runs, 2) if pairs is None else pairs:
        shared = [run for run in runs.get(first, ()) if run in runs.get(second, ())]
        if not shared:
            rows += [] if pairs is None else [{"first": first, "second": second}]
            continue
        paired = statistics.Paired.of(*([predictions[name, run] for run in shared] for name in (second, first)))
        ends = 100 * paired.difference, *(100 * end for end in paired.interval)
        counts = paired.only_second, paired.only_first
        rows.append(dict(zip(PAIRED_COLUMNS, (first, second, len(shared), *counts, *ends, paired.p), strict=True)))
    return pd.DataFrame(rows, columns=PAIRED_COLUMNS)


def most_confused(record: dict, most: int = 10) -> pd.DataFrame:
    """One row per pair of classes that a run confuses, the most images first; `share` is of the true class's images."""
    classes = record["dataset"]["classes"]
    counts = pd.DataFrame(record["test"]["confusion"], index=pd.Index(classes, name="true"), columns=classes)
    pairs = counts.reset_index().melt("true", var_name="taken for", value_name="images")
    pairs["share"] = pairs["images"] / counts.sum(axis=1)[pairs["true"]].to_numpy()
    pairs = pairs[(pairs["true"] != pairs["taken for"]) & (pairs["images"] > 0)]
    return pairs.sort_values(["images", "true", "taken for"], ascending=[False, True, True], ignore_index=True).head(most)


def superclasses(record: dict) -> dict[str, list[str]]:
    """The superclasses of a run's classes, each with its own: the published ones of CIFAR-100, and two of ours for CIFAR-10.

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
    """A run's confusion matrix by superclass, int64, true in rows, in the order of `superclasses`."""
    return _belongs(record).T @ np.array(record["test"]["confusion"]) @ _belongs(record)


def superclass_table(record: dict) -> pd.DataFrame:
    """One row per superclass and a last one for all: its test images, and the share of them that is right.

    `accuracy` asks for the very class, `superclass accuracy` for any class of the right superclass.
    """
    coarse, fine = superclass_confusion(record), np.diag(record["test"]["confusion"]) @ _belongs(record)
    images, right = coarse.sum(axis=1), np.diag(coarse)
    table = pd.DataFrame({"superclass": list(superclasses(record)), "images": images})
    table["accuracy"], table["superclass accuracy"] = fine / images, right / images
    table.loc[len(table)] = ["all", images.sum(), fine.sum() / images.sum(), right.sum() / images.sum()]
    return table


_PERCENT = "val accuracy,test accuracy,sd,low,high,report,accuracy,superclass accuracy,at 1,at 5,short recipe".split(",")
_FORMATS = {
    **dict.fromkeys(_PERCENT, "{:.2%}"),
    **dict.fromkeys(("points", "from", "to"), "{:+.2f}"),
    **dict.fromkeys(("seeds", "epochs", "estimated", "only first right", "only second right"), "{:.0f}"),
    **dict.fromkeys(("parameters", "images/s"), "{:,.0f}"),
    **dict.fromkeys(("minutes", "minutes, short"), "{:.1f}"),
    **{"val loss": "{:.4f}", "p": "{:.3f}", "share": "{:.1%}", "million MACs": "{:,.1f}"},
}


def _cell(column: str, value) -> str:
    if isinstance(value, tuple):
        return " to ".join(_cell(column, part) for part in value)
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else _FORMATS.get(column, "{}").format(value)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every number as a reader wants it; an empty cell where there is none."""
    return pd.DataFrame({name: [_cell(name, value) for value in table[name]] for name in table.columns})


def styled(table: pd.DataFrame, caption: str, best: str | dict[str, str] = ()) -> Styler:
    """The table for a notebook: a caption, numbers as in `as_text`, and the best value of a column in bold.

    Args:
        best: the column whose largest value is best, or `"max"` or `"min"` for each of several columns.
    """
    bold = pd.DataFrame("", index=table.index, columns=table.columns)
    for column, which in ({best: "max"} if isinstance(best, str) else dict(best)).items():
        numbers = pd.to_numeric(table[column], errors="coerce")
        bold.loc[numbers == numbers.agg(which), column] = "font-weight: bold"
    formats = {name: partial(_cell, name) for name in table.columns}
    style = table.style.format(formats).apply(lambda _: bold, axis=None).hide(axis="index").set_caption(caption)
    return style.set_uuid(f"{zlib.crc32(caption.encode()):x}")  # else it is random, and no two runs of a notebook are equal


def markdown(table: pd.DataFrame) -> str:
    """The table in GitHub's Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *as_text(table).itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def write(records: list[dict], results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/tables`: every run, each report's comparison over seeds, and its paired tests; those of no record go.

    Args:
        records: every record of `R/runs`.

    Raises:
        UserError: there is no record, or the folder cannot be written.
    """
    folder = Path(results_dir or results.RESULTS).expanduser()
    if not records:
        raise UserError(f"There is no run record under {folder.name}/runs; make one with python -m helpers run EXPERIMENT.")
    tables = {"runs": runs_table(records)}
    for report in dict.fromkeys(record["report"] for record in records):
        own = [record for record in records if record["report"] == report and record["profile"] == "full"]
        tables |= {f"{report}_comparison": comparison_table(own), f"{report}_paired": paired_table(own, results_dir=folder)}
    written = save(tables, folder)
    for stale in {*folder.glob("tables/*_comparison.*"), *folder.glob("tables/*_paired.*")} - {*written}:
        stale.unlink()
    return written


def save(tables: dict[str, pd.DataFrame], results_dir: str | Path | None = None) -> list[Path]:
    """Write each table that has a row into `R/tables`, as CSV and as Markdown.

    Raises:
        UserError: the folder cannot be written.
    """
    folder, written = Path(results_dir or results.RESULTS).expanduser() / "tables", []
    try:
        folder.mkdir(exist_ok=True)
        for name, table in tables.items():
            for suffix, text in ((".csv", table.to_csv(index=False)), (".md", markdown(table))) if len(table) else ():
                written.append(folder / f"{name}{suffix}")
                runtime.save_text(written[-1], text)
    except OSError as error:
        raise UserError(f"The tables could not be written ({error.strerror}); choose another --results-dir.") from error
    return written
