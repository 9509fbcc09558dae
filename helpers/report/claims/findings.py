"""A statement of a report, and one function for each way to check it, which returns the evidence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from helpers import models
from helpers.experiments.records import predictions
from helpers.report import statistics
from helpers.report.claims import measures, rules
from helpers.report.claims.runs import Found, NotYet, Runs


@dataclass(frozen=True)
class Statement:
    """A statement of a report: where it is, what it says, the value `quoted` from there, and how it is checked."""

    report: str
    place: str
    claim: str
    quoted: str
    kind: str  # one of `KINDS`, which determines the check and the rule
    measure: str = ""  # an entry of `measures.OF_NETWORKS` for the networks, or of `measures.OTHERS`
    arguments: dict = field(default_factory=dict)  # passed to the measure or to the check
    networks: Sequence[tuple[str, int]] = ()  # (name, classes)
    data: str = ""  # the data set that a run must have loaded
    experiments: Sequence[str] = ()  # whose runs are judged
    recipe: str = ""  # "as written" or "as coded", if the report and its published code differ
    repeats: str = ""  # where the same fact is counted, if not here
    reservation: str = ""  # why the verdict stays open whatever the runs say
    what: str = ""  # what is measured, if `measure` does not say it
    form: str = "{:,}"  # the number format
    limits: Sequence[float] = ()  # of a bound

    def how(self, found: Found | None = None) -> str:
        """What is compared with the report, with which runs if any, and why the verdict stays open if it does."""
        parts = [self.what or self.measure]
        if self.kind == "printed difference":
            (first, second), n = self.arguments["per_cent"], self.arguments["n"]
            parts.insert(0, f"printed: {first} % against {second} %, as if on two separate sets of {n:,} test images")
        if self.networks:
            parts[0] += " of " + " and ".join(f"models.build('{name}', {classes})" for name, classes in self.networks)
        if self.kind == "bound":
            limits = zip(("at least", "at most"), self.limits, strict=True)
            parts[0] += ": " + " and ".join(f"{word} {limit:,.10g}" for word, limit in limits if np.isfinite(limit))
        runs = f"runs of {' and '.join(self.experiments)}" if self.experiments else ""
        return "; ".join(part for part in (*parts, found.how if found else runs, self.reservation) if part)


class Finding(NamedTuple):
    """What a check finds: our value, its interval, the verdict and how it was reached, all as text."""

    ours: str
    interval: str
    verdict: str
    how: str


class Evidence(NamedTuple):
    """What a check returns: our value and its interval, the arguments that its rule judges, and remarks."""

    ours: str
    interval: str
    judged: tuple
    needed: str = ""  # what would settle the verdict, shown if it cannot be told
    how: str = ""  # appended to how the statement is checked


def find(statement: Statement, runs: Runs) -> Finding:
    """The finding for a statement; *not yet run* if the check's model or records do not exist.

    With a reservation, or with runs that only stand in for those the statement is about, the verdict cannot be told.
    """
    check, rule = KINDS[statement.kind]
    try:
        found = runs.of(statement.experiments, statement.arguments.get("epoch", 0)) if statement.experiments else None
        evidence = check(statement, runs, found)
    except NotYet:
        return Finding("", "", rules.NOT_YET, statement.how())
    undecided = statement.reservation or (found and found.stand_in)
    verdict = rules.CANNOT_TELL if undecided else rule(*evidence.judged)
    needed = evidence.needed if verdict == rules.CANNOT_TELL and not undecided else ""
    interval = "; ".join(filter(None, (evidence.interval, needed)))
    return Finding(evidence.ours, interval, verdict, statement.how(found) + evidence.how)


def measured(statement: Statement, runs: Runs, found: None) -> Evidence:
    """A number or a text that needs no training: from a network, the data, or what the report prints."""
    if any(name not in models.MODELS for name, _ in statement.networks):
        raise NotYet
    if statement.networks:
        values = [measures.OF_NETWORKS[statement.measure](models.inspect.network(*network)) for network in statement.networks]
        value = values[0] if len(values) == 1 else values
    else:
        loaded = {"run": runs.on(statement.data)} if statement.data else {}
        value = measures.OTHERS[statement.measure](**loaded, **statement.arguments)
    parts = [part if isinstance(part, str) else statement.form.format(part) for part in np.atleast_1d(value).tolist()]
    between = {"each one": " of ", "bound": " to "}.get(statement.kind, " and ")
    return Evidence(between.join(parts), "", (statement.quoted, value, *statement.limits))


def printed(statement: Statement, runs: Runs, found: None) -> Evidence:
    """Two accuracies that the report prints, in per cent, each on n test images: is the first better by more than chance?"""
    (first, second), n = statement.arguments["per_cent"], statement.arguments["n"]
    p, interval, images = statistics.printed_difference(first / 100, second / 100, n)
    needed = f"{images:,} images needed per model" if images and p >= statistics.LEVEL else ""
    ours = f"{first - second:+.2f} points, {statistics.p_value(p)}"
    return Evidence(ours, statistics.in_points(interval), (p, first - second), needed)


def accuracy(statement: Statement, runs: Runs, found: Found) -> Evidence:
    """Test accuracy; with `epoch`, the validation accuracy after it; with `label`, one class's, compared with `printed`."""
    arguments = statement.arguments
    if "epoch" in arguments:
        accuracies = [run["history"][arguments["epoch"] - 1]["val_accuracy"] for run in found.first]
        n = found.first[0]["dataset"]["n_val"]
    elif "label" in arguments:
        rows = [run["test"]["confusion"][arguments["label"]] for run in found.first]
        accuracies, n = [row[arguments["label"]] / sum(row) for row in rows], sum(rows[0])
    else:
        accuracies, n = [run["test"]["accuracy"] for run in found.first], found.first[0]["test"]["n"]
    low, high = statistics.accuracy_interval(accuracies, n)
    judged = (arguments.get("printed", statement.quoted), accuracies, n)
    return Evidence(f"{np.mean(accuracies):.2%}", f"{low:.2%} to {high:.2%}", judged)


