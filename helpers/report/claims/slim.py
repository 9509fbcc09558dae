"""Report `slim`: a ResNet pruned under five million parameters."""

from functools import partial

from helpers import models
from helpers.data import cifar
from helpers.models import inspect as anatomy
from helpers.models.blocks import BasicBlock
from helpers.models.resnet import ResidualNet, Stage, Stem
from helpers.report.claims.checks import Arithmetic, Bound, Chance, Each, parameters, pixels, published, shape_of, tally
from helpers.report.claims.evidence import Claim, Evidence
from helpers.report.claims.run_checks import Accuracy, Better, Close

BUDGET = 5_000_000
TEST = 10_000  # test images of CIFAR-10
FINAL, RESNET18 = "cifar10/slim_resnet", "cifar10/resnet18_torchvision"

# Figures 1 and 4: the stem's kernel and channels; blocks, channels and kernel of each stage.
NETWORKS = {
    "trial 1": ((7, 32), ((2, 64, 3), (2, 128, 3), (2, 256, 3), (2, 512, 3))),
    "trial 2": ((7, 32), ((2, 64, 3), (1, 128, 3), (1, 256, 3), (1, 512, 3))),
    "trial 3": ((3, 32), ((3, 32, 5), (3, 64, 5), (2, 128, 5), (2, 256, 3))),
    "final": ((3, 32), ((2, 32, 5), (4, 64, 5), (3, 128, 3), (3, 256, 3))),
}
# Figure 2: training and validation accuracy of epochs 11 to 17, in per cent.
LOG = ((84.54, 89.03), (84.63, 89.56), (84.81, 90.00), (84.69, 90.35), (84.87, 90.55), (84.86, 90.06), (84.90, 90.19))

claim = partial(Claim, "slim")


