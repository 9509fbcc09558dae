"""What a number proves: a rule for each kind of statement, and its statistics. The rules' docstrings are the table's key."""

import math
import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, norm

from helpers.report.statistics import wilson

HOLDS, APPROXIMATELY, DOES_NOT = "holds", "holds approximately", "does not hold"
CONTRADICTS, CANNOT_TELL, NOT_YET = "contradicts itself", "cannot be told from the data", "not yet run"
VERDICTS = (HOLDS, APPROXIMATELY, DOES_NOT, CONTRADICTS, CANNOT_TELL, NOT_YET)

LEVEL, POWER = 0.05, 0.8


def printed_range(quoted: str) -> tuple[float, float]:
    """The values that a printed number may stand for: `0.91` is 0.905 to 0.915, `90-91 %` is what it says.

    Thousands have commas; `%`, `million` and `×10^n` are read.

    Raises:
        ValueError: no number is in the text.
    """
    found = re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"×10\^\d+", "", quoted))
    if not found:
        raise ValueError(f"'{quoted}' has no number.")
    digits = [text.replace(",", "") for text in found]
    power = re.search(r"×10\^(\d+)", quoted)
    unit = 0.01 if "%" in quoted else 1e6 if "million" in quoted else 10.0 ** int(power[1]) if power else 1.0
    if len(digits) == 2:
        return float(digits[0]) * unit, float(digits[1]) * unit
    half = 0.5 * 10.0 ** -len(digits[0].partition(".")[2])
    return (float(digits[0]) - half) * unit, (float(digits[0]) + half) * unit


def fraction_range(quoted: str) -> tuple[float, float]:
    """The same for an accuracy, as a fraction: the reports write 0.91, 91 % and 91 for the same."""
    low, high = printed_range(quoted)
    return (low / 100, high / 100) if high > 1.5 else (low, high)


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


def bound(ours: float, low: float, high: float) -> str:
    """A limit, such as "more than", "below", "tens of millions". *Holds* when ours lies between the limits that `how` names;
    else it *does not hold*.
    """
    return HOLDS if low <= ours <= high else DOES_NOT


def similar(first: float, second: float) -> str:
    """Two sizes that are "similar" or "roughly the same". *Holds* within 5 % of one another, *approximately* within 10 %."""
    ratio = max(first, second) / min(first, second)
    return HOLDS if ratio <= 1.05 else APPROXIMATELY if ratio <= 1.1 else DOES_NOT


def consistency(quoted: str, ours: str | float) -> str:
    """Arithmetic on what the report itself prints. *Holds* when it comes out as printed, after rounding; else the report
    *contradicts itself*. `ours` is what the arithmetic gives; which of the two places is right is not said by that.
    """
    if isinstance(ours, str):
        return HOLDS if quoted == ours else CONTRADICTS
    low, high = printed_range(quoted)
    return HOLDS if low - 1e-9 <= ours <= high + 1e-9 else CONTRADICTS


def accuracy_interval(accuracies: Sequence[float], n: int) -> tuple[float, float]:
    """The 95 % Wilson intervals of all seeds together, from the lowest end to the highest.

    A report prints one run, so the question is whether a run of ours may have come out like that; an interval for the
    mean over seeds would shrink with every seed, and with two seeds Student's t makes it several times too wide.
    """
    lows, highs = zip(*(wilson(round(accuracy * n), n) for accuracy in accuracies), strict=True)
    return min(lows), max(highs)


def accuracy(quoted: str, interval: tuple[float, float]) -> str:
    """An accuracy (on the test images, on one class of them, or on the validation images after an epoch), against the full runs
    of the same experiment: ours is the mean over seeds, and the interval reaches over the 95 % Wilson intervals of all seeds.
    *Holds* when the printed value, as rounded, meets the interval; *approximately* when it is at most 2 points outside; else it
    *does not hold*.
    """
    low, high = fraction_range(quoted)
    outside = max(interval[0] - high, low - interval[1])
    return HOLDS if outside <= 0 else APPROXIMATELY if outside <= 0.02 else DOES_NOT


def loss(quoted: str, losses: Sequence[float]) -> str:
    """A loss, against the full runs of the same experiment; the interval is the range over seeds. *Holds* when the printed
    value, as rounded, lies in it, *approximately* when the mean is within 10 % of it. Otherwise it *does not hold*, or, where
    there is one seed only, it *cannot be told*: nothing says how much a second would differ.
    """
    low, high = printed_range(quoted)
    if low <= max(losses) and high >= min(losses):
        return HOLDS
    if abs(float(np.mean(losses)) * 2 / (low + high) - 1) <= 0.1:
        return APPROXIMATELY
    return CANNOT_TELL if len(losses) == 1 else DOES_NOT


