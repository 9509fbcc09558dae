"""The measures that statement files name: of a network (`OF_NETWORKS`), of the data or of printed numbers (`OTHERS`)."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from helpers.data import cifar
from helpers.experiments import recipes
from helpers.models import inspect as anatomy
from helpers.models.inspect import Line, batch_norms, bottlenecks, convolutions, count_parameters, layers
from helpers.models.resnet import Description, Stage, Stem
from helpers.training.perturbation import AdversarialModelPerturbation

MIB = 2**20
SHRUNK = {2: "half", 4: "a quarter", 8: "an eighth"}  # in the words of report `amp`
STATEMENTS = Path(__file__).parent / "statements"


def only(values: Iterable[float]) -> float:
    """The value that all share; NaN, which equals nothing, if they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else float("nan")


def tally(answers: Iterable[bool]) -> tuple[int, int]:
    """How many of the answers are yes, and how many there are."""
    answers = list(answers)
    return sum(answers), len(answers)


def kernel(layer: nn.Conv2d | nn.MaxPool2d) -> str:
    """A kernel as the reports write it: `3x3`."""
    return "x".join(map(str, np.broadcast_to(layer.kernel_size, 2)))


def stages(net: nn.Module) -> str:
    """Widths, groups and blocks of a bottleneck network, stage by stage: `128, 128 C=32, 256 ×3; …`."""
    texts = []
    for stage in map(net.get_submodule, net.stage_names):
        one, two, three = stage[0].conv1, stage[0].conv2, stage[0].conv3
        groups = f" C={two.groups}" if two.groups > 1 else ""
        texts.append(f"{one.out_channels}, {two.out_channels}{groups}, {three.out_channels} ×{len(stage)}")
    return "; ".join(texts)


def directly_activated(net: nn.Module) -> tuple[int, int]:
    """How many convolutions of a bottleneck network have a ReLU after BatchNorm, before any addition; and their total."""
    added = sum(1 + (block.downsample is not None) for block in bottlenecks(net))
    return len(convolutions(net)) - added, len(convolutions(net))


