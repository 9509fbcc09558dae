"""Intervals, paired tests and sample sizes, pinned to closed forms and to the report's own numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.report import statistics as intervals
from helpers.report.statistics import Paired


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
    one, other = ({"true": true, "predicted": predicted} for predicted in (first, second))
    paired = Paired.of([one], [other])
    assert (paired.only_first, paired.only_second) == (6, 1)
    assert paired.p == pytest.approx(2 * (1 + 7) / 2**7)  # two tails of at most one success in seven
    same = Paired.of([one], [one])
    assert (same.only_first, same.only_second, same.p) == (0, 0, 1.0)


def test_a_pair_with_different_test_images_is_refused():
    one, other = ({"true": np.array(true), "predicted": np.array([0, 1])} for true in ([0, 1], [1, 1]))
    with pytest.raises(ValueError, match="different test images"):
        Paired.of([one, one], [one, other])


def right(*wrong, n=40):
    """Whether each of n images is classified correctly: all except these."""
    answers = np.ones(n, bool)
    answers[list(wrong)] = False
    return answers


MUCH_WORSE = right(*range(10))


def test_one_seed_is_mcnemars_exact_test():
    first, second = right(1), right(2, 3, 4, 5, 6, 7)
    paired = Paired([first], [second])
    assert (paired.only_first, paired.only_second, paired.p) == (6, 1, 0.125)
    assert paired.difference == pytest.approx(5 / 40)


def test_an_image_counts_once_over_seeds():
    # Image 0: each is better with one seed, so no vote. Image 1: the first with both seeds. Image 2: the second with one.
    paired = Paired([right(0, 2, n=3), right(n=3)], [right(1, n=3), right(0, 1, n=3)])
    assert paired.right.tolist() == [[-1, 1, -1], [1, 1, 0]]
    assert (paired.only_first, paired.only_second, paired.p) == (1, 1, 1.0)
    assert paired.by_seed.tolist() == pytest.approx([-1 / 3, 2 / 3]) and not paired.agree


def test_the_interval_covers_every_seed():
    paired = Paired([right()] * 2, [right(0), right(*range(20))])
    assert paired.interval[0] <= 1 / 40 and paired.interval[1] >= 20 / 40
    one = Paired([right()], [right(0, 1, 2, 3)])
    # Differences of 1 on 4 of 40 images: mean 0.1, deviation √(0.1 · 0.9), half-width 1.96 √(0.09 / 40).
    assert one.interval == pytest.approx((0.1 - 1.959964 * math.sqrt(0.09 / 40), 0.1 + 1.959964 * math.sqrt(0.09 / 40)))


def test_printed_differences_in_closed_form():
    p, interval, needed = intervals.printed_difference(0.8333, 0.7946, 258)
    # z = 0.0387 / √(2 · 0.81395 · 0.18605 / 258) = 1.1296
    assert p == pytest.approx(0.2587, abs=5e-4)
    assert interval == pytest.approx((0.0387 - 0.0671, 0.0387 + 0.0671), abs=5e-4)
    assert needed == 1584
    assert intervals.printed_difference(0.5, 0.5, 100)[2] is None


def test_the_prediction_interval_of_one_further_run_in_closed_form():
    # Seeds 0.80, 0.82, 0.84: s = 0.02, half-width t(2) · 0.02 · √(4 / 3), t(2) = 4.302653. Two: t(1) = 12.706205, √(3 / 2).
    half = 4.302652729911275 * 0.02 * math.sqrt(4 / 3)
    assert intervals.prediction_interval([0.80, 0.82, 0.84]) == pytest.approx((0.82 - half, 0.82 + half))
    half = 12.706204736432095 * 0.01 * math.sqrt(2) / 2 * math.sqrt(3 / 2)
    assert intervals.prediction_interval([0.5, 0.51]) == pytest.approx((0.505 - half, 0.505 + half))
    assert intervals.prediction_interval([0.7, 0.9], 0, 1) == (0, 1), "clipped to the possible accuracies"


def test_one_seed_has_a_wilson_interval_and_more_seeds_a_prediction_interval():
    assert intervals.accuracy_interval([208 / 258], 258) == intervals.wilson(208, 258)
    assert intervals.accuracy_interval([0.8, 0.8], 258) == pytest.approx((0.8, 0.8))
    runs = [0.8, 0.82], [0.8, 0.82, 0.8, 0.82]
    widths = [high - low for low, high in (intervals.accuracy_interval(accuracies, 258) for accuracies in runs)]
    assert widths[1] < widths[0] / 4, "more seeds make it harder to pass, not easier"


@given(st.lists(st.integers(0, 258), min_size=1, max_size=6))
def test_a_mean_never_lies_outside_the_interval_beside_it(correct):
    accuracies = [right / 258 for right in correct]
    low, high = intervals.accuracy_interval(accuracies, 258)
    assert 0 <= low <= high <= 1 and low - 1e-12 <= np.mean(accuracies) <= high + 1e-12


@pytest.mark.parametrize(
    ("quoted", "low", "high"),
    [
        ("0.91", 0.905, 0.915),
        ("4,761,770", 4_761_769.5, 4_761_770.5),
        ("25.5×10^6", 25.45e6, 25.55e6),
        ("79.46 %", 0.79455, 0.79465),
        ("below 5 million", 4.5e6, 5.5e6),
        ("90-91%", 0.90, 0.91),
    ],
)
def test_a_printed_number_stands_for_every_value_that_rounds_to_it(quoted, low, high):
    assert intervals.printed_range(quoted) == pytest.approx((low, high), rel=1e-12)


def test_accuracies_printed_in_three_ways_are_the_same():
    assert intervals.fraction_range("0.91") == intervals.fraction_range("91 %") == pytest.approx((0.905, 0.915))
    assert intervals.fraction_range("91") == pytest.approx((0.905, 0.915))
    with pytest.raises(ValueError, match="'greatly' has no number"):
        intervals.printed_range("greatly")
