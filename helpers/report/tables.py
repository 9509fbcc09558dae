"""The run records as tables of at most nine columns, and as sentences that stay true as runs are added."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import experiments, models, runtime
from helpers.report import statistics
from helpers.report.formats import NOT_YET, markdown, percent
from helpers.runtime import require
from helpers.training.loop import estimate_epochs

REPORTS = {
    "pikachu": "Pikachu photographs",
    "amp": "CIFAR-10, perturbed training",
    "zoo": "CIFAR-100, a zoo of networks",
    "slim": "CIFAR-10, a pruned ResNet",
}
# Accuracies published elsewhere for a network on a data set, trained without extra images, and where they are printed.
ELSEWHERE = {
    ("cifar10", "resnext29_32x4d"): (0.9685, "https://github.com/osmr/imgclsmob"),
    ("cifar10", "resnext29_under5m"): (0.9473, "https://github.com/kuangliu/pytorch-cifar"),  # its 32×4d, 350 epochs
    ("cifar10", "slim_resnet"): (0.9604, "https://arxiv.org/abs/2306.12100"),  # another ResNet under five million parameters
    ("cifar10", "wrn16_4"): (0.9498, "https://arxiv.org/abs/1605.07146"),  # table 6, without dropout
    ("cifar100", "wrn16_4"): (0.7597, "https://arxiv.org/abs/1605.07146"),  # the same table
    ("cifar100", "wrn16_8"): (0.7957, "https://arxiv.org/abs/1605.07146"),  # table 5
    ("cifar100", "wrn16_2"): (0.7326, "https://arxiv.org/abs/1910.10699"),  # table 1, trained without a teacher
    ("cifar100", "simplenet"): (0.7837, "https://arxiv.org/abs/1608.06037"),  # a later one: a fifth pooling, less dropout
    ("cifar100", "resnext29_32x4d"): (0.805, "https://github.com/osmr/imgclsmob"),
}
# The rows that follow a report's published code where it differs from the report's text.
CODED = {
    "pikachu/resnext50_ours": ("pikachu/resnext50_coded", "pikachu/resnext50_coded_decay0001"),
    "pikachu/resnext50_torchvision": ("pikachu/resnext50_torchvision_coded",),
    "pikachu/resnet18_torchvision": ("pikachu/resnet18_coded", "pikachu/resnet18_coded_decay0001"),
    "cifar10/slim_resnet_trial2": ("cifar10/slim_resnet_trial2_coded",),
    "cifar10_5k/resnext29_32x4d": ("cifar10_5k/resnext29_coded", "cifar10_5k/resnext29_coded_decay0001"),
    "cifar10_5k/resnet18_torchvision": ("cifar10_5k/resnet18_coded", "cifar10_5k/resnet18_coded_decay0001"),
    **{f"cifar10/resnext29_under5m_{arm}": (f"cifar10/resnext29_under5m_{arm}_coded",) for arm in ("sgd", "amp")},
}
WRITTEN = {name: row for row, names in CODED.items() for name in names}
PRICED = "_short"  # in the names of runs that ablate an ingredient of a recipe; notebook 06 compares them with one another
RUN_COLUMNS = "experiment,profile,seed,images,epochs,test accuracy,report,minutes,device".split(",")
COMPARISON_COLUMNS = "experiment,parameters,seeds,val loss,test accuracy,sd,low,high,report".split(",")
TIME_COLUMNS = "network,parameters,million MACs,seeds,images/s,epochs,estimated,top-1,top-5".split(",")
CAPTIONS = {
    "runs": "One row per run.",
    "comparison": "Means over seeds. 95 % interval `low` to `high`: Wilson's for one seed, else that of the next seed.",
    "paired": "By how many points the second is better on the same test images: the mean over seeds and a 95 % interval that "
    "covers each. With two seeds, an image counts for the one that got it right under more; the exact p compares these counts.",
}
SHORT_COLUMNS = "experiment,epochs,seeds,val accuracy,test accuracy,flipped copy,mark,outcome,minutes".split(",")
PAIRED_COLUMNS = "first,second,seeds,only first right,only second right,points,from,to,p".split(",")


def full_runs(records: Iterable[dict]) -> list[dict]:
    """The full runs of the reports' experiments: no search, speed comparison or ablation."""
    return [run for run in records if run["profile"] == "full" and run["report"] in REPORTS and PRICED not in run["experiment"]]


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
    """The mean validation accuracy over seeds, each at the epoch whose weights were kept, for selection; 0 without a run."""
    return float(np.mean([run["best"]["val_accuracy"] for run in runs] or [0]))


