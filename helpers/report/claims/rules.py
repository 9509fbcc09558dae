"""The rule that gives the verdict, for every kind of statement; the rules' docstrings are printed in the table's key."""

from collections.abc import Sequence

import numpy as np

from helpers.report.statistics import LEVEL, Paired, accuracy_interval, fraction_range, prediction_interval, printed_range

HOLDS, APPROXIMATELY, DOES_NOT = "holds", "holds approximately", "does not hold"
CONTRADICTS, CANNOT_TELL, NOT_YET = "contradicts itself", "cannot be told from the data", "not yet run"
VERDICTS = (HOLDS, APPROXIMATELY, DOES_NOT, CONTRADICTS, CANNOT_TELL, NOT_YET)

NEAR, WIDEST, FAR = 0.02, 0.10, 0.10  # an accuracy: "approximately", widest conclusive interval, "does not hold" with one seed


def count(quoted: str, ours: float) -> str:
    """A number that follows from a network or a data set, without chance.

    *Holds* if ours, rounded the same way, equals the printed number; *approximately* within 1 % of it; else *does not hold*.
    """
    low, high = printed_range(quoted)
    middle = (low + high) / 2
    return HOLDS if low <= ours <= high else APPROXIMATELY if abs(ours - middle) <= 0.01 * middle else DOES_NOT


def structure(quoted: str, ours: str) -> str:
    """A shape, a list of sizes or a property of a network. *Holds* if ours is the same; otherwise *does not hold*."""
    return HOLDS if quoted == ours else DOES_NOT


def bound(quoted: str, ours: float | tuple[float, float], low: float, high: float) -> str:
    """A limit such as "more than", "below" or "tens of millions". *Holds* if ours (or the whole range) lies within the limits
    given in `how`; otherwise *does not hold*.
    """
    return HOLDS if low <= np.min(ours) and np.max(ours) <= high else DOES_NOT


def similar(quoted: str, sizes: tuple[float, float]) -> str:
    """Two sizes that are "similar" or "roughly the same". *Holds* within 5 % of each other, *approximately* within 10 %."""
    ratio = max(sizes) / min(sizes)
    return HOLDS if ratio <= 1.05 else APPROXIMATELY if ratio <= 1.1 else DOES_NOT


def each(quoted: str, times_of: tuple[int, int]) -> str:
    """A claim about "every layer". *Holds* if always true, *approximately* in at least 95 % of cases, else *does not hold*."""
    times, of = times_of
    return HOLDS if times == of else APPROXIMATELY if times >= 0.95 * of else DOES_NOT


def consistency(quoted: str, ours: str | float) -> str:
    """Arithmetic on what the report itself prints. *Holds* if the result, rounded, is what is printed; otherwise the report
    *contradicts itself*. `ours` is the result of the arithmetic; this does not say which of the two places is right.
    """
    if isinstance(ours, str):
        return HOLDS if quoted == ours else CONTRADICTS
    low, high = printed_range(quoted)
    return HOLDS if low - 1e-9 <= ours <= high + 1e-9 else CONTRADICTS


def _by_interval(printed: tuple[float, float], interval: tuple[float, float], near: float, widest: float) -> str:
    outside = max(interval[0] - printed[1], printed[0] - interval[1])
    if outside > near:
        return DOES_NOT
    if interval[1] - interval[0] > widest:
        return CANNOT_TELL
    return HOLDS if outside <= 0 else APPROXIMATELY


def accuracy(quoted: str, accuracies: Sequence[float], n: int) -> str:
    """An accuracy on the test images, on one class of them, or on the validation images after an epoch, against the 95 %
    prediction interval for one further run (mean ± t s √(1 + 1/k) over k seeds). *Does not hold* if the printed value, as
    rounded, is more than 2 points outside. Otherwise *cannot be told* if the interval is more than 10 points wide; with a
    narrower one, *holds* if the printed value meets it and *approximately* if not. With one seed, whose Wilson interval is
    shown, *does not hold* if the printed value is more than 10 points outside; otherwise *cannot be told*.
    """
    limits = (NEAR, WIDEST) if len(accuracies) > 1 else (FAR, 0)  # with one seed, every interval counts as too wide
    return _by_interval(fraction_range(quoted), accuracy_interval(accuracies, n), *limits)


