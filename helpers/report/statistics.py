"""Uncertainty: intervals, paired tests, and the sample sizes that would tell two models apart."""

import math
import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, norm, t

LEVEL, POWER = 0.05, 0.8
Z_ALPHA, Z_POWER = float(norm.ppf(1 - LEVEL / 2)), float(norm.ppf(POWER))


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy (Wilson 1927), as fractions."""
    return binomtest(correct, n).proportion_ci(1 - LEVEL, method="wilson")


def prediction_interval(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """The interval in which one further run of the same experiment falls with 95 % probability, from two or more seeds.

    mean ± t(k − 1) s √(1 + 1/k) (Hahn and Meeker 1991, section 4.7), cut off at `low` and `high`; the mean lies inside.
    """
    seeds, mean = len(values), float(np.mean(values))
    half = float(t.ppf(1 - LEVEL / 2, seeds - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / seeds))
    return min(mean, max(low, mean - half)), max(mean, min(high, mean + half))


def accuracy_interval(accuracies: Sequence[float], n: int) -> tuple[float, float]:
    """The interval that another accuracy is judged by: for one seed, Wilson's on n images, else the prediction interval."""
    return wilson(round(accuracies[0] * n), n) if len(accuracies) == 1 else prediction_interval(accuracies, 0, 1)


class Paired:
    """Two models, same images and seeds; `right` (seeds, images): +1 if only the first is right, −1 if only the second.

    An image counts for the model that got it right under more seeds, so that no image counts twice; with one seed this is
    McNemar's exact test (McNemar 1947, as a binomial test on the images that only one got right). `first` and `second` have
    a boolean array (images,) for each seed, which says where that model was right.
    """

    def __init__(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]):
        self.right = np.stack(first).astype(int) - np.stack(second).astype(int)
        votes = self.right.sum(axis=0)
        self.only_first, self.only_second = int((votes > 0).sum()), int((votes < 0).sum())
        discordant = self.only_first + self.only_second
        self.p = binomtest(self.only_first, discordant).pvalue if discordant else 1.0
        self.by_seed = self.right.mean(axis=1)
        self.difference = float(self.by_seed.mean())
        half = float(Z_ALPHA * self.right.mean(axis=0).std()) / math.sqrt(len(votes))
        # The 95 % normal interval of the difference in accuracy over images, widened to cover every seed's difference.
        self.interval = min(self.difference - half, self.by_seed.min()), max(self.difference + half, self.by_seed.max())
        sign = np.sign(self.only_first - self.only_second)
        # Whether there are two or more seeds, and every seed's difference has the same sign as the vote over images.
        self.agree = len(self.by_seed) > 1 and bool((self.by_seed * sign > 0).all())

    @classmethod
    def of(cls, first: Sequence[dict[str, np.ndarray]], second: Sequence[dict[str, np.ndarray]]) -> "Paired":
        """From the predictions of each seed, `true` and `predicted` (images,); a ValueError if the test images differ."""
        if any(not np.array_equal(one["true"], other["true"]) for one, other in zip(first, second, strict=True)):
            raise ValueError("The two sets of predictions are of different test images.")
        return cls(*([arrays["predicted"] == arrays["true"] for arrays in side] for side in (first, second)))


def printed_difference(first: float, second: float, n: int) -> tuple[float, tuple[float, float], int | None]:
    """Two printed accuracies on n test images each: p-value, 95 % interval of their difference, and images needed.

    p is two-sided, from the pooled normal test; the images needed are for each accuracy, None if the two are equal.
    Source: Fleiss, Levin and Paik 2003, chapter 3, without continuity correction; Chow, Shao and Wang 2008, section 4.2:
    n = (z(1 − α/2) + z(power))² (p(1 − p) + q(1 − q)) / (p − q)².
    """
    difference, pooled = first - second, (first + second) / 2
    spread = first * (1 - first) + second * (1 - second)
    half = Z_ALPHA * math.sqrt(spread / n)
    p = 2 * norm.sf(abs(difference) / math.sqrt(2 * pooled * (1 - pooled) / n))
    needed = math.ceil((Z_ALPHA + Z_POWER) ** 2 * spread / difference**2) if difference else None
    return float(p), (difference - half, difference + half), needed


def printed_range(quoted: str) -> tuple[float, float]:
    """The range of values that a printed number may stand for: `0.91` is 0.905 to 0.915, `90-91 %` is 0.90 to 0.91.

    Understands commas between thousands, `%`, `million` and `×10^n`. Raises a ValueError if the text has no number.
    """
    digits = re.findall(r"\d+(?:\.\d+)?", re.sub(r"×10\^\d+|,", "", quoted))
    if not digits:
        raise ValueError(f"'{quoted}' has no number.")
    power = re.search(r"×10\^(\d+)", quoted)
    unit = 0.01 if "%" in quoted else 1e6 if "million" in quoted else 10.0 ** int(power[1]) if power else 1.0
    if len(digits) == 2:
        return float(digits[0]) * unit, float(digits[1]) * unit
    half = 0.5 * 10.0 ** -len(digits[0].partition(".")[2])
    return (float(digits[0]) - half) * unit, (float(digits[0]) + half) * unit


def fraction_range(quoted: str) -> tuple[float, float]:
    """`printed_range` of an accuracy, as fractions: the reports write 0.91, 91 % and 91 for the same value."""
    low, high = printed_range(quoted)
    return (low / 100, high / 100) if high > 1.5 else (low, high)


def in_points(interval: tuple[float, float]) -> str:
    """An interval of a difference between accuracies, in percentage points."""
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f} points"


def p_value(p: float) -> str:
    """A p-value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