def best_by_validation(names: Iterable[str], records: Iterable[dict]) -> str:
    """The experiment with the best mean validation accuracy; the first one if none has been run."""
    runs_of = by_experiment(records)
    return max(names, key=lambda name: validation_accuracy(runs_of.get(name, [])))


def runs_table(records: list[dict]) -> pd.DataFrame:
    """One row per run: what was trained on which images, for how long, and what came out."""
    rows = []
    for record in records:
        name, source, device = record["experiment"], record["dataset"]["source"], record["environment"]["device"]
        epochs = f"{len(record['history'])}{', stopped early' if record['stopped_early'] else ''}"
        found = record["test"]["accuracy"], printed_accuracy(name), record["seconds"] / 60
        rows.append((name, record["profile"], record["seed"], source, epochs, *found, device))
    return pd.DataFrame(rows, columns=RUN_COLUMNS)


def printed_accuracy(name: str) -> float | tuple[float, float] | None:
    """The test accuracy that a report prints for an experiment, as written or as coded: a fraction, a range, or None."""
    row = experiments.EXPERIMENTS.get(WRITTEN.get(name, name))
    return row.reported.get("test_accuracy") if row else None


def known_elsewhere(name: str) -> float | None:
    """The test accuracy published elsewhere for the network of an experiment on its data set, if any."""
    row = experiments.find(name)
    return ELSEWHERE.get((row.dataset, row.model), (None,))[0]


def comparison_table(records: list[dict]) -> pd.DataFrame:
    """One row per experiment: means over its seeds, `sd` of a sample (n − 1), `low` to `high` as in `outcome_table`."""
    rows = []
    for name, runs in by_experiment(records).items():
        accuracies = [run["test"]["accuracy"] for run in runs]
        loss = np.mean([run["best"]["val_loss"] for run in runs])
        deviation = np.std(accuracies, ddof=1) if len(runs) > 1 else None
        found = np.mean(accuracies), deviation, *statistics.accuracy_interval(accuracies, runs[0]["test"]["n"])
        rows.append((name, runs[0]["model"]["params"], len(runs), loss, *found, printed_accuracy(name)))
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def time_table(names: Iterable[str], records: Iterable[dict], num_classes: int) -> pd.DataFrame:
    """One row per experiment with a time budget, run or not: what its network costs, and what it achieved in that time.

    Costs are per image, with `num_classes` outputs. The rest are means over seeds, empty without a record: `images/s` in the
    median epoch; `estimated`, how many epochs fit the recipe's budget at the pace of its first ones; test accuracies.
    """
    runs_of, rows = by_experiment(records), []
    for name in names:
        experiment, runs = experiments.find(name), runs_of.get(name, [])
        network, size = models.inspect.network(experiment.model, num_classes), experiment.recipe.image_size
        cost = models.count_parameters(network), models.count_macs(network, (1, 3, size, size)) / 1e6
        bought = []
        for run in runs:
            epochs = len(run["history"]), estimate_epochs(run["history"], run["recipe"]["time_budget"])
            seconds = [row["train_seconds"] for row in run["history"]]
            rate = run["images_per_second"] * np.mean(seconds) / np.median(seconds)  # other programs slowed some epochs
            bought.append((rate, *epochs, run["test"]["accuracy"], run["test"]["accuracy_at_5"]))
        means = np.mean(bought, axis=0) if runs else [None] * 5
        rows.append((name.split("/")[1], *cost, len(runs) or None, *means))
    return pd.DataFrame(rows, columns=TIME_COLUMNS)


