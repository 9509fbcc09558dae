"""The parts of README made from the records, each between its own markers: what the reports print beside our results."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.experiments import EXPERIMENTS
from helpers.experiments import records as results
from helpers.report import claims, figures, tables
from helpers.report.formats import NOT_YET, markdown, percent
from helpers.runtime import ROOT, require, save_text

HALVING = [f"cifar100/zoo_resnext{number}" for number in (1, 2, 3)]
UNSTATED = [name for name in EXPERIMENTS if re.match("cifar100/(wrn|simplenet)", name)]
# Rows whose network is not, or may not be, the report's own.
NETWORKS = {
    "pikachu/resnext50_ours": "no max-pool padding in its code",
    "cifar10_5k/resnext29_32x4d": "no, the paper's",
    "cifar10/slim_resnet_trial1": "place of the strides not stated",
    "cifar10/slim_resnet_trial2": "strides as printed, not as coded",
    "cifar10/slim_resnet_trial2_coded": "strides as coded, not as printed",
    **dict.fromkeys(HALVING, "block not fully described"),
    **dict.fromkeys(UNSTATED, "dropout not stated"),
}
# What the report leaves open in a row's recipe, filled in from its code or by a guess.
OPEN = {
    "cifar10/resnet18_torchvision": "no recipe stated",
    "cifar10/slim_resnet": "rates as coded, 80 epochs as written",
    **dict.fromkeys((f"cifar10/slim_resnet_trial{number}" for number in (1, 2, 3)), "epochs not stated"),
    **dict.fromkeys(("cifar10_5k/resnext29_32x4d", "cifar10_5k/resnet18_torchvision"), "epochs not stated"),
    **dict.fromkeys(HALVING, "rate, batch and patience not stated"),
    **dict.fromkeys(UNSTATED, "optimiser, rate and batch not stated"),
    **dict.fromkeys(("cifar10/resnext29_under5m_sgd", "cifar10/resnext29_under5m_amp"), "schedule not stated"),
}
IMAGES = {"cifar10_5k": "4,500, not its 5,000", **dict.fromkeys(("cifar10", "cifar100"), "45,000 of 50,000")}


def _outcome(runs: list[dict]) -> str:
    """The mean accuracy of an experiment's runs and its standard deviation over seeds, or one seed's, with more digits."""
    mean = 100 * tables.mean_accuracy(runs)
    spread = 100 * np.std([run["test"]["accuracy"] for run in runs], ddof=1) if len(runs) > 1 else None
    return f"{mean:.2f}%" if spread is None else f"{mean:.1f} ± {spread:.1f}%"


def _seeds(runs: list[dict]) -> str:
    return f"{len(runs)} seed{'s' * (len(runs) > 1)}"


def _ways(name: str, runs_of: dict[str, list[dict]]) -> list[str]:
    """An experiment and its variants: as coded, or, if they have been run, shortened to fewer epochs."""
    shortened = [other for other in EXPERIMENTS if re.fullmatch(rf"{name}_\d+ep", other) and not EXPERIMENTS[other].reported]
    return [name, *tables.CODED.get(name, ()), *(other for other in shortened if other in runs_of)]


def _schedule(name: str, of: str, runs: list[dict]) -> str:
    """Whether runs followed the report's schedule, in words."""
    recipe, epochs = EXPERIMENTS[of].recipe, max(len(run["history"]) for run in runs)
    if any(results.is_cut(run, recipe.time_budget) for run in runs):
        return f"no, {np.mean([run['seconds'] for run in runs]) / 60:.0f} minutes"
    if name in tables.CODED.get(of, ()):
        guessed = ", no early stop, length of calls guessed" if of.startswith("cifar10_5k") else ""
        return f"as coded{guessed}{', weight decay 0.001' if name.endswith('decay0001') else ''}"
    if name != of:
        return f"no, {epochs} of {recipe.epochs} epochs"
    return OPEN.get(of, "as written, epochs from its code")


def reported_table(records: Iterable[dict]) -> pd.DataFrame:
    """One row per accuracy that a report prints and way of running it, with the network's accuracy published elsewhere."""
    runs_of, rows, order = tables.by_experiment(tables.full_runs(records)), [], [*tables.REPORTS]
    reported = {name: row for name, row in EXPERIMENTS.items() if "test_accuracy" in row.reported}
    for name, row in sorted(reported.items(), key=lambda item: order.index(item[1].report)):
        for other in _ways(name, runs_of):
            runs, images = runs_of.get(other, []), IMAGES.get(row.dataset, "yes")
            ours = (_outcome(runs), len(runs)) if runs else (NOT_YET, None)
            same = images, NETWORKS.get(other, "yes"), _schedule(other, name, runs) if runs else ""
            printed, known = percent(row.reported["test_accuracy"]), percent(tables.known_elsewhere(name))
            rows.append((row.report, other, printed, *ours, *same, known))
    names = ["report", "experiment", "printed", "ours", "seeds", "same data?", "same network?", "same schedule?", "elsewhere"]
    return pd.DataFrame(rows, columns=names)


