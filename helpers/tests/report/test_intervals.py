"""Intervals and paired tests, pinned to closed forms and to the report's own numbers."""

import numpy as np
import pytest

from helpers.experiments import records as results
from helpers.report import statistics as intervals
from helpers.tests.experiments.test_results import make_run


def test_wilson_interval_in_closed_form():
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = 0.8, n = 10, z = 1.959964
    assert intervals.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_the_reports_three_accuracies_lie_within_each_others_intervals():
    low, high = intervals.wilson(205, 258)  # 79.46 %
    assert (low, high) == pytest.approx((0.7411, 0.8394), abs=5e-4)
    assert low < 200 / 258 < high and low < 215 / 258 < high


def test_exact_mcnemar_is_a_binomial_test_on_the_discordant_pairs():
    true = np.zeros(20, int)
    first, second = np.zeros(20, int), np.zeros(20, int)
    first[:1] = 1  # one image only the second gets right
    second[5:11] = 1  # six images only the first gets right
    only_first, only_second, p = intervals.mcnemar({"true": true, "predicted": first}, {"true": true, "predicted": second})
    assert (only_first, only_second) == (6, 1)
    assert p == pytest.approx(2 * (1 + 7) / 2**7)  # two tails of at most one success in seven
    assert intervals.mcnemar({"true": true, "predicted": first}, {"true": true, "predicted": first}) == (0, 0, 1.0)


def test_mcnemar_refuses_other_images():
    with pytest.raises(ValueError, match="different test images"):
        intervals.mcnemar(
            {"true": np.array([0, 1]), "predicted": np.array([0, 1])},
            {"true": np.array([1, 1]), "predicted": np.array([0, 1])},
        )


def test_the_gap_over_seeds_is_the_paired_t_interval(tmp_path):
    """Differences of 0.2, 0.4 and 0.0: mean 0.2, standard error 0.2 / sqrt(3), t of two degrees of freedom 4.3027."""
    other = "pikachu/resnet18_torchvision"
    runs = [(0, 0, 0, 1, 0), (0, 0, 1, 0, 1), (0, 0, 0, 1, 1)], [(0, 0, 0, 1, 1), (0, 0, 0, 1, 1), (0, 0, 0, 1, 1)]
    for name, row in zip(("pikachu/resnext50_ours", other), runs, strict=True):
        for seed, predicted in enumerate(row):
            results.save(*make_run(name, seed, predicted=predicted), tmp_path)
    records = results.load_all(tmp_path)
    gap = intervals.gap_over_seeds(records, "pikachu/resnext50_ours", other)
    half = 4.302652729911275 * 0.2 / 3**0.5
    assert gap == pytest.approx((3, 0.2, 0.2 - half, 0.2 + half))
    two, mean, *_ = intervals.gap_over_seeds(records[:2] + records[3:], other, "pikachu/resnext50_ours")
    assert (two, mean) == (2, pytest.approx(-0.3))
    one, mean, low, high = intervals.gap_over_seeds([records[0], records[3]], "pikachu/resnext50_ours", other)
    assert (one, mean) == (1, pytest.approx(0.2)) and np.isnan([low, high]).all()
