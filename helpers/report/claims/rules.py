"""The rule that gives the verdict, for every kind of statement; the rules' docstrings are printed in the table's key."""

import math
from collections.abc import Sequence

import numpy as np

from helpers.report.statistics import LEVEL, Paired, accuracy_interval, fraction_range, prediction_interval, printed_range

HOLDS, APPROXIMATELY, DOES_NOT = "holds", "holds approximately", "does not hold"
CONTRADICTS, CANNOT_TELL, NOT_YET = "contradicts itself", "cannot be told from the data", "not yet run"
VERDICTS = (HOLDS, APPROXIMATELY, DOES_NOT, CONTRADICTS, CANNOT_TELL, NOT_YET)

NEAR, WIDEST, FAR = 0.02, 0.10, 0.10  # for an accuracy: "approximately", the widest conclusive interval, too far off for one


def count(quoted: str, ours: float) -> str:
    """A number that follows from a network or a data set, without chance.

    *Holds* when ours, rounded like the report's, is the report's; *approximately* within 1 % of it; else it *does not hold*.
    """
    low, high = printed_range(quoted)
    middle = (low + high) / 2
    if low <= ours <= high or math.isclose(ours, middle):
        return HOLDS
    return APPROXIMATELY if abs(ours - middle) <= 0.01 * middle else DOES_NOT


def structure(quoted: str, ours: str) -> str:
    """A shape, a list of sizes or a property of a network. *Holds* when ours is the same; else it *does not hold*."""
    return HOLDS if quoted == ours else DOES_NOT


def bound(quoted: str, ours: float | tuple[float, float], low: float = -math.inf, high: float = math.inf) -> str:
    """A limit, such as "more than", "below", "tens of millions". *Holds* when ours (or all of a range) lies between the limits
    that `how` names; else it *does not hold*.
    """
    return HOLDS if low <= np.min(ours) and np.max(ours) <= high else DOES_NOT


def similar(quoted: str, sizes: tuple[float, float]) -> str:
    """Two sizes that are "similar" or "roughly the same". *Holds* within 5 % of one another, *approximately* within 10 %."""
    ratio = max(sizes) / min(sizes)
    return HOLDS if ratio <= 1.05 else APPROXIMATELY if ratio <= 1.1 else DOES_NOT


def each(quoted: str, times_of: tuple[int, int]) -> str:
    """What is so of "every layer". *Holds* when it is so each time, *approximately* at least 95 times in a hundred; else it
    *does not hold*.
    """
    times, of = times_of
    return HOLDS if times == of else APPROXIMATELY if times >= 0.95 * of else DOES_NOT


def consistency(quoted: str, ours: str | float) -> str:
    """Arithmetic on what the report itself prints. *Holds* when it comes out as printed, after rounding; else the report
    *contradicts itself*. `ours` is what the arithmetic gives; which of the two places is right is not said by that.
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
    """An accuracy (on the test images, on one class of them, or on the validation images after an epoch), against the 95 %
    prediction interval of one further run (mean ± t s √(1 + 1/k) over k seeds). *Holds* when the printed value, as rounded,
    meets the interval and the interval is at most 10 points wide; *approximately* when it is at most 2 points outside; it
    *does not hold* when it is farther outside. Otherwise a wider interval says too little: it *cannot be told*. With one seed,
    whose Wilson interval is shown, it *cannot be told* either, unless the printed value is more than 10 points outside: then
    it *does not hold*.
    """
    interval, printed = accuracy_interval(accuracies, n), fraction_range(quoted)
    if len(accuracies) == 1:
        return DOES_NOT if max(interval[0] - printed[1], printed[0] - interval[1]) > FAR else CANNOT_TELL
    return _by_interval(printed, interval, NEAR, WIDEST)


def loss(quoted: str, losses: Sequence[float]) -> str:
    """A validation loss, against the prediction interval over seeds like an accuracy: *approximately* is at most 10 % of the
    mean outside, and an interval wider than 20 % of the mean says too little. With one seed it *cannot be told*.
    """
    if len(losses) == 1:
        return CANNOT_TELL
    mean = float(np.mean(losses))
    return _by_interval(printed_range(quoted), prediction_interval(losses, 0), 0.1 * mean, 0.2 * mean)


def comparison(paired: Paired) -> str:
    """One model that is better than another: both on the same test images under the same seeds. An image counts for the model
    that got it right under more seeds; then an exact binomial test on the images that count (with one seed this is McNemar's).
    Where p is below 0.05 and two seeds or more agree, the statement *holds* or *does not hold*; else it *cannot be told*, and
    the interval column says how many more images would tell, at 80 % power (Connor 1987). Such a p is about these trained
    networks; that two seeds agree happens half the time by luck. Two models that differ in more than the statement names do
    not tell either.
    """
    if paired.p >= LEVEL or not paired.agree:
        return CANNOT_TELL
    return HOLDS if paired.difference > 0 else DOES_NOT


def closeness(paired: Paired, margin: float) -> str:
    """Two accuracies that are "close", by a margin that `how` names. With two seeds or more it *holds* when the whole 95 %
    interval of the paired difference lies inside the margin, and *does not hold* when it lies outside; otherwise it *cannot be
    told*, and the interval column says how many more images would tell if the difference stayed.
    """
    low, high = paired.interval
    if len(paired.by_seed) < 2:
        return CANNOT_TELL
    return HOLDS if -margin <= low and high <= margin else DOES_NOT if low > margin or high < -margin else CANNOT_TELL


def lower(differences: Sequence[float]) -> str:
    """The lower of two test losses, seed by seed. With two seeds or more that agree it *holds* or *does not hold*; where they
    disagree, or there is one only, it *cannot be told*.
    """
    if len(differences) < 2 or min(differences) <= 0 <= max(differences):
        return CANNOT_TELL
    return HOLDS if max(differences) < 0 else DOES_NOT


def each_epoch(times: int, of: int, seeds: int) -> str:
    """What is so "at each epoch". With two seeds or more it *holds* when it is so each time, *approximately* at least 95 times
    in a hundred, and else *does not hold*; with one it *cannot be told*.
    """
    return CANNOT_TELL if seeds < 2 else each("", (times, of))


def cost(ratio: tuple[float, float]) -> str:
    """What takes longer: seconds of a training epoch, the first's over the second's, on one device. The interval is from the
    lower quartile over the other's upper one to the reverse. *Holds* when all of it is above 1, *does not hold* when all is
    below, else it *cannot be told*.
    """
    if ratio[0] <= 1 <= ratio[1]:
        return CANNOT_TELL
    return HOLDS if ratio[0] > 1 else DOES_NOT


def chance(p: float, difference: float) -> str:
    """One model that is better than another by the accuracies that the report itself prints, as if each had been tested on
    images of its own, for its predictions are not published. *Holds* when p is below 0.05, *contradicts itself* when so for the
    reverse, else it *cannot be told*; the interval column says how many images for each would tell (Chow, Shao and Wang 2008).
    Such a verdict is about the printed numbers: what another seed would give is not in them, for they are of one run each. Two
    models that were not trained alike do not tell either.
    """
    if p >= LEVEL:
        return CANNOT_TELL
    return HOLDS if difference > 0 else CONTRADICTS