def paired_table(
    records: Iterable[dict], pairs: Iterable[tuple[str, str]] | None = None, results_dir: str | Path | None = None
) -> pd.DataFrame:
    """One row per pair of experiments: by how many points of test accuracy the second is better, image by image.

    Uses the seeds that both were run with on the same images; the row is empty if there are none. An image counts for the
    experiment that got it right under more seeds; `p` is exact (McNemar's for one seed). `from` to `to` is the 95 %
    interval. `pairs` are names of experiments; by default, all pairs that share a seed and the images are compared.
    """
    predictions, rows = {}, []
    for record in records:
        run = record["seed"], record["dataset"]["fingerprint"]
        predictions.setdefault(record["experiment"], {})[run] = experiments.predictions(record, results_dir)
    for first, second in itertools.combinations(predictions, 2) if pairs is None else pairs:
        one, other = predictions.get(first, {}), predictions.get(second, {})
        shared = [run for run in one if run in other]
        shared = [run for run in shared if run[1] == shared[0][1]]  # all votes on an image must be on the same one
        if shared:
            paired = statistics.Paired.of([other[run] for run in shared], [one[run] for run in shared])
            points = [100 * value for value in (paired.difference, *paired.interval)]
            row = first, second, len(shared), paired.only_second, paired.only_first, *points, paired.p
            rows.append(dict(zip(PAIRED_COLUMNS, row, strict=True)))
        elif pairs is not None:
            rows.append({"first": first, "second": second})
    return pd.DataFrame(rows, columns=PAIRED_COLUMNS)


def most_confused(record: dict, most: int = 10) -> pd.DataFrame:
    """One row per pair of classes that a run confuses, most images first; `share` is of the true class's images."""
    classes = record["dataset"]["classes"]
    counts = pd.DataFrame(record["test"]["confusion"], index=pd.Index(classes, name="true"), columns=classes)
    pairs = counts.reset_index().melt("true", var_name="predicted", value_name="images")
    pairs["share"] = pairs["images"] / pairs["true"].map(counts.sum(axis=1))
    pairs = pairs[(pairs["true"] != pairs["predicted"]) & (pairs["images"] > 0)]
    return pairs.sort_values(["images", "true", "predicted"], ascending=[False, True, True], ignore_index=True).head(most)


def outcome_table(rows: Mapping[str, str], records: Iterable[dict]) -> pd.DataFrame:
    """One row per label and experiment, run or not: epochs, seeds, the mean test accuracy, what the report prints, minutes.

    `low` to `high` is a 95 % interval: for one seed Wilson's (other test images, same weights), for two or more the
    prediction interval of the next seed. Without a run, the epochs are those declared. `elsewhere` is an accuracy of the
    network published elsewhere, if any. `minutes` are those of the fastest seed, as other programs slowed some runs.
    """
    runs_of, table = by_experiment(records), {}
    for label, name in rows.items():
        runs, experiment = runs_of.get(name, []), experiments.find(name)
        accuracies = [run["test"]["accuracy"] for run in runs]
        low, high = statistics.accuracy_interval(accuracies, runs[0]["test"]["n"]) if runs else (None, None)
        table[label] = {
            "run": label,
            "epochs": np.mean([len(run["history"]) for run in runs]) if runs else experiment.recipe.epochs,
            "seeds": len(runs),
            "test accuracy": np.mean(accuracies) if runs else NOT_YET,
            "low": low,
            "high": high,
            "report": percent(printed_accuracy(name)),
            "elsewhere": known_elsewhere(name),
            "minutes": min(run["seconds"] for run in runs) / 60 if runs else None,
        }
    table = pd.DataFrame(table.values())
    return table if table["elsewhere"].notna().any() else table.drop(columns="elsewhere")


