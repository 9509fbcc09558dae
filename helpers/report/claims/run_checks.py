"""Statements that only runs can judge: accuracies, losses, costs, and that one network is better than another."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from helpers.report.claims import verdicts
from helpers.report.claims.evidence import Evidence, Finding, NotYet, Pairs, points, probability


@dataclass(frozen=True)
class Accuracy:
    """The test accuracy of an experiment; or, with `epoch`, its accuracy on `split` (val or train) after so many epochs."""

    kind = "accuracy"
    experiment: str
    epoch: int | None = None
    split: str = "val"

    @property
    def how(self) -> str:
        when = f", {self.split} accuracy after epoch {self.epoch}" if self.epoch else ""
        return f"run record of {self.experiment}{when}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        runs = evidence.runs(self.experiment)
        if self.epoch:
            runs = [run for run in runs if len(run["history"]) >= self.epoch]
            if not runs:
                raise NotYet
            accuracies = [run["history"][self.epoch - 1][f"{self.split}_accuracy"] for run in runs]
            n = runs[0]["dataset"][f"n_{self.split}"]
        else:
            accuracies, n = [run["test"]["accuracy"] for run in runs], runs[0]["test"]["n"]
        interval = verdicts.accuracy_interval(accuracies, n)
        shown = f"{interval[0]:.2%} to {interval[1]:.2%}"
        return Finding(f"{np.mean(accuracies):.2%}", shown, verdicts.accuracy(quoted, interval), self.how + _seeds(runs))


@dataclass(frozen=True)
class Recall:
    """The share of a class's test images that an experiment gets right, against printed counts of right and wrong ones."""

    kind = "accuracy"
    experiment: str
    label: int
    right: int
    wrong: int

    @property
    def how(self) -> str:
        share = self.right / (self.right + self.wrong)
        return f"{share:.2%} of the class; confusion matrix in the run record of {self.experiment}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        runs = evidence.runs(self.experiment)
        rows = [run["test"]["confusion"][self.label] for run in runs]
        shares = [row[self.label] / sum(row) for row in rows]
        interval = verdicts.accuracy_interval(shares, sum(rows[0]))
        verdict = verdicts.accuracy(f"{self.right / (self.right + self.wrong):.2%}", interval)
        shown = f"{interval[0]:.2%} to {interval[1]:.2%}"
        return Finding(f"{np.mean(shares):.2%}", shown, verdict, self.how + _seeds(runs))


@dataclass(frozen=True)
class Loss:
    """The validation loss of an experiment at its best epoch."""

    kind = "loss"
    experiment: str

    @property
    def how(self) -> str:
        return f"run record of {self.experiment}, validation loss at its best epoch"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        runs = evidence.runs(self.experiment)
        losses = [run["best"]["val_loss"] for run in runs]
        interval = f"{min(losses):.4f} to {max(losses):.4f}" if len(losses) > 1 else ""
        return Finding(f"{np.mean(losses):.4f}", interval, verdicts.loss(quoted, losses), self.how + _seeds(runs))


@dataclass(frozen=True)
class Better:
    """The first experiment has the better test accuracy."""

    kind = "comparison"
    first: str
    second: str

    @property
    def how(self) -> str:
        return f"run records of {self.first} and {self.second}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        pairs, paired = _paired(evidence, self.first, self.second)
        counts = f"{paired.only_first} : {paired.only_second}"
        ours = f"{100 * paired.difference:+.2f} points ({counts} images), {probability(paired.p)}"
        verdict = verdicts.comparison(paired, bool(pairs.note))
        needed = f"; {paired.needed()}" if verdict == verdicts.CANNOT_TELL or not paired.agree else ""
        return Finding(ours, points(paired.interval) + needed, verdict, _pairs_how(pairs))


