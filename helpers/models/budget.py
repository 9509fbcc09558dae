"""What a budget buys: parameters and multiply–adds of each stage, and the widest network that still fits."""

import math
from dataclasses import replace

import pandas as pd
import torch

from helpers.models.registry import Description, ResidualNet, count_parameters, layer_table
from helpers.models.zoo import ZooResNeXt
from helpers.runtime import UserError


def stage_table(network: ResidualNet | ZooResNeXt, image_size: int = 32) -> pd.DataFrame:
    """A row for the stem, for each stage and for the head: what it gives, its parameters and its multiply–adds.

    The columns `output` (channels × height × width), `parameters` and `MACs` are of one image of `image_size` pixels a
    side; the two shares are fractions of the whole network's.
    """
    rows = {}
    for layer in layer_table(network, (1, 3, image_size, image_size)):
        name = layer.name
        if name not in network.stage_names:
            name = "head" if any(stage in rows for stage in network.stage_names) else "stem"
        before = rows.get(name, {"parameters": 0, "MACs": 0})
        rows[name] = {
            "stage": name,
            "output": "×".join(map(str, layer.output_shape[1:])),
            "parameters": before["parameters"] + layer.parameters,
            "MACs": before["MACs"] + layer.macs,
        }
    table = pd.DataFrame(rows.values())
    for name in ("parameters", "MACs"):
        table[f"share of {name}"] = table[name] / table[name].sum()
    return table


def at_width(description: Description, width: int) -> Description:
    """The same network at another width: its numbers of channels in their smallest whole proportion, times `width`.

    ResNet-18 with 64, 64, 128, 256 and 512 channels is 1, 1, 2, 4 and 8 times 64. The group width of a bottleneck is
    one of the numbers.
    """
    unit = math.gcd(*_channels(description))

    def scale(channels: int) -> int:
        return channels // unit * width

    stages = []
    for stage in description.stages:
        arguments = dict(stage.block_arguments)
        if "group_width" in arguments:
            arguments["group_width"] = scale(arguments["group_width"])
        stages.append(replace(stage, out_channels=scale(stage.out_channels), block_arguments=arguments))
    stem = replace(description.stem, channels=scale(description.stem.channels))
    return replace(description, stem=stem, stages=tuple(stages))


def widest(description: Description, num_classes: int, budget: int) -> Description:
    """The widest network of this form with at most `budget` parameters, by bisection over whole widths.

    With squeeze-and-excitation, only widths count whose channels divide by the reduction.

    Raises:
        UserError: not even the narrowest fits.
    """
    step = _step(description)

    def fits(steps: int) -> bool:
        with torch.device("meta"):
            return count_parameters(at_width(description, steps * step).build(num_classes)) <= budget

    if not fits(1):
        raise UserError(f"Even the narrowest network of this form has more than {budget:,} parameters; take fewer blocks.")
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at_width(description, low * step)


def _channels(description: Description) -> list[int]:
    """Every number in a description that grows with its width."""
    stages = description.stages
    groups = [stage.block_arguments["group_width"] for stage in stages if "group_width" in stage.block_arguments]
    return [description.stem.channels, *(stage.out_channels for stage in stages), *groups]


def _step(description: Description) -> int:
    """The smallest width at which all channels divide by their stage's reduction."""
    unit = math.gcd(*_channels(description))
    reductions = [(stage.out_channels // unit, stage.block_arguments.get("reduction") or 1) for stage in description.stages]
    return math.lcm(*(reduction // math.gcd(reduction, ratio) for ratio, reduction in reductions))
