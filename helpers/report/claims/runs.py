"""The runs that a statement is judged by, and whether they are those it is about or only stand in for them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers.data import cifar
from helpers.experiments import EXPERIMENTS
from helpers.experiments import records as results


class NotYet(Exception):
    """The model or run record that a check needs does not exist yet."""


class Found(NamedTuple):
    """Runs by seed, of one experiment or (`second`) of two with the same seeds, and why they only stand in, if they do."""

    first: list[dict]
    second: list[dict]
    stand_in: str

    @property
    def how(self) -> str:
        """Which runs these are, in words."""
        names = [side[0]["experiment"] for side in (self.first, self.second) if side]
        seeds = ", ".join(str(run["seed"]) for run in self.first)
        runs = f"run{'s' * (len(self.first + self.second) > 1)} of {' and '.join(names)}"
        return "; ".join(filter(None, (f"{runs}, seed{'s' * (len(self.first) > 1)} {seeds}", self.stand_in)))


class Runs:
    """The run records under a results folder that may judge a report: full ones on real images.

    Runs that stopped early are excluded, except for report `zoo`, whose own runs ended by a time budget or an early stop.
    `records` are those under the folder, if they have been read already. The methods raise NotYet if they find no run.
    """

    def __init__(self, results_dir: str | Path | None = None, records: Iterable[dict] | None = None):
        self.folder = results_dir
        records = results.load_all(results_dir, "full") if records is None else records
        real = [run for run in records if run["profile"] == "full" and run["dataset"]["source"] != "sample"]
        self.records = [run for run in real if not run["stopped_early"] or run["report"] == "zoo"]

    def of(self, experiments: Sequence[str], epoch: int = 0) -> Found:
        """The runs of an experiment (that reached `epoch`), or of two on the same images with the same seeds.

        Complete runs are preferred to shortened ones; paired runs cover the same share of their schedules.
        """
        first, *others = map(self._candidates, experiments)
        for kind, runs in first.items():
            runs = {seed: run for seed, run in runs.items() if len(run["history"]) >= epoch}
            second = others[0].get(kind, {}) if others else {}
            if shared := [seed for seed in runs if seed in second]:
                firsts, seconds = ([side[seed] for seed in shared] for side in (runs, second))
                return Found(firsts, seconds, stand_in(firsts) or stand_in(seconds))
            if runs and not others:
                runs = list(runs.values())
                # At a constant learning rate, a shortened run is the beginning of the complete one.
                return Found(runs, [], "" if epoch and runs[0]["recipe"]["schedule"] == "constant" else stand_in(runs))
        raise NotYet

    def on(self, dataset: str) -> dict:
        """A run on a data set or on a subset sampled from it."""
        parts = {dataset, *(name for name, (whole, _) in cifar.PARTS.items() if whole == dataset)}
        if found := [run for run in self.records if run["dataset"]["name"] in parts]:
            return found[0]
        raise NotYet

    def _candidates(self, experiment: str) -> dict[tuple[float, str], dict[int, dict]]:
        """By share of the schedule, complete ones first, and by images: the experiment's runs by seed."""
        kinds: dict[tuple[float, str], dict[int, dict]] = {}
        for run in sorted(self.records, key=lambda run: (abs(1 - _share(run)), run["seed"])):
            if _whole(run["experiment"]) == experiment:
                kinds.setdefault((_share(run), run["dataset"]["fingerprint"]), {})[run["seed"]] = run
        return kinds


def stand_in(runs: list[dict]) -> str:
    """Why runs are not the ones that a statement about their experiment means, in words; empty if they are."""
    reasons = [f"{_share(runs[0]):.0%} of the epochs"] if _share(runs[0]) != 1 else []
    if all(map(_one_label, runs)):
        reasons.append("every image gets the same label")
    if any(map(results.is_cut, runs)):  # only report `zoo` gives its runs a time budget
        reasons.append("stopped before six hours")
    return "; ".join(reasons)


def _one_label(run: dict) -> bool:
    """Whether a run gives images of several classes all the same label."""
    true, predicted = (np.count_nonzero(np.sum(run["test"]["confusion"], axis=axis)) for axis in (1, 0))
    return predicted == 1 and true > 1


def _whole(name: str) -> str:
    """The experiment that one like `cifar10/slim_resnet_3ep` shortens; itself if the report prints its accuracy too."""
    return name if name in EXPERIMENTS and EXPERIMENTS[name].reported else re.sub(r"_\d+ep$", "", name)


def _share(run: dict) -> float:
    """The share of the planned epochs that a run was meant to last: 1 if complete, or if nothing is planned."""
    planned = EXPERIMENTS.get(_whole(run["experiment"]))
    return run["recipe"]["epochs"] / planned.recipe.epochs if planned else 1.0