@dataclass(frozen=True)
class Close:
    """Two experiments whose test accuracies are said to differ by no more than a margin, a fraction; `why` says whose."""

    kind = "closeness"
    first: str
    second: str
    margin: float
    why: str

    @property
    def how(self) -> str:
        return f"run records of {self.first} and {self.second}; margin {100 * self.margin:.2f} points, {self.why}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        pairs, paired = _paired(evidence, self.first, self.second)
        verdict = verdicts.closeness(paired, self.margin, bool(pairs.note))
        needed = f"; {paired.needed_inside(self.margin)}" if verdict == verdicts.CANNOT_TELL else ""
        margin = f"; margin {100 * self.margin:.2f} points, {self.why}"
        ours = f"{100 * paired.difference:+.2f} points"
        return Finding(ours, points(paired.interval) + needed, verdict, _pairs_how(pairs) + margin)


@dataclass(frozen=True)
class LowerLoss:
    """The first experiment has the lower test loss."""

    kind = "lower loss"
    first: str
    second: str

    @property
    def how(self) -> str:
        return f"test losses in the run records of {self.first} and {self.second}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        pairs = evidence.pairs(self.first, self.second)
        losses = [(one["test"]["loss"], other["test"]["loss"]) for one, other in zip(*pairs[:2], strict=True)]
        differences = [one - other for one, other in losses]
        interval = f"{min(differences):+.4f} to {max(differences):+.4f}" if len(differences) > 1 else "a second seed at least"
        verdict = verdicts.lower(differences, bool(pairs.note))
        return Finding(f"{np.mean(differences):+.4f}", interval, verdict, _pairs_how(pairs))


@dataclass(frozen=True)
class EveryEpoch:
    """The first experiment has the better validation accuracy after every epoch that both have."""

    kind = "each one"
    first: str
    second: str

    @property
    def how(self) -> str:
        return f"validation accuracies in the run records of {self.first} and {self.second}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        pairs = evidence.pairs(self.first, self.second)
        higher = [
            mine["val_accuracy"] > theirs["val_accuracy"]
            for one, other in zip(*pairs[:2], strict=True)
            for mine, theirs in zip(one["history"], other["history"], strict=False)
        ]
        verdict = verdicts.each(sum(higher), len(higher), bool(pairs.note))
        return Finding(f"in {sum(higher)} of {len(higher)} epochs", "", verdict, _pairs_how(pairs))


@dataclass(frozen=True)
class Slower:
    """A training epoch of the first experiment takes longer, on the same device."""

    kind = "cost"
    first: str
    second: str

    @property
    def how(self) -> str:
        return f"seconds of a training epoch in the run records of {self.first} and {self.second}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        pairs = evidence.pairs(self.first, self.second)
        if len({run["environment"]["device"] for run in pairs.first + pairs.second}) > 1:
            raise NotYet
        quartiles = [
            np.percentile([row["train_seconds"] for run in runs for row in run["history"]], (25, 50, 75)) for runs in pairs[:2]
        ]
        (low, middle, high), (other_low, other_middle, other_high) = quartiles
        interval = (low / other_high, high / other_low)
        device = f", on {pairs.first[0]['environment']['device']}"
        shown = f"×{interval[0]:.2f} to ×{interval[1]:.2f}"
        verdict = verdicts.cost(interval, bool(pairs.note))
        return Finding(f"×{middle / other_middle:.2f}", shown, verdict, _pairs_how(pairs) + device)


def _paired(evidence: Evidence, first: str, second: str) -> tuple[Pairs, verdicts.Paired]:
    pairs = evidence.pairs(first, second)
    return pairs, verdicts.Paired(*([evidence.right(run) for run in runs] for runs in pairs[:2]))


def _pairs_how(pairs: Pairs) -> str:
    names = " and ".join(runs[0]["experiment"] for runs in pairs[:2])
    return f"run records of {names}{_seeds(pairs.first)}{pairs.note}"


def _seeds(runs: Iterable[dict]) -> str:
    seeds = [str(run["seed"]) for run in runs]
    jpeg = ", images from JPEG files" if any(run["dataset"]["name"].endswith("-jpeg") for run in runs) else ""
    return f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}{jpeg}"