def closed_form_parameters(name: str, num_classes: int = 10) -> int:
    """Parameters of a printed network: two convolutions a block, BatchNorm behind each, and a 1×1 convolution in the
    shortcut where the channels change.
    """
    (kernel, channels), stages = NETWORKS[name]

    def convolution(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side**2 + 2 * outputs

    total = convolution(3, channels, kernel)
    for blocks, width, side in stages:
        total += convolution(channels, width, side) + (2 * blocks - 1) * convolution(width, width, side)
        total += convolution(channels, width, 1) if channels != width else 0
        channels = width
    return total + channels * num_classes + num_classes


def resnet20(_: Evidence) -> int:
    """Parameters of the smallest network of the paper that the report cites as [1] (He et al. 2016, table 6: 0.27 M)."""
    stages = [Stage(3, 16), Stage(3, 32, 2), Stage(3, 64, 2)]
    return models.count_parameters(ResidualNet(BasicBlock, Stem(16, 3, 1, max_pool=False), stages, 10))


def figure1(number: int, total: str, performance: str) -> list[Claim]:
    """A row of figure 1."""
    name = f"slim_resnet_trial{number}"
    given = Arithmetic("the same row's blocks, channels and kernels", lambda: closed_form_parameters(f"trial {number}"))
    return [
        claim("Figure 1", f"Parameters of row {number}", total, parameters(name, 10)),
        claim("Figure 1", f"Row {number} describes a network of its parameters", total, given),
        claim("Figure 1", f"Performance of row {number}", performance, Accuracy(f"cifar10/{name}")),
    ]


CLAIMS = [
    claim("Abstract", "CIFAR-10 is composed with 6000 pictures", "6000", published("cifar10", lambda n: sum(n.values()))),
    claim("Abstract", "each of which is 32×32", "32×32", pixels("cifar10", "×")),
    claim(
        "Abstract",
        "ResNet18 has more than 10,000,000 parameters",
        "more than 10,000,000",
        Bound("parameters of models.build('resnet18', 10)", parameters("resnet18", 10).ours, 10_000_001),
    ),
    claim(
        "Abstract",
        "The number of parameters is less than 5,000,000",
        "less than 5,000,000",
        Bound("parameters of models.build('slim_resnet', 10)", parameters("slim_resnet", 10).ours, high=BUDGET - 1),
    ),
    claim("Abstract", "The original ResNet18 has an accuracy of about 0.78", "0.78", Accuracy(RESNET18)),
    claim("Abstract", "Our model reached an accuracy of 0.91", "0.91", Accuracy(FINAL)),
    claim("Abstract", "Our model is better than the original ResNet18", "0.91 over 0.78", Better(FINAL, RESNET18)),
    claim("Abstract", "The same by the printed numbers", "0.91 over 0.78", Chance(91, 78, TEST)),
    claim(
        "Project Overview",
        "Slight changes on stride [and numbers of blocks] won't produce better performance (rows 1 and 2 of figure 1)",
        "77 and 77",
        Close("cifar10/slim_resnet_trial1", "cifar10/slim_resnet_trial2", 0.01, "one unit of the printed 77"),
    ),
    claim(
        "Methodology",
        "A bigger kernel size can help (rows 3 and 1 of figure 1, which differ in channels too)",
        "84 over 77",
        Better("cifar10/slim_resnet_trial3", "cifar10/slim_resnet_trial1"),
    ),
    claim(
        "Project Overview",
        "The bigger and more varied dataset increased the performance of the same model greatly",
        "greatly",
        Better(FINAL, "cifar10/slim_resnet_plain"),
    ),
    *figure1(1, "11,160,618", "77"),
    *figure1(2, "4,963,882", "77"),
    *figure1(3, "4,266,410", "84"),
    claim(
        "Methodology",
        "ResNet18 is the smallest net in [1]",
        "the smallest",
        Bound(
            "parameters of ResNet-20, table 6 of [1], against those of ResNet-18",
            resnet20,
            parameters("resnet18", 10).ours(None),
        ),
    ),
    claim(
        "Methodology",
        "ResNet18 has about the double of the constraint",
        "about the double",
        Bound(
            "parameters of models.build('resnet18', 10) over 5,000,000",
            lambda evidence: parameters("resnet18", 10).ours(evidence) / BUDGET,
            1.5,
            2.5,
            "{:.2f}",
        ),
    ),
    claim(
        "Methodology",
        "Cutting channels to half changes 64-64-128-256-512 to 32-32-64-128-512",
        "32-32-64-128-512",
        Arithmetic("half of each", lambda: "-".join(str(channels // 2) for channels in (64, 64, 128, 256, 512))),
    ),
    claim(
        "Methodology", "Deleting the maxpool can improve the result", "improve", Better(FINAL, "cifar10/slim_resnet_max_pool")
    ),
    claim(
        "Methodology",
        "Changing the size-reducing layer from the second to the first layer of the blocks helps",
        "helps",
        Better(FINAL, "cifar10/slim_resnet_stride_second"),
    ),
    claim(
        "Methodology",
        "Validation accuracy was always bigger than training accuracy (figure 2)",
        "always",
        Each("epochs printed in figure 2", lambda _: tally(validation > training for training, validation in LOG)),
    ),
    claim(
        "Result",
        "Though slow, the model does make better performance (figure 2)",
        "better",
        Bound(
            "points of training accuracy between the ends of figure 2", lambda _: LOG[-1][0] - LOG[0][0], 0.01, form="{:.2f}"
        ),
    ),
    claim("Result", "The validation accuracy can reach 0.91 (80 epochs)", "0.91", Accuracy(FINAL, epoch=80)),
    claim("Figure 3", "The parameter number is 4,978,730", "4,978,730", parameters("slim_resnet", 10)),
    claim(
        "Figure 4",
        "Figure 4 describes a network with the parameters of figure 3",
        "4,978,730",
        Arithmetic("blocks, channels and kernels of figure 4", lambda: closed_form_parameters("final")),
    ),
    claim(
        "Figure 4",
        "Output size of conv1, 3*3 with stride 1 on images of 32*32, without a max-pool",
        "16*16",
        Arithmetic("32 over the printed stride", lambda: "{0}*{0}".format(cifar.PIXELS // 1)),
    ),
    claim(
        "Figure 4",
        "Output sizes of conv2_x to conv5_x",
        "8*8, 4*4, 2*2, 1*1",
        shape_of(
            "slim_resnet",
            10,
            "image sizes",
            lambda net: ", ".join(f"{side}*{side}" for side in anatomy.image_sizes(net, 32)[1:]),
        ),
    ),
    claim(
        "Figure 4",
        "fc",
        "256->10",
        shape_of("slim_resnet", 10, "linear layer", lambda net: f"{net.fc.in_features}->{net.fc.out_features}"),
    ),
]
