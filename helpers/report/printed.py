"""Figures and tables printed in the reports, compared line by line with what their networks and recipes give."""

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from helpers import models, training
from helpers.experiments import recipes
from helpers.models.inspect import lines, network
from helpers.report import statistics
from helpers.report.claims.measures import printed_lines

# Report `slim`, figure 2: the learning rates printed at epochs 11 to 17, counted from 0.
SLIM_RATES = [0.0912902842758814, 0.08264049551198992, 0.01424664832292858, 0.014829184220305288]
SLIM_RATES += [0.08273569243054962, 0.09122470424783691, 0.023935585672309027]
# Report `zoo`, section 5.3: pairs of networks in which the second is only wider, or only deeper.
ZOO_STEPS = [("wider", *pair) for pair in pairwise(["wrn16_2", "wrn16_4", "wrn16_8", "wrn16_16"])]
ZOO_STEPS += [("wider", "wrn28_2", "wrn28_4"), ("deeper", "wrn16_2", "wrn28_2"), ("deeper", "wrn16_4", "wrn28_4")]


def amp_figure2() -> pd.DataFrame:
    """The lines of report `amp`'s figure 2, its network's summary, that do not match the network: printed and true value."""
    rows = []
    for number, (printed, true) in enumerate(zip(printed_lines(), lines(network("resnext29_under5m", 10), 32), strict=True), 1):
        if printed != true:
            layer = {"C": "Conv2d", "N": "BatchNorm2d", "B": "Block", "L": "Linear"}[printed.kind]
            shapes = [f"{line.channels}×{line.side}×{line.side}" for line in (printed, true)]
            rows.append((f"{layer}-{number}", *shapes, printed.parameters, true.parameters))
    return pd.DataFrame(rows, columns=["line", "printed output", "true output", "printed parameters", "true parameters"])


def slim_rates(batches: Sequence[int]) -> pd.DataFrame:
    """The learning rates in report `slim`'s log beside those of a cosine of 25 batches, for each count of batches per epoch.

    The log prints the scheduler's `get_lr()`, which extrapolates one step further when called between steps; so do these.
    """
    recipe = recipes.SLIM_FINAL
    low = recipe.lowest_learning_rate
    table = pd.DataFrame({"epoch": range(11, 18), "printed": SLIM_RATES})
    for n in batches:
        rates = [[training.learning_rate(recipe, end - step / n, n) - low for step in (1, 0)] for end in table["epoch"] + 1]
        table[f"{n:,} batches"] = [now / before * now + low for before, now in rates]
    return table


def zoo_steps() -> pd.DataFrame:
    """Report `zoo`'s steps in width and depth: the ratio of MACs, the points gained, their 95 % interval and p-value.

    Both treat each accuracy as measured on its own 10,000 test images.
    """
    rows = []
    for change, first, second in ZOO_STEPS:
        p, (low, high), _ = statistics.printed_difference(recipes.ZOO_REPORTED[second], recipes.ZOO_REPORTED[first], 10_000)
        macs = [models.count_macs(network(name, 100), (1, 3, 32, 32)) for name in (first, second)]
        rows.append((change, first, second, f"×{macs[1] / macs[0]:.1f}", 50 * (low + high), 100 * low, 100 * high, p))
    return pd.DataFrame(rows, columns=["change", "first", "second", "MACs", "points", "from", "to", "p"])
