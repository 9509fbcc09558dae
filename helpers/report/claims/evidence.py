"""What a statement is judged by: the run records, and the row that ties a statement to its check."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from helpers.data import cifar
from helpers.experiments import records as results
from helpers.report.claims import verdicts

# Where the runs of a report's data are not there, these stand in for a comparison, the first that has both.
STAND_INS = {"cifar10": ("cifar10_tenth",), "cifar100": ("cifar10", "cifar10_tenth")}


class NotYet(Exception):
    """What a check needs, a model or a run record, is not there yet."""


class Finding(NamedTuple):
    """What a check finds: our value, its interval, the verdict and how it came about, all as text."""

    ours: str
    interval: str
    verdict: str
    how: str


class Pairs(NamedTuple):
    """Full runs of two experiments, the same seeds on the same images; `note` is empty, or says what they stand in for."""

    first: list[dict]
    second: list[dict]
    note: str


class Evidence:
    """The run records under a results folder that may judge a report: full ones on real images.

    A run that stopped early is no full one, but for report `zoo`, whose own runs ended by a time budget or an early stop.
    """

    def __init__(self, results_dir: str | Path | None = None):
        self.folder = results_dir
        records = results.load_all(results_dir, "full")
        real = [record for record in records if record["dataset"]["source"] != "sample"]
        self.records = [record for record in real if not record["stopped_early"] or record["report"] == "zoo"]

    def runs(self, experiment: str) -> list[dict]:
        """The runs of an experiment, by seed."""
        found = sorted((r for r in self.records if r["experiment"] == experiment), key=lambda record: record["seed"])
        if not found:
            raise NotYet
        return found

    def pairs(self, first: str, second: str) -> Pairs:
        """The runs of two experiments with a seed and images in common; where there are none, runs that stand in."""
        dataset = first.partition("/")[0]
        for there in (dataset, *STAND_INS.get(dataset, ())):
            names = [f"{there}/{name.partition('/')[2]}" for name in (first, second)]
            common = [
                (one, other)
                for one in self.records
                for other in self.records
                if [one["experiment"], other["experiment"]] == names
                and one["seed"] == other["seed"]
                and one["dataset"]["fingerprint"] == other["dataset"]["fingerprint"]
            ]
            if common:
                note = "" if there == dataset else f", standing in for {dataset}"
                return Pairs(*map(list, zip(*common, strict=True)), note)
        raise NotYet

    def right(self, record: dict) -> np.ndarray:
        """Whether a run was right, for each test image (N,)."""
        arrays = results.predictions(record, self.folder)
        return arrays["predicted"] == arrays["true"]

    def of_data(self, dataset: str) -> dict:
        """A record whose images were those of a data set, or of a part of it, which is only drawn from the whole."""
        parts = {name for name, (whole, _) in cifar.PARTS.items() if whole == dataset}
        for record in self.records:
            if record["dataset"]["name"].removesuffix("-jpeg") in {dataset, *parts}:
                return record
        raise NotYet


class Check(Protocol):
    """A way to check a statement."""

    kind: ClassVar[str]
    how: str

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        """The finding for a value as quoted. Raises NotYet."""


@dataclass(frozen=True)
class Claim:
    """A statement of a report: where it stands, what it says, the value as printed there, and how it is checked."""

    report: str
    place: str
    claim: str
    quoted: str
    check: Check

    def find(self, evidence: Evidence) -> Finding:
        """The finding; *not yet run* where the check's model or records are not there."""
        try:
            return self.check.find(self.quoted, evidence)
        except NotYet:
            return Finding("", "", verdicts.NOT_YET, self.check.how)


def points(interval: tuple[float, float]) -> str:
    """An interval of a difference between accuracies, in points."""
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f} points"


def probability(p: float) -> str:
    """A p-value as readers want it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
