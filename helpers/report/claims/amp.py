"""Report `amp`: a ResNeXt-29 under five million parameters, plain SGD against adversarial model perturbation."""

import re
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from helpers import models
from helpers.data import cifar
from helpers.experiments import plan
from helpers.models import inspect as anatomy
from helpers.models.inspect import Line
from helpers.report.claims.checks import (
    Arithmetic,
    Bound,
    Count,
    Each,
    Similar,
    Structure,
    each_of,
    network,
    only,
    parameters,
    pixels,
    published,
    shape_of,
    size_of,
    tally,
)
from helpers.report.claims.evidence import Claim
from helpers.report.claims.run_checks import Accuracy, Better, EveryEpoch, LowerLoss, Slower
from helpers.training.perturbation import AdversarialModelPerturbation

UNDER5M = "resnext29_under5m"
SGD, PERTURBED = "cifar10/resnext29_under5m_sgd", "cifar10/resnext29_under5m_amp"
MIB = 2**20

# Figure 2, line by line: Convolution, BatchNorm (N), Block or Linear, channels @ image size : parameters.
SUMMARY = """
C32@32:96 N32@32:64 C128@32:4096 N128@32:256 C128@32:4608 N128@32:256 C256@16:32768 N256@16:512 C256@16:8192 N256@16:512
B256@16:0 C128@32:32768 N128@32:256 C128@32:4608 N128@32:256 C256@16:32768 N256@16:512 B256@16:0 C128@32:32768 N128@32:256
C128@32:4608 N128@32:256 C256@16:32768 N256@16:512 B256@16:0 C256@16:65536 N256@16:512 C256@16:18432 N256@16:512
C512@16:133072 N512@16:1024 C512@16:133072 N512@16:1024 B512@16:0 C256@16:133072 N256@16:512 C256@16:18432 N256@16:512
C512@16:133072 N512@16:1024 B512@16:0 C256@16:133072 N256@16:512 C256@16:18432 N256@16:512 C512@16:133072 N512@16:1024
B512@16:0 C512@16:262144 N512@16:1024 C512@8:73728 N512@8:1024 C1024@8:524288 N1024@8:2048 C1024@8:524288 N1024@8:2048
B1024@8:0 C512@8:524288 N512@8:1024 C512@8:73728 N512@8:1024 C1024@8:524288 N1024@8:2048 B1024@8:0 C512@8:524288 N512@8:1024
C512@8:73728 N512@8:1024 C1024@8:524288 N1024@8:2048 B1024@8:0 L10@1:10250
"""

claim = partial(Claim, "amp")


def printed_lines() -> list[Line]:
    """The 72 lines of figure 2, as printed."""
    found = re.findall(r"([CNBL])(\d+)@(\d+):(\d+)", SUMMARY)
    return [Line(kind, int(channels), int(side), int(parameters)) for kind, channels, side, parameters in found]


def megabytes(lines: Sequence[Line]) -> float:
    """What torchsummary calls the forward/backward pass size: all outputs and as many gradients, 4 bytes each, in MiB."""
    return sum(line.channels * line.side**2 for line in lines) * 2 * 4 / MIB


def real_lines() -> list[Line]:
    """What figure 2 would be, from the network itself."""
    return anatomy.lines(network(UNDER5M, 10), 32)


def agreeing(*fields: str) -> tuple[int, int]:
    """How many lines of figure 2 say of these fields what the network has, and how many lines there are."""
    pairs = zip(printed_lines(), real_lines(), strict=True)
    return tally(all(getattr(one, name) == getattr(other, name) for name in fields) for one, other in pairs)


def total_megabytes(model: nn.Module) -> float:
    """torchsummary's estimated total size: the input, all outputs and gradients, the parameters."""
    return 3 * 32**2 * 4 / MIB + megabytes(anatomy.lines(model, 32)) + models.count_parameters(model) * 4 / MIB


def block_weights(model: nn.Module) -> int:
    """Weights of the convolutions of figure 1's block: 256 channels in, 256 out, no projection."""
    return sum(layer.weight.numel() for layer in anatomy.convolutions(model.layer1[1]))


