"""Report `zoo`: SimpleNet, three ResNeXts and six WideResNets on CIFAR-100, within six hours each."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models import get_model_weights

from helpers import models
from helpers.models import inspect as anatomy
from helpers.report.claims.checks import Arithmetic, Bound, Chance, each_of, network, only, shape_of, size_of
from helpers.report.claims.evidence import Claim, Evidence
from helpers.report.claims.run_checks import Accuracy, Better

TEST = 10_000  # test images of CIFAR-100
SIMPLENET = "cifar100/simplenet"
# Section 5.2: the accuracies in per cent, as printed.
ACCURACIES = {
    "cifar100/simplenet": "63.56",
    "cifar100/zoo_resnext1": "28.57",
    "cifar100/zoo_resnext2": "30.5",
    "cifar100/zoo_resnext3": "20.21",
    "cifar100/wrn16_2": "44.26",
    "cifar100/wrn16_4": "45.09",
    "cifar100/wrn16_8": "43.54",
    "cifar100/wrn16_16": "43.72",
    "cifar100/wrn28_2": "42.14",
    "cifar100/wrn28_4": "46.21",
}
WIDE = ((2, 2), (2, 4), (2, 8), (2, 16), (4, 2), (4, 4))  # N, k
NAMES = [
    "SimpleNet",
    *(f"ResNext{number}" for number in (1, 2, 3)),
    *(f"WideResnet{number}, N={blocks} k={width}" for number, (blocks, width) in enumerate(WIDE, 1)),
]
AFTER_10_EPOCHS = 56.25  # section 3.5, of a ResNext
RESNEXT1_CHANNELS = (32, 16, 8)  # section 5.2: init: 32; 1: 32, 16; 2: 16, 8

claim = partial(Claim, "zoo")


def published_parameters(name: str) -> Callable[[Evidence], int]:
    """The parameters of a network for ImageNet, as torchvision publishes them with its weights."""
    return lambda _: get_model_weights(name).DEFAULT.meta["num_params"]


def tens_of_millions(label: str, name: str) -> Claim:
    """Whether a network of the introduction is as large as it says."""
    size = Bound(f"parameters that torchvision publishes for {name}", published_parameters(name), 10_000_000, 999_999_999)
    return claim(
        "section 1.1", f"{label} includes tens to hundreds of millions of parameters", "tens to hundreds of millions", size
    )


def times_fewer(label: str, name: str) -> Claim:
    """Whether SimpleNet is 2 to 25 times smaller."""

    def ratio(evidence: Evidence) -> float:
        return published_parameters(name)(evidence) / models.count_parameters(network("simplenet", 10))

    what = f"parameters that torchvision publishes for {name}, over those of models.build('simplenet', 10)"
    return claim(
        "section 1.1",
        f"SimpleNet has 2 to 25 times fewer parameters than {label}",
        "2 to 25",
        Bound(what, ratio, 1.5, 25.5, "{:.1f}"),
    )


def simplenet(what: str, ours: Callable[[nn.Module], float]):
    """A number that follows from SimpleNet."""
    return size_of("simplenet", 100, what, ours, "{:g}")


def pointwise(net: nn.Module) -> str:
    """Which convolutions are not 3×3, and what they are."""
    others = [(number, anatomy.kernel(layer)) for number, layer in enumerate(anatomy.convolutions(net), 1)]
    return ", ".join(f"{number}: {kernel}" for number, kernel in others if kernel != "3x3")


def order(place: str, text: str, better: str, worse: str) -> list[Claim]:
    """A comparison of two networks: by runs, and by the printed numbers."""
    first, second = ACCURACIES[better], ACCURACIES[worse]
    quoted = f"{first} over {second}"
    chance = Chance(float(first), float(second), TEST)
    return [claim(place, text, quoted, Better(better, worse)), claim(place, f"{text}, by the printed numbers", quoted, chance)]


CLAIMS = [
    tens_of_millions("AlexNet", "alexnet"),
    tens_of_millions("VGGNet", "vgg16"),
    tens_of_millions("ResNet", "resnet18"),
    tens_of_millions("GoogleNet", "googlenet"),
    times_fewer("VGGNet", "vgg16"),
    times_fewer("ResNet", "resnet18"),
    times_fewer("GoogleNet", "googlenet"),
    claim(
        "section 1.4", "A network with 13 layers", "13", simplenet("convolutions", lambda net: len(anatomy.convolutions(net)))
    ),
    claim(
        "section 1.4",
        "Only the 11th and 12th layers do not use 3 X 3 kernels but 1 X 1",
        "11: 1x1, 12: 1x1",
        shape_of("simplenet", 100, "convolutions that are not 3x3", pointwise),
    ),
    claim(
        "section 1.4",
        "2 X 2 kernels for pooling operations",
        "2x2",
        shape_of(
            "simplenet",
            100,
            "kernels of max-pooling",
            lambda net: ", ".join(
                sorted({anatomy.kernel(layer) for layer in net.modules() if isinstance(layer, nn.MaxPool2d)})
            ),
        ),
    ),
    claim(
        "section 1.4",
        "Batch-normalization with moving average fraction of 0.95",
        "0.95",
        simplenet(
            "one less the momentum of BatchNorm", lambda net: only(1 - norm.momentum for norm in anatomy.batch_norms(net))
        ),
    ),
    claim(
        "section 1.4",
        "Batch-normalization before any ReLU",
        "any",
        each_of(
            "simplenet",
            100,
            "BatchNorms and ReLUs",
            lambda net: (len(anatomy.batch_norms(net)), sum(isinstance(layer, nn.ReLU) for layer in net.modules())),
        ),
    ),
    claim("section 2.2", "SimpleNet after training for 10 epochs", "0.4834", Accuracy(SIMPLENET, epoch=10)),
    claim("section 2.2", "SimpleNet after training for 50 epochs", "0.6356", Accuracy(SIMPLENET)),
    claim(
        "section 3.2",
        "Each time the spatial map is downsampled by a factor of 2, the width is multiplied by a factor of 2",
        "2",
        Arithmetic(
            "ratio of the widths of ResNext1 in 5.2, which 3.4 says are halved",
            lambda: only(after / before for before, after in zip(RESNEXT1_CHANNELS, RESNEXT1_CHANNELS[1:], strict=False)),
        ),
    ),
    claim(
        "section 5.2",
        "30.5 % is the best performance of a ResNext",
        "30.5 %",
        Arithmetic(
            "the highest printed, in 3.5 after 10 epochs, unless another network is meant",
            lambda: max(AFTER_10_EPOCHS, *(float(value) for name, value in ACCURACIES.items() if "resnext" in name)) / 100,
            "{:.2%}",
        ),
    ),
    claim(
        "section 5.2",
        "SimpleNet: the same accuracy as in 2.2",
        "63.56 %",
        Arithmetic("section 2.2, after 50 epochs", lambda: 0.6356, "{:.2%}"),
    ),
    *(
        claim("section 5.2", f"Accuracy of {label}", f"{value} %", Accuracy(name))
        for label, (name, value) in zip(NAMES, ACCURACIES.items(), strict=True)
        if name != SIMPLENET  # printed in 2.2 too
    ),
    *order(
        "section 1.3", "SimpleNet is superior to or on par with deeper networks (WideResnet6)", SIMPLENET, "cifar100/wrn28_4"
    ),
    *order("section 4.2", "Widening (k=4) is more effective than depth (N=4)", "cifar100/wrn16_4", "cifar100/wrn28_2"),
    *order("section 5.3", "K = 2 to 16: the accuracy increases (2 to 4)", "cifar100/wrn16_4", "cifar100/wrn16_2"),
    *order("section 5.3", "After a particular width it starts to decrease (4 to 8)", "cifar100/wrn16_4", "cifar100/wrn16_8"),
    *order("section 5.3", "K = 2 to 16: the accuracy increases (2 to 16)", "cifar100/wrn16_16", "cifar100/wrn16_2"),
]