def loss(quoted: str, losses: Sequence[float]) -> str:
    """A validation loss, judged like an accuracy but with limits relative to the mean over seeds: 10 % of it instead of 2
    points, and 20 % of it instead of 10 points for the width. With one seed, *cannot be told*.
    """
    if len(losses) == 1:
        return CANNOT_TELL
    mean = float(np.mean(losses))
    return _by_interval(printed_range(quoted), prediction_interval(losses, 0), 0.1 * mean, 0.2 * mean)


def comparison(paired: Paired) -> str:
    """One model is better than another, both on the same test images with the same seeds. Each image counts for the model
    that got it right under more seeds; `ours` shows both counts, and an exact binomial test compares them (with one seed, this
    is McNemar's test). If p is below 0.05 and two or more seeds agree, the statement *holds* or *does not hold*; otherwise it
    *cannot be told*. Such a p is about these trained networks only; two seeds agree by luck half the time. If the models differ
    in more than the statement names, it *cannot be told* either.
    """
    if paired.p >= LEVEL or not paired.agree:
        return CANNOT_TELL
    return HOLDS if paired.difference > 0 else DOES_NOT


def closeness(paired: Paired, margin: float) -> str:
    """Two accuracies are "close", within a margin given in `how`. With two or more seeds, the statement *holds* if the whole
    95 % interval of the paired difference lies inside the margin, and *does not hold* if all of it lies outside; otherwise it
    *cannot be told*.
    """
    low, high = paired.interval
    if len(paired.by_seed) < 2:
        return CANNOT_TELL
    return HOLDS if -margin <= low and high <= margin else DOES_NOT if low > margin or high < -margin else CANNOT_TELL


def lower(differences: Sequence[float]) -> str:
    """The lower of two test losses, compared seed by seed. If two or more seeds all agree, the statement *holds* or *does not
    hold*; otherwise it *cannot be told*.
    """
    if len(differences) < 2 or min(differences) <= 0 <= max(differences):
        return CANNOT_TELL
    return HOLDS if max(differences) < 0 else DOES_NOT


def each_epoch(times: int, of: int, seeds: int) -> str:
    """A claim about "each epoch". With two or more seeds, *holds* if always true, *approximately* if in at least 95 % of
    epochs, otherwise *does not hold*. With one seed, *cannot be told*.
    """
    return CANNOT_TELL if seeds < 2 else each("", (times, of))


def cost(ratio: tuple[float, float]) -> str:
    """Training takes longer in one experiment: its seconds per epoch divided by the other's, on one device. The interval
    divides its lower quartile by the other's upper one, and its upper by the other's lower. *Holds* if all of it is above 1,
    *does not hold* if all of it is below; otherwise *cannot be told*, as on CPUs, where other work delays an epoch too often.
    """
    if ratio[0] <= 1 <= ratio[1]:
        return CANNOT_TELL
    return HOLDS if ratio[0] > 1 else DOES_NOT


def chance(p: float, difference: float) -> str:
    """One model is better than another by the accuracies that the report prints. Its predictions are not published, so each
    model is treated as if tested on its own set of images. *Holds* if p is below 0.05, *contradicts itself* if so for the
    reverse; otherwise *cannot be told*, and the interval column says how many images each model needs (Chow, Shao and Wang
    2008). The verdict is about the printed numbers, from one run each; it does not say what another seed would give. If the
    two models were not trained alike, it *cannot be told* either.
    """
    if p >= LEVEL:
        return CANNOT_TELL
    return HOLDS if difference > 0 else CONTRADICTS