def outside_batch_norm(model: nn.Module) -> int:
    """Parameters that are not BatchNorm's."""
    return models.count_parameters(model) - sum(map(models.count_parameters, anatomy.batch_norms(model)))


def group_widths(model: nn.Module) -> list[int]:
    """The bottleneck width of each stage: channels in a group of its first 3×3 convolution."""
    first = [model.get_submodule(name)[0].conv2 for name in model.stage_names]
    return [layer.out_channels // layer.groups for layer in first]


def shrinking(model: nn.Module) -> str:
    """How the second and the third stage reduce the resolution of the image, in the report's words."""
    words = {2: "half", 4: "a quarter", 8: "an eighth"}
    return " and ".join(words[32 // side] for side in anatomy.image_sizes(model, 32)[2:4])


def gradients_taken_at(epsilon: float = 0.5) -> list[tuple[Tensor, Tensor]]:
    """Parameters and input data at each gradient of one perturbed step, on a loss whose gradient is long."""
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
    return taken


def what_is_perturbed() -> str:
    """What has moved between the two gradients of a perturbed step."""
    first, second = gradients_taken_at()
    names = ("parameters", "input data")
    return " and ".join(name for name, one, other in zip(names, first, second, strict=True) if not torch.equal(one, other))


def perturbation_size(epsilon: float) -> float:
    """How far the parameters have moved between the two gradients."""
    (weights, _), (shifted, _) = gradients_taken_at(epsilon)
    return (shifted - weights).norm().item()


def macs(name: str) -> Count:
    """Multiply-adds for one image of 224 pixels."""
    return size_of(name, 1000, "multiply-adds", models.count_macs)


def sizes(name: str) -> Structure:
    """Image sizes, from 224 pixels."""
    return shape_of(name, 1000, "image sizes", lambda net: ", ".join(map(str, anatomy.image_sizes(net, 224))))


def statistics(values: Sequence[float]) -> Structure:
    """The statistics of all pixels of the training images: constants of the recipe STRONG, as CI has no data to count them."""
    how = "over all pixels of the training images, as in the recipe plan.STRONG (data.channel_statistics counts them)"
    return Structure(how, lambda _: f"({', '.join(f'{value:.4f}' for value in values)})")


CLAIMS = [
    claim(
        "Abstract",
        "The number of parameters is below 5 million",
        "below 5 million",
        Bound("parameters of the network of figure 2", parameters(UNDER5M, 10).ours, high=4_999_999),
    ),
    claim("Table 1", "# params. of ResNet-50", "25.5×10^6", parameters("resnet50", 1000)),
    claim(
        "Table 1",
        "# params. of ResNet-50, if BatchNorm is not counted",
        "25.5×10^6",
        size_of("resnet50", 1000, "parameters outside BatchNorm", outside_batch_norm),
    ),
    claim("Table 1", "# params. of ResNeXt-50", "25.0×10^6", parameters("resnext50_32x4d", 1000)),
    claim("Table 1", "FLOPs of ResNet-50", "4.1×10^9", macs("resnet50")),
    claim("Table 1", "FLOPs of ResNeXt-50", "4.2×10^9", macs("resnext50_32x4d")),
    claim("Table 1", "Outputs of ResNet-50, conv1 to conv5", "112, 56, 28, 14, 7", sizes("resnet50")),
    claim("Table 1", "Outputs of ResNeXt-50, conv1 to conv5", "112, 56, 28, 14, 7", sizes("resnext50_32x4d")),
    claim(
        "Table 1",
        "Shapes and numbers of the blocks of ResNet-50",
        "64, 64, 256 ×3; 128, 128, 512 ×4; 256, 256, 1024 ×6; 512, 512, 2048 ×3",
        shape_of("resnet50", 1000, "stages", anatomy.stages),
    ),
    claim(
        "Table 1",
        "Shapes and numbers of the blocks of ResNeXt-50",
        "128, 128 C=32, 256 ×3; 256, 256 C=32, 512 ×4; 512, 512 C=32, 1024 ×6; 1024, 1024 C=32, 2048 ×3",
        shape_of("resnext50_32x4d", 1000, "stages", anatomy.stages),
    ),
    claim(
        "Table 1",
        "The numbers of parameters are similar between these two models",
        "25.5×10^6 and 25.0×10^6",
        Similar("parameters", parameters("resnet50", 1000).ours, parameters("resnext50_32x4d", 1000).ours),
    ),
    claim(
        "Table 1",
        "The FLOPs are similar between these two models",
        "4.1×10^9 and 4.2×10^9",
        Similar("multiply-adds", macs("resnet50").ours, macs("resnext50_32x4d").ours),
    ),
    claim(
        "About the Dataset", "CIFAR-10 comprises 60,000 color images", "60,000", published("cifar10", lambda n: sum(n.values()))
    ),
    claim("About the Dataset", "of 32x32 pixels", "32x32", pixels("cifar10", "x")),
    claim(
        "About the Dataset",
        "ten groups with 6,000 images each",
        "6,000",
        published("cifar10", lambda n: sum(n.values()) // len(cifar.CLASSES["cifar10"])),
    ),
    claim("About the Dataset", "a training dataset of 50,000 images", "50,000", published("cifar10", lambda n: n["train"])),
    claim("About the Dataset", "a test dataset of 10,000 images", "10,000", published("cifar10", lambda n: n["test"])),
    claim(
        "About the Dataset",
        "1,000 test images from each category",
        "1,000",
        published("cifar10", lambda n: n["test"] // len(cifar.CLASSES["cifar10"])),
    ),
    claim("Data Augmentation", "The mean of the pixel values", "(0.4914, 0.4822, 0.4465)", statistics(plan.STRONG.mean)),
    claim(
        "Data Augmentation",
        "The standard deviation of the pixel values",
        "(0.2023, 0.1994, 0.2010)",
        statistics(plan.STRONG.std),
    ),
    claim(
        "Architecture",
        "A bottleneck width of 4",
        "4",
        size_of(UNDER5M, 10, "channels in a group of the first stage", lambda net: group_widths(net)[0]),
    ),
    claim(
        "Architecture",
        "A cardinality of 32",
        "32",
        size_of(UNDER5M, 10, "groups", lambda net: only(block.conv2.groups for block in anatomy.bottlenecks(net))),
    ),
    claim(
        "Architecture",
        "The network takes a 32x32 image and produces an output of shape [-1, 10]",
        "[-1, 10]",
        shape_of(UNDER5M, 10, "output", lambda net: f"[-1, {net(torch.empty(1, 3, 32, 32, device='meta')).shape[1]}]"),
    ),
    claim(
        "Architecture",
        "The first convolutional layer [of a block] reduces the number of input channels",
        "the first",
        each_of(
            UNDER5M,
            10,
            "blocks whose first convolution does so",
            lambda net: tally(b.conv1.out_channels < b.conv1.in_channels for b in anatomy.bottlenecks(net)),
        ),
    ),
    claim(
        "Architecture",
        "The third convolutional layer increases the number of output channels",
        "the third",
        each_of(
            UNDER5M,
            10,
            "blocks whose third convolution does so",
            lambda net: tally(b.conv3.out_channels > b.conv3.in_channels for b in anatomy.bottlenecks(net)),
        ),
    ),
    claim(
        "Figure 1",
        "A block of ResNet and one of ResNeXt have roughly the same complexity",
        "roughly the same",
        Similar(
            "weights of a block of 256 channels of resnet50 and of resnext50_32x4d",
            lambda _: block_weights(network("resnet50", 1000)),
            lambda _: block_weights(network("resnext50_32x4d", 1000)),
        ),
    ),
    claim(
        "Figure 2",
        "Param # of Conv2d-30 (and of 32, 35, 39, 42, 46), a 1x1 convolution between 256 and 512 channels",
        "133,072",
        size_of(UNDER5M, 10, "parameters in the same line", lambda net: anatomy.lines(net, 32)[29].parameters),
    ),
    claim(
        "Figure 2", "The column Param #", "every line", Each("lines that are the network's", lambda _: agreeing("parameters"))
    ),
    claim(
        "Figure 2",
        "The column Output Shape",
        "every line",
        Each("lines that are the network's", lambda _: agreeing("channels", "side")),
    ),
    claim(
        "Figure 2",
        "The lines add up to Total params",
        "4,761,770",
        Arithmetic("sum of the printed column", lambda: sum(line.parameters for line in printed_lines())),
    ),
    claim("Figure 2", "Total params", "4,761,770", parameters(UNDER5M, 10)),
    claim(
        "Figure 2",
        "The lines give the Forward/backward pass size (MB)",
        "64.50",
        Arithmetic("twice the printed outputs, 4 bytes each", lambda: megabytes(printed_lines()), "{:.2f}"),
    ),
    claim(
        "Figure 2",
        "Forward/backward pass size (MB)",
        "64.50",
        size_of(UNDER5M, 10, "twice all outputs, 4 bytes each,", lambda net: megabytes(anatomy.lines(net, 32)), "{:.2f}"),
    ),
    claim(
        "Figure 2",
        "Params size (MB)",
        "18.16",
        size_of(UNDER5M, 10, "parameters, 4 bytes each,", lambda net: models.count_parameters(net) * 4 / MIB, "{:.2f}"),
    ),
    claim(
        "Figure 2",
        "Estimated Total Size (MB)",
        "82.68",
        size_of(UNDER5M, 10, "input, outputs, gradients and parameters", total_megabytes, "{:.2f}"),
    ),
    claim(
        "Architecture",
        "The bottleneck width is increased by a factor of 2 after each stage",
        "2",
        size_of(
            UNDER5M,
            10,
            "ratio of the widths of neighbouring stages",
            lambda net: only(wide / narrow for narrow, wide in zip(group_widths(net), group_widths(net)[1:], strict=False)),
            "{:g}",
        ),
    ),
    claim(
        "Methodology",
        "The optimizer adds small perturbations to the input data",
        "input data",
        Structure(
            "what a step of AdversarialModelPerturbation moves before its second gradient", lambda _: what_is_perturbed()
        ),
    ),
    claim(
        "Model",
        "The epsilon value specifies the maximum size of the perturbation",
        "0.5",
        Count("length of that move where the gradient is long", lambda _: perturbation_size(0.5), "{:.3f}"),
    ),
    claim("Model", "This model has 29 layers", "29", size_of(UNDER5M, 10, "layers on the main path", anatomy.depth)),
    claim(
        "Model",
        "2 sets of convolutional layers with 64 channels",
        "2",
        Arithmetic(
            "convolutions with 64 channels in figure 2",
            lambda: sum(line.kind == "C" and line.channels == 64 for line in printed_lines()),
        ),
    ),
    claim(
        "Model",
        "3 blocks in each of the first three stages",
        "3",
        size_of(UNDER5M, 10, "blocks of a stage", lambda net: only(len(net.get_submodule(name)) for name in net.stage_names)),
    ),
    claim(
        "Model",
        "The second and third [stages reduce] the spatial resolution by half and a quarter",
        "half and a quarter",
        shape_of(UNDER5M, 10, "image sizes of stages 2 and 3", shrinking),
    ),
    claim("Results", "An accuracy of 90-91% with AMP", "90-91%", Accuracy(PERTURBED)),
    claim("Results", "An accuracy of 89-90% with SGD", "89-90%", Accuracy(SGD)),
    claim("Results", "AMP produced a higher accuracy than SGD", "90-91% over 89-90%", Better(PERTURBED, SGD)),
    claim(
        "Results",
        "AMP improves the accuracy (with the same learning rate, schedule and epochs)",
        "significantly",
        Better(PERTURBED, "cifar10/resnext29_under5m_sgd_same"),
    ),
    claim(
        "Results",
        "AMP improves the accuracy (with the same number of gradients)",
        "significantly",
        Better(PERTURBED, "cifar10/resnext29_under5m_sgd_twice"),
    ),
    claim("Overview", "AMP outperformed SGD in terms of loss", "outperformed", LowerLoss(PERTURBED, SGD)),
    claim("Results", "A higher accuracy than SGD at each epoch", "each epoch", EveryEpoch(PERTURBED, SGD)),
    claim("Overview", "AMP increased the training time compared to SGD", "increased", Slower(PERTURBED, SGD)),
]
