"""How sure a number is: confidence intervals and paired tests."""

import numpy as np
from scipy.stats import binomtest, ttest_rel


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy (Wilson 1927), as fractions."""
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return interval.low, interval.high


def mcnemar(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> tuple[int, int, float]:
    """Exact McNemar test of two models on the same images (McNemar 1947, as a binomial test on the discordant pairs).

    Returns:
        How many images only the first, and only the second, got right, and the two-sided p-value.

    Raises:
        ValueError: the two were not tested on the same images.
    """
    if not np.array_equal(first["true"], second["true"]):
        raise ValueError("The two sets of predictions are of different test images.")
    first_right = first["predicted"] == first["true"]
    second_right = second["predicted"] == second["true"]
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    return only_first, only_second, binomtest(only_first, discordant).pvalue if discordant else 1.0


def gap_over_seeds(records: list[dict], first: str, second: str) -> tuple[int, float, float, float]:
    """How much more accurate the second experiment is than the first, over the seeds that both were run with.

    Returns:
        The number of seeds, the mean difference of test accuracies, and its 95 % interval (paired t); the interval is
        NaN with fewer than two seeds, which say nothing about the spread.
    """
    one, other = (
        {record["seed"]: record["test"]["accuracy"] for record in records if record["experiment"] == name}
        for name in (first, second)
    )
    seeds = sorted(one.keys() & other.keys())
    before, after = [one[seed] for seed in seeds], [other[seed] for seed in seeds]
    mean = float(np.mean(after) - np.mean(before)) if seeds else float("nan")
    if len(seeds) < 2:
        return len(seeds), mean, float("nan"), float("nan")
    interval = ttest_rel(after, before).confidence_interval(0.95)
    return len(seeds), mean, float(interval.low), float(interval.high)