def group_widths(net: nn.Module) -> list[int]:
    """The bottleneck width of each stage: channels per group of its first 3×3 convolution."""
    return [conv.out_channels // conv.groups for conv in (net.get_submodule(name)[0].conv2 for name in net.stage_names)]


def printed_lines() -> list[Line]:
    """The 72 lines of figure 2 of report `amp`, as printed."""
    found = re.findall(r"([CNBL])(\d+)@(\d+):(\d+)", (STATEMENTS / "amp_figure2.txt").read_text(encoding="utf-8"))
    return [Line(kind, *map(int, numbers)) for kind, *numbers in found]


def amp_curves() -> pd.DataFrame:
    """Test accuracy (%) by epoch in figures 3 and 4 of report `amp`, from the outputs stored with its code.

    Epochs 1 to 50 of the perturbed run are read off figure 3, within about 0.13. Plain SGD's first epoch was not tested, so
    each of its values, numbered as plotted, is from one epoch later.
    """
    return pd.read_csv(STATEMENTS / "amp_figures_3_and_4.csv", index_col="epoch")


def epochs_with_the_higher_curve() -> str:
    """In how many epochs the perturbed run's curve is the higher one."""
    times, of = tally(amp_curves().dropna().eval("perturbed > `plain SGD`"))
    return "at each epoch" if times == of else f"in {times} of {of} epochs"


def agreeing(net: nn.Module, fields: Sequence[str]) -> tuple[int, int]:
    """How many lines of that figure agree with the network in these fields, and how many lines there are."""
    pairs = zip(printed_lines(), anatomy.lines(net, 32), strict=True)
    return tally(all(getattr(one, name) == getattr(other, name) for name in fields) for one, other in pairs)


def megabytes(lines: Sequence[Line]) -> float:
    """What torchsummary calls the forward/backward pass size: all outputs and as many gradients, 4 bytes each, in MiB."""
    return sum(line.channels * line.side**2 for line in lines) * 2 * 4 / MIB


def perturbed_step(epsilon: float = 0.5) -> tuple[str, float]:
    """What moves between the two gradients of a perturbed step, and how far, on a loss with a large gradient."""
    weights, inputs = nn.Parameter(torch.tensor([3.0, -4.0])), torch.tensor([10.0, 20.0])
    optimizer = AdversarialModelPerturbation([weights], lr=0.1, epsilon=epsilon)
    taken = []

    def closure() -> Tensor:
        taken.append((weights.detach().clone(), inputs.clone()))
        optimizer.zero_grad()
        loss = (weights * inputs).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    far = [(after - before).norm().item() for before, after in zip(*taken, strict=True)]
    return " and ".join(name for name, moved in zip(("parameters", "input data"), far, strict=True) if moved), far[0]


def times_simplenet(names: Sequence[str]) -> list[float]:
    """The smallest and largest ratio of torchvision networks' parameters to SimpleNet's, all with 100 classes."""
    simplenet = count_parameters(anatomy.network("simplenet", 100))
    without = {"googlenet": {"init_weights": False, "aux_logits": False}}
    with torch.device("meta"):
        sizes = [count_parameters(get_model(name, num_classes=100, **without.get(name, {}))) for name in names]
    return sorted({min(sizes) / simplenet, max(sizes) / simplenet})


# The smallest network of the paper that report `slim` cites as [1]: He et al. 2016, table 6, 0.27 M parameters. It has identity
# shortcuts, padded where the channels change (their option A).
RESNET20 = Description(Stem(16, 3, 1, max_pool=False), (Stage(3, 16), Stage(3, 32, 2), Stage(3, 64, 2)))
OF_NETWORKS: dict[str, Callable] = {
    "parameters": count_parameters,
    "parameters over 5,000,000": lambda net: count_parameters(net) / 5_000_000,
    "parameters outside BatchNorm": lambda net: count_parameters(net) - sum(map(count_parameters, batch_norms(net))),
    "multiply-adds": anatomy.count_macs,
    "layers on the main path": anatomy.depth,
    "first layers": lambda net: f"{kernel(net.conv1)}, {kernel(net.maxpool)} max pool",
    "stages": stages,
    "number of stages": lambda net: len(net.stage_names),
    "blocks of a stage": lambda net: only(len(net.get_submodule(name)) for name in net.stage_names),
    "convolutions on the main path of every block": lambda net: only(map(anatomy.depth, bottlenecks(net))),
    "groups of every middle convolution": lambda net: only(block.conv2.groups for block in bottlenecks(net)),
    "channels in a group of the first stage": lambda net: group_widths(net)[0],
    "bottleneck widths": lambda net: ", ".join(map(str, group_widths(net))),
    "ratio of the widths of neighbouring stages": lambda net: only(b / a for a, b in pairwise(group_widths(net))),
    "convolutions": lambda net: len(convolutions(net)),
    "BatchNorms and convolutions": lambda net: (len(batch_norms(net)), len(convolutions(net))),
    "convolutions with a ReLU before any addition": directly_activated,
    "BatchNorms and ReLUs": lambda net: (len(batch_norms(net)), len(layers(nn.ReLU, net))),
    "blocks that reduce first": lambda net: tally(b.conv1.out_channels < b.conv1.in_channels for b in bottlenecks(net)),
    "blocks that increase last": lambda net: tally(b.conv3.out_channels > b.conv3.in_channels for b in bottlenecks(net)),
    "convolutions that are not 3x3": lambda net: ", ".join(
        f"{number}: {kernel(layer)}" for number, layer in enumerate(convolutions(net), 1) if kernel(layer) != "3x3"
    ),
    "kernels of max-pooling": lambda net: ", ".join(sorted(set(map(kernel, layers(nn.MaxPool2d, net))))),
    "one less the momentum of BatchNorm": lambda net: only(1 - norm.momentum for norm in batch_norms(net)),
    "output": lambda net: f"[-1, {net(torch.empty(1, 3, 32, 32, device='meta')).shape[1]}]",
    "linear layer": lambda net: f"{net.fc.in_features}->{net.fc.out_features}",
    "image sizes from 224 pixels": lambda net: ", ".join(map(str, anatomy.image_sizes(net, 224))),
    "image sizes of the stages": lambda net: ", ".join(f"{side}*{side}" for side in anatomy.image_sizes(net, 32)[1:]),
    "image sizes of stages 2 and 3": lambda net: " and ".join(SHRUNK[32 // n] for n in anatomy.image_sizes(net, 32)[2:4]),
    "weights of a block of 256 channels": lambda net: sum(layer.weight.numel() for layer in convolutions(net.layer1[1])),
    "parameters in line 30 of its summary": lambda net: anatomy.lines(net, 32)[29].parameters,
    "lines with the parameters": lambda net: agreeing(net, ["parameters"]),
    "lines with the output shapes": lambda net: agreeing(net, ["channels", "side"]),
    "twice all outputs, 4 bytes each,": lambda net: megabytes(anatomy.lines(net, 32)),
    "parameters, 4 bytes each,": lambda net: count_parameters(net) * 4 / MIB,
    "input, outputs, gradients and parameters": lambda net: (
        3 * 32**2 * 4 / MIB + megabytes(anatomy.lines(net, 32)) + count_parameters(net) * 4 / MIB
    ),
}
OTHERS: dict[str, Callable] = {
    "printed": lambda value: value,
    "recorded images": lambda run, splits: sum(run["dataset"][f"n_{split}"] for split in splits),
    "images": lambda run, splits: sum(cifar.COUNTS[split] for split in splits),
    "images of a class": lambda run, splits: sum(cifar.COUNTS[split] for split in splits) // len(run["dataset"]["classes"]),
    "sides": lambda run, sign: f"{cifar.PIXELS}{sign}{cifar.PIXELS}",
    "pixel statistics": lambda name: "(" + ", ".join(f"{value:.4f}" for value in getattr(recipes.STRONG, name)) + ")",
    "published parameters": lambda name: get_model_weights(name).DEFAULT.meta["num_params"],
    "times SimpleNet": times_simplenet,
    "sum of a matrix": lambda matrix: int(np.sum(matrix)),
    "accuracy of a matrix": lambda matrix: 100 * float(np.trace(matrix) / np.sum(matrix)),
    "nearest fraction": lambda per_cent, n: 100 * round(per_cent / 100 * n) / n,
    "sum of printed parameters": lambda: sum(line.parameters for line in printed_lines()),
    "printed megabytes": lambda: megabytes(printed_lines()),
    "printed convolutions": lambda channels: sum(line.kind == "C" and line.channels == channels for line in printed_lines()),
    "epochs in a figure": lambda curve: int(amp_curves()[curve].count()),
    "highest accuracy in a figure": lambda curve: round(amp_curves()[curve].max()) / 100,
    "epochs with the higher curve": epochs_with_the_higher_curve,
    "what is perturbed": lambda: perturbed_step()[0],
    "perturbation size": lambda epsilon: perturbed_step(epsilon)[1],
    "ResNet-20": lambda: sum(
        values.numel() for name, values in RESNET20.build(10).named_parameters() if "downsample" not in name
    ),
    "halves": lambda channels: "-".join(str(channel // 2) for channel in channels),
    "highest": lambda values: max(values),
    "output side": lambda stride: "{0}*{0}".format(cifar.PIXELS // stride),
}