def short_recipes(records: Iterable[dict]) -> pd.DataFrame:
    """One row per recipe of ours with a mark, a target test accuracy: means over its seeds, and whether the mean reaches it.

    `flipped copy` averages the scores of each image and its mirror image; `minutes` are those of the fastest seed.
    """
    records, marks = full_runs(records), {row.name: row.mark for row in experiments.EXPERIMENTS.values() if row.mark}
    table = outcome_table({name: name for name in marks}, records).rename(columns={"run": "experiment"})
    runs_of, rows = by_experiment(records), []
    for name, mark in marks.items():
        rows.append({"mark": mark})
        if runs := runs_of.get(name):
            flipped = np.mean([run["test"]["accuracy_mirrored"] for run in runs])
            outcome = "reached" if mean_accuracy(runs) >= mark else "missed"
            rows[-1] |= {"val accuracy": validation_accuracy(runs), "flipped copy": flipped, "outcome": outcome}
    return table.join(pd.DataFrame(rows)).reindex(columns=SHORT_COLUMNS).fillna({"outcome": ""})


def pair_sentences(
    records: Iterable[dict],
    pairs: Iterable[tuple[str, str]],
    results_dir: Path | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[str]:
    """One sentence per pair of experiments in `paired_table`: which is better, or that they cannot be told apart.
    A last one names the pairs not run yet. Long sentences are wrapped. `labels` replace the experiments' own names.
    """
    sentences, missing = [], []
    for row in paired_table(records, pairs, results_dir).to_dict("records"):
        first, second = ((labels or {}).get(row[place], row[place].split("/")[1]) for place in ("first", "second"))
        if pd.isna(row["points"]):
            missing.append(f"{second} against {first}")
            continue
        found = f"{row['points']:+.1f} points, 95 % interval {row['from']:+.1f} to {row['to']:+.1f}, {row['seeds']:.0f} seed"
        found += "s" if row["seeds"] > 1 else ""
        if row["p"] >= statistics.LEVEL or row["from"] <= 0 <= row["to"]:  # the interval covers every seed's difference
            sentences.append(f"{second} and {first} cannot be told apart ({found}).")
        else:
            verb, end = ("is", "") if row["seeds"] > 1 else ("did", " in the one run of each")  # another seed may differ
            sentences.append(f"{second} {verb} {'better' if row['points'] > 0 else 'worse'} than {first}{end} ({found}).")
    if missing:
        sentences.append(f"Not run yet: {'; '.join(missing)}.")
    return [textwrap.fill(sentence, 88, break_on_hyphens=False) for sentence in sentences]


def write(records: list[dict], results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/tables` from all records in `R/runs`: every run, each report's comparison over seeds, and its paired tests.

    Tables with rows are written as CSV and Markdown, stale ones deleted; a UserError without a record or a writable folder.
    """
    folder = Path(results_dir or experiments.records.RESULTS).expanduser()
    require(records, f"There is no run record under {folder.name}/runs; make one with python -m helpers run EXPERIMENT.")
    tables = {"runs": runs_table(records)}
    for report in dict.fromkeys(record["report"] for record in records):
        own = [record for record in records if record["report"] == report and record["profile"] == "full"]
        tables[f"{report}_comparison"] = comparison_table(own)
        own = [record for record in own if PRICED not in record["experiment"]]
        tables[f"{report}_paired"] = paired_table(own, results_dir=folder)
    tables, written = {name: table for name, table in tables.items() if len(table)}, []
    with runtime.writing("The tables"):
        (folder / "tables").mkdir(exist_ok=True)
        for name, table in tables.items():
            caption = CAPTIONS[name.rpartition("_")[2]]
            for suffix, text in ((".csv", table.to_csv(index=False)), (".md", f"{caption}\n\n{markdown(table)}")):
                written.append(folder / "tables" / f"{name}{suffix}")
                runtime.save_text(written[-1], text)
    for stale in {*folder.glob("tables/*_comparison.*"), *folder.glob("tables/*_paired.*")} - {*written}:
        stale.unlink()
    return written
