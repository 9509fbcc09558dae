"""Statements that need no run: what the code gives, how large the data is, and arithmetic on the report itself."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from helpers import models
from helpers.data import cifar
from helpers.models import inspect as anatomy
from helpers.report.claims import verdicts
from helpers.report.claims.evidence import Evidence, Finding, NotYet, points, probability


@dataclass(frozen=True)
class Count:
    """A number that the code, or the data behind a record, gives."""

    kind = "count"
    how: str
    ours: Callable[[Evidence], float]
    form: str = "{:,}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        value = self.ours(evidence)
        return Finding(self.form.format(value), "", verdicts.count(quoted, value), self.how)


@dataclass(frozen=True)
class Structure:
    """A text that the code gives: a shape, sizes, a property."""

    kind = "structure"
    how: str
    ours: Callable[[Evidence], str]

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        value = self.ours(evidence)
        return Finding(value, "", verdicts.structure(quoted, value), self.how)


@dataclass(frozen=True)
class Bound:
    """A number of the code that must lie between two limits."""

    kind = "bound"
    what: str
    ours: Callable[[Evidence], float]
    low: float = -np.inf
    high: float = np.inf
    form: str = "{:,}"

    @property
    def how(self) -> str:
        limits = {"at least": self.low, "at most": self.high}
        return f"{self.what}: {' and '.join(f'{word} {limit:,.10g}' for word, limit in limits.items() if np.isfinite(limit))}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        value = self.ours(evidence)
        return Finding(self.form.format(value), "", verdicts.bound(value, self.low, self.high), self.how)


@dataclass(frozen=True)
class Each:
    """How many of how many are as it is said of each."""

    kind = "each one"
    how: str
    ours: Callable[[Evidence], tuple[int, int]]

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        times, of = self.ours(evidence)
        return Finding(f"{times} of {of}", "", verdicts.each(times, of), self.how)


@dataclass(frozen=True)
class Similar:
    """Two numbers of the code that are said to be about the same."""

    kind = "similar sizes"
    how: str
    first: Callable[[Evidence], float]
    second: Callable[[Evidence], float]

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        first, second = self.first(evidence), self.second(evidence)
        return Finding(f"{first:,} and {second:,}", "", verdicts.similar(first, second), self.how)


@dataclass(frozen=True)
class Arithmetic:
    """What the report's own printed numbers give."""

    kind = "self-consistency"
    how: str
    ours: Callable[[], str | float]
    form: str = "{:,}"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        value = self.ours()
        text = value if isinstance(value, str) else self.form.format(value)
        return Finding(text, "", verdicts.consistency(quoted, value), self.how)


@dataclass(frozen=True)
class Chance:
    """Two accuracies that the report prints, in per cent, each on n test images: is the first better by more than chance?"""

    kind = "printed difference"
    first: float
    second: float
    n: int

    @property
    def how(self) -> str:
        return f"printed: {self.first} % against {self.second} %, as if each on {self.n:,} test images of its own"

    def find(self, quoted: str, evidence: Evidence) -> Finding:
        p, interval, needed = verdicts.printed_difference(self.first / 100, self.second / 100, self.n)
        more = f"; told by {needed:,} images" if needed and p >= verdicts.LEVEL else ""
        difference = self.first - self.second
        ours = f"{difference:+.2f} points, {probability(p)}"
        return Finding(ours, points(interval) + more, verdicts.chance(p, difference), self.how)


def network(name: str, num_classes: int) -> nn.Module:
    """A named network without data. Raises NotYet where there is none of this name."""
    if name not in models.MODELS:
        raise NotYet
    return anatomy.network(name, num_classes)


def parameters(name: str, num_classes: int) -> Count:
    """The parameters of a named network."""
    how = f"parameters of models.build('{name}', {num_classes})"
    return Count(how, lambda _: models.count_parameters(network(name, num_classes)))


def size_of(name: str, num_classes: int, what: str, ours: Callable[[nn.Module], float], form: str = "{:,}") -> Count:
    """A number that follows from a named network."""
    return Count(f"{what} of models.build('{name}', {num_classes})", lambda _: ours(network(name, num_classes)), form)


def shape_of(name: str, num_classes: int, what: str, ours: Callable[[nn.Module], str]) -> Structure:
    """A text that follows from a named network."""
    return Structure(f"{what} of models.build('{name}', {num_classes})", lambda _: ours(network(name, num_classes)))


def each_of(name: str, num_classes: int, what: str, ours: Callable[[nn.Module], tuple[int, int]]) -> Each:
    """How many parts of a named network are as it is said of each."""
    return Each(f"{what} of models.build('{name}', {num_classes})", lambda _: ours(network(name, num_classes)))


def images(dataset: str, *splits: str) -> Count:
    """How many images the splits of a data set have, in a run record."""
    key = {"train": "n_train", "validation": "n_val", "test": "n_test"}
    how = f"images in {' and '.join(splits)} in a run record on {dataset}"

    def count(evidence: Evidence) -> int:
        for record in evidence.records:
            if record["dataset"]["name"].removesuffix("-jpeg") == dataset:
                return sum(record["dataset"][key[split]] for split in splits)
        raise NotYet

    return Count(how, count)


def published(dataset: str, count: Callable[[dict[str, int]], float]) -> Count:
    """A size of CIFAR: every load holds the data to the published counts, and a record shows that real data was loaded."""

    def counted(evidence: Evidence) -> float:
        evidence.of_data(dataset)
        return count(cifar.COUNTS)

    return Count(f"helpers.cifar.COUNTS, to which every load of {dataset} is held, and a run record on it", counted)


def pixels(dataset: str, sign: str) -> Structure:
    """The sides of CIFAR's images, such as `32x32`, to which every load holds them, as `published` does the counts."""

    def measured(evidence: Evidence) -> str:
        evidence.of_data(dataset)
        return f"{cifar.PIXELS}{sign}{cifar.PIXELS}"

    return Structure(f"helpers.cifar.PIXELS, to which every load of {dataset} is held, and a run record on it", measured)


def only(values: Iterable[float]) -> float:
    """The one value that all have; NaN, which equals nothing, where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else float("nan")


def tally(answers: Iterable[bool]) -> tuple[int, int]:
    """How many of the answers are yes, and how many there are."""
    answers = list(answers)
    return sum(answers), len(answers)