def loss(statement: Statement, runs: Runs, found: Found) -> Evidence:
    """The validation loss of an experiment after its last epoch."""
    losses = [run["history"][-1]["val_loss"] for run in found.first]
    interval = "{:.4f} to {:.4f}".format(*statistics.prediction_interval(losses, 0)) if len(losses) > 1 else ""
    return Evidence(f"{np.mean(losses):.4f}", interval, (statement.quoted, losses))


def paired(statement: Statement, runs: Runs, found: Found) -> Evidence:
    """The first experiment has the higher test accuracy; with `margin` (a fraction), the two differ by less than that."""
    pair = statistics.Paired.of(*([predictions(run, runs.folder) for run in side] for side in (found.first, found.second)))
    ours, interval = f"{100 * pair.difference:+.2f} points", statistics.in_points(pair.interval)
    needed = "" if len(pair.by_seed) > 1 else "a second seed needed"
    if margin := statement.arguments.get("margin"):
        how = f"; margin {100 * margin:.2f} points, {statement.arguments['why']}"
        return Evidence(ours, interval, (pair, margin), needed, how)
    ours += f" ({pair.only_first} : {pair.only_second} images), {statistics.p_value(pair.p)}"
    return Evidence(ours, interval, (pair,), needed)


def lower_loss(statement: Statement, runs: Runs, found: Found) -> Evidence:
    """The first experiment has the lower test loss."""
    differences = [one["test"]["loss"] - two["test"]["loss"] for one, two in zip(found.first, found.second, strict=True)]
    interval = f"{min(differences):+.4f} to {max(differences):+.4f}" if len(differences) > 1 else "a second seed needed"
    return Evidence(f"{np.mean(differences):+.4f}", interval, (differences,))


def each_epoch(statement: Statement, runs: Runs, found: Found) -> Evidence:
    """After every epoch, validation accuracy exceeds the second experiment's or, without a second, training accuracy."""
    higher = [
        mine["val_accuracy"] > (theirs["val_accuracy"] if found.second else mine["train_accuracy"])
        for one, other in zip(found.first, found.second or found.first, strict=True)
        for mine, theirs in zip(one["history"], other["history"], strict=False)
    ]
    return Evidence(f"in {sum(higher)} of {len(higher)} epochs", "", (sum(higher), len(higher), len(found.first)))


def cost(statement: Statement, runs: Runs, found: Found) -> Evidence:
    """A training epoch of the first experiment takes longer than one of the second, on the same device."""
    devices = {run["environment"]["device"] for run in found.first + found.second}
    if len(devices) > 1:
        raise NotYet
    first, second = (
        np.percentile([row["train_seconds"] for run in side for row in run["history"]], (25, 50, 75))
        for side in (found.first, found.second)
    )
    (low, middle, high), device = first / second[::-1], devices.pop()
    judged, needed = ((0.0, math.inf), "needs runs on a GPU") if device.startswith("CPU") else ((low, high), "")
    return Evidence(f"×{middle:.2f}", f"×{low:.2f} to ×{high:.2f}", (judged,), needed, f"; on {device}")


KINDS: dict[str, tuple[Callable[[Statement, Runs, Found | None], Evidence], Callable[..., str]]] = {
    "count": (measured, rules.count),
    "structure": (measured, rules.structure),
    "bound": (measured, rules.bound),
    "similar sizes": (measured, rules.similar),
    "each one": (measured, rules.each),
    "self-consistency": (measured, rules.consistency),
    "printed difference": (printed, rules.chance),
    "accuracy": (accuracy, rules.accuracy),
    "loss": (loss, rules.loss),
    "comparison": (paired, rules.comparison),
    "closeness": (paired, rules.closeness),
    "lower loss": (lower_loss, rules.lower),
    "each epoch": (each_epoch, rules.each_epoch),
    "cost": (cost, rules.cost),
}
TRAINED = [kind for kind, (check, _) in KINDS.items() if check not in (measured, printed)]  # judged by trained networks