class Paired:
    """Two models on the same test images under the same seeds: `right` (seeds, images), +1 where only the first is right.

    An image counts for the model that got it right under more seeds, so that no image counts twice; with one seed that is
    McNemar's exact test.
    """

    def __init__(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]):
        """Args: whether each model was right, a boolean array (images,) for each seed."""
        self.right = np.stack(first).astype(int) - np.stack(second).astype(int)
        votes = self.right.sum(axis=0)
        self.only_first, self.only_second = int((votes > 0).sum()), int((votes < 0).sum())
        discordant = self.only_first + self.only_second
        self.p = binomtest(self.only_first, discordant).pvalue if discordant else 1.0
        self.by_seed = self.right.mean(axis=1)
        self.difference = float(self.by_seed.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % normal interval of the difference in accuracy over images, widened to reach over every seed's difference."""
        half = norm.ppf(1 - LEVEL / 2) * self.right.mean(axis=0).std() / math.sqrt(self.right.shape[1])
        return min(self.difference - half, self.by_seed.min()), max(self.difference + half, self.by_seed.max())

    @property
    def agree(self) -> bool:
        """Whether there are two seeds or more, and the difference has the same sign in all of them."""
        return len(self.by_seed) > 1 and bool((self.by_seed > 0).all() or (self.by_seed < 0).all())

    def needed(self) -> str:
        """In words, how many more images, and how many more seeds, it would take to tell the two apart."""
        seeds, images = self.right.shape
        if self.difference == 0 or self.only_first == self.only_second:
            return "no difference to be told"
        more = max(1, images_needed(self.only_first / images, self.only_second / images) - images)
        deviation = float(self.by_seed.std(ddof=1)) if seeds > 1 else None
        told = f"told by {more:,} more images" if self.p >= LEVEL else "told by these images"
        if deviation is None:
            return f"{told}; a second seed at least"
        wanted = seeds_needed(self.difference, deviation) - seeds
        return f"{told} or {wanted} more seed{'s' * (wanted > 1)}" if wanted > 0 else told

    def needed_inside(self, margin: float) -> str:
        """In words, how many more images would bring the whole interval inside the margin, were the difference the true one."""
        images = self.right.shape[1]
        room = margin - max(abs(self.difference), *abs(self.by_seed))
        if room <= 0:
            return "no number of images brings it inside"
        half = norm.ppf(1 - LEVEL / 2) * self.right.mean(axis=0).std()
        return f"inside with {max(1, math.ceil((half / room) ** 2) - images):,} more images"


def images_needed(only_first: float, only_second: float) -> int:
    """Test images for McNemar's test to tell two models apart, from the share of images that only one gets right.

    n = (z(1 − α/2) √ψ + z(power) √(ψ − δ²))² / δ² with ψ the sum and δ the difference of the shares; α 5 %, power 80 %.
    Source: Connor 1987, Biometrics 43, 207–211.
    """
    total, difference = only_first + only_second, only_first - only_second
    alpha, beta = norm.ppf(1 - LEVEL / 2), norm.ppf(POWER)
    root = alpha * math.sqrt(total) + beta * math.sqrt(total - difference**2)
    return math.ceil(root**2 / difference**2)


def seeds_needed(difference: float, deviation: float) -> int:
    """Seeds for a paired t test over seeds to tell a mean difference whose standard deviation over seeds is known.

    n = (z(1 − α/2) + z(power))² s² / δ² + z(1 − α/2)² / 2, at least 2.
    Source: Guenther 1981, The American Statistician 35, 243–244.
    """
    alpha, beta = norm.ppf(1 - LEVEL / 2), norm.ppf(POWER)
    return max(2, math.ceil((alpha + beta) ** 2 * deviation**2 / difference**2 + alpha**2 / 2))


def comparison(paired: Paired, stand_in: bool = False) -> str:
    """One model that is better than another: both on the same test images under the same seeds. An image counts for the model
    that got it right under more seeds; then an exact binomial test on the images that count (with one seed this is McNemar's).
    Where p is 0.05 or more it *cannot be told*; the interval column then says how many more images (Connor 1987) or seeds
    (Guenther 1981) would tell, at 80 % power. Where p is less, the statement *holds* or *does not hold* if two seeds or more
    agree. One seed, or runs on less data or other images that stand in for those of the report, say no more than *holds
    approximately* or *cannot be told*.
    """
    if paired.p >= LEVEL:
        return CANNOT_TELL
    firm = paired.agree and not stand_in
    if paired.difference > 0:
        return HOLDS if firm else APPROXIMATELY
    return DOES_NOT if firm else CANNOT_TELL


def closeness(paired: Paired, margin: float, stand_in: bool = False) -> str:
    """Two accuracies that are "close", by a margin that `how` names. *Holds* when the whole 95 % interval of the paired
    difference lies inside the margin, *does not hold* when it lies outside; otherwise it *cannot be told*, and the interval
    column says how many more images would tell if the difference stayed. One seed, or runs that stand in: as in a comparison.
    """
    low, high = paired.interval
    firm = len(paired.by_seed) > 1 and not stand_in
    if -margin <= low and high <= margin:
        return HOLDS if firm else APPROXIMATELY
    return DOES_NOT if firm and (low > margin or high < -margin) else CANNOT_TELL


def lower(differences: Sequence[float], stand_in: bool = False) -> str:
    """The lower of two test losses, seed by seed. With two seeds or more that agree it *holds* or *does not hold*; where they
    disagree, or there is one only, it *cannot be told*. Runs that stand in: as in a comparison.
    """
    if len(differences) < 2 or not (min(differences) > 0 or max(differences) < 0):
        return CANNOT_TELL
    if max(differences) < 0:
        return APPROXIMATELY if stand_in else HOLDS
    return CANNOT_TELL if stand_in else DOES_NOT


def each(times: int, of: int, stand_in: bool = False) -> str:
    """What is so "at each epoch", of "every layer". *Holds* when it is so each time, *approximately* 95 times in a hundred;
    else it *does not hold*. Runs that stand in: as in a comparison.
    """
    if times < 0.95 * of:
        return CANNOT_TELL if stand_in else DOES_NOT
    return HOLDS if times == of and not stand_in else APPROXIMATELY


def cost(ratio: tuple[float, float], stand_in: bool = False) -> str:
    """What takes longer: seconds of a training epoch, the first's over the second's, on one device. The interval is from the
    lower quartile over the other's upper one to the reverse. *Holds* when all of it is above 1, *does not hold* when all is
    below, else it *cannot be told*. Runs that stand in: as in a comparison.
    """
    if ratio[0] > 1:
        return APPROXIMATELY if stand_in else HOLDS
    return DOES_NOT if ratio[1] < 1 and not stand_in else CANNOT_TELL


def printed_difference(first: float, second: float, n: int) -> tuple[float, tuple[float, float], int | None]:
    """Two printed accuracies on n test images each: two-sided p (pooled normal test), 95 % interval of their difference,
    and how many images for each would tell them apart, None where they are equal.

    Source: Fleiss, Levin and Paik 2003, chapter 3, without continuity correction; Chow, Shao and Wang 2008, section 4.2:
    n = (z(1 − α/2) + z(power))² (p(1 − p) + q(1 − q)) / (p − q)².
    """
    difference, pooled = first - second, (first + second) / 2
    spread = first * (1 - first) + second * (1 - second)
    half = norm.ppf(1 - LEVEL / 2) * math.sqrt(spread / n)
    p = 2 * norm.sf(abs(difference) / math.sqrt(2 * pooled * (1 - pooled) / n))
    needed = (norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) ** 2 * spread / difference**2 if difference else None
    return float(p), (difference - half, difference + half), needed and math.ceil(needed)


def chance(p: float, difference: float) -> str:
    """One model that is better than another by the accuracies that the report itself prints, as if each had been tested on
    images of its own, for its predictions are not published. *Holds* when p is below 0.05, *contradicts itself* when so for the
    reverse, else it *cannot be told*; the interval column says how many images for each would tell (Chow, Shao and Wang 2008).
    """
    if p >= LEVEL:
        return CANNOT_TELL
    return HOLDS if difference > 0 else CONTRADICTS


RULES = {
    "count": count,
    "structure": structure,
    "bound": bound,
    "similar sizes": similar,
    "self-consistency": consistency,
    "accuracy": accuracy,
    "loss": loss,
    "comparison": comparison,
    "closeness": closeness,
    "lower loss": lower,
    "each one": each,
    "cost": cost,
    "printed difference": chance,
}