def headline_table(records: Iterable[dict]) -> pd.DataFrame:
    """One row per report: its best accuracy, ours with its own recipe and with a short one, and one published elsewhere.

    Its own recipe is as written, else as coded, else shortened; the cell says which, or what is not stated. Without a run, it
    shows the network with a run that has the highest printed accuracy. The short recipe is the best by validation, and
    `minutes` its fastest seed's time.
    """
    runs_of, rows = tables.by_experiment(tables.full_runs(records)), []
    for report, subject in tables.REPORTS.items():
        own = {name: row for name, row in EXPERIMENTS.items() if row.report == report}
        printed = {name: row.reported["test_accuracy"] for name, row in own.items() if "test_accuracy" in row.reported}
        best = max(printed, key=lambda name: np.max(printed[name]))
        again = next((name for name in _ways(best, runs_of) if name in runs_of), None)
        same_data = [name for name, row in own.items() if row.dataset == own[best].dataset and name in runs_of]
        repeated = NOT_YET
        if again:
            how = _schedule(again, best, runs_of[again]).removeprefix("no, ").removeprefix("as written, epochs from its code")
            repeated = f"{_outcome(runs_of[again])} ({', '.join(filter(None, (how, _seeds(runs_of[again]))))})"
        elif others := [name for name in same_data if name in printed and own[name].model != own[best].model]:
            other = max(others, key=lambda name: np.max(printed[name]))
            repeated = f"{NOT_YET}; {other.split('/')[1]}: {_outcome(runs_of[other])}, report {percent(printed[other])}"
        short = [runs_of[name] for name in same_data if "fast" in name.split("_")]
        fast = max(short, key=tables.validation_accuracy, default=[])
        known = tables.ELSEWHERE.get((own[best].dataset, own[best].model))
        ours = f"{_outcome(fast)} ({fast[0]['experiment'].split('/')[1]}, {_seeds(fast)})" if fast else NOT_YET
        minutes = f"{min(run['seconds'] for run in fast) / 60:.0f}" if fast else ""
        elsewhere = f"[{percent(known[0])}]({known[1]})" if known else ""
        its_best = f"{percent(printed[best])} ({best.split('/')[1]})"
        rows.append((f"`{report}`: {subject}", its_best, repeated, ours, minutes, elsewhere))
    names = ["report", "report's best", "ours, report's recipe", "ours, short recipe", "minutes", "published elsewhere"]
    return pd.DataFrame(rows, columns=names)


def write(records: list[dict], readme: Path = ROOT / "README.md") -> Path:
    """Update README between its markers from the records and change nothing else; a UserError if a marker is missing."""
    text = readme.read_text(encoding="utf-8")
    for name, part in parts(records).items():
        pieces = re.split(rf"(<!-- {name} -->\n|<!-- /{name} -->)", text)
        require(len(pieces) == 5, f"{readme.name} has no <!-- {name} --> … <!-- /{name} -->; add both markers, once each.")
        text = "".join([*pieces[:2], part, *pieces[3:]])
    save_text(readme, text)
    return readme


def parts(records: list[dict]) -> dict[str, str]:
    """The text for each pair of markers, by marker name."""
    return {
        "headline": markdown(headline_table(records)),
        "reported": markdown(reported_table(records)),
        "accuracy": f"![Test accuracy by experiment](results/figures/accuracy.png)\n\n*{figures.ACCURACY}*\n",
        "short": markdown(tables.short_recipes(records)),
        "claims": markdown(claims.counts(claims.claims_table(records=records))),
        "speed": speed_part(),
    }


def speed_part(results_dir: str | Path | None = None) -> str:
    """One row per model and machine, from the files that `python -m helpers bench` saved in `R/bench`."""
    rows = []
    for path in sorted((Path(results_dir or results.RESULTS) / "bench").glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        hardware = path.stem.replace("_", " ")  # named by whoever measured: a record's device does not tell processors apart
        for row in measured.get("results", ()):
            speeds = [f"{row[f'{side}_images_per_second']:.1f}" for side in ("textbook", "ours")]
            (slow, fast), (low, high) = row["ours_range"], row["textbook_range"]
            alone = float(f"{row['input_ratio']:.1g}")  # timed once, so that a second digit would be noise
            ratios = [f"{row['ratio']:.1f}× ({slow / high:.1f}–{fast / low:.1f})", f"{alone:g}×"]
            memory = " → ".join(f"{row[f'{side}_peak_memory_bytes'] / 2**30:.1f}" for side in ("textbook", "ours"))
            size = f"{row['image_size']}×{row['image_size']}"
            rows.append((hardware, row["model"], size, row["batch"], *speeds, *ratios, memory))
    names = "hardware;model;images;batch;textbook, images/s;ours, images/s;ratio;input alone;peak memory, GiB".split(";")
    return markdown(pd.DataFrame(rows, columns=names)) if rows else "Nothing has been measured yet.\n"
