"""Report `zoo`'s networks other than a `ResidualNet`, all He-normal: images (N, 3, H, W) to scores (N, num_classes)."""

from collections.abc import Sequence

from torch import nn

from helpers.models.blocks import Bottleneck, WideBlock, convolution, require_positive
from helpers.models.resnet import initialise_he


class SimpleNet(nn.Sequential):
    """Thirteen convolutions in a row, `layer1` to `layer13`, each with BatchNorm and ReLU, and one linear layer.

    All are 3×3 but the `pointwise` ones. 2×2 max-pooling follows the `pooled` ones, so images need 16 pixels a side; global
    max-pooling follows the last, and dropout each of the first twelve. The convolutions keep their biases, as published.

    Source: Hasanpour et al. 2016 (arXiv 1608.06037), figure 1 and the authors' networks for CIFAR (their first PyTorch port
    pools after the 10th layer too). BatchNorm in all 13, with torch's momentum of 0.05, is the report's, section 1.4.
    """

    channels = (64, 128, 128, 128, 128, 128, 256, 256, 256, 512, 2048, 256, 256)
    pointwise = (11, 12)
    pooled = (4, 7, 9, 12)

    def __init__(self, num_classes: int):
        super().__init__()
        in_channels = 3
        for number, out_channels in enumerate(self.channels, start=1):
            kernel_size = 1 if number in self.pointwise else 3
            layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
                nn.BatchNorm2d(out_channels, momentum=0.05),
                nn.ReLU(inplace=True),
            )
            if number in self.pooled:
                layer.append(nn.MaxPool2d(2))
            if number < len(self.channels):
                layer.append(nn.Dropout(0.2))
            self.add_module(f"layer{number}", layer)
            in_channels = out_channels
        self.maxpool, self.flatten = nn.AdaptiveMaxPool2d(1), nn.Flatten()
        self.fc = nn.Linear(in_channels, num_classes)
        initialise_he(self)


class WideResNet(nn.Sequential):
    """A WideResNet-`depth`-`width`: three stages of N wide blocks with 16, 32 and 64 times `width` channels.

    The stem is a bare convolution: each block starts with its BatchNorm, and one more follows the last block. A depth other
    than 6N + 4, or a width below 1, is a ValueError. Source: Zagoruyko and Komodakis 2016, table 1.
    """

    def __init__(self, num_classes: int, depth: int, width: int):
        super().__init__()
        require_positive(depth=depth, width=width)
        blocks, remainder = divmod(depth - 4, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth is {depth}, but a wide residual network has 6N + 4 layers; choose 10, 16, 22, 28, ….")
        self.conv1 = convolution(3, 16, 3)
        in_channels = 16
        for number, stride in enumerate((1, 2, 2)):
            out_channels = 16 * width * 2**number
            first = WideBlock(in_channels, out_channels, stride=stride)
            rest = (WideBlock(out_channels, out_channels) for _ in range(1, blocks))
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *rest))
            in_channels = out_channels
        self.bn1, self.relu = nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(in_channels, num_classes)
        initialise_he(self)


class ZooResNeXt(nn.Sequential):
    """A home-made ResNeXt of report `zoo`: stages of three 32×4d blocks, each followed by a 3×3 convolution of stride 2.

    The convolution after each stage (`transition1`, …) halves the side of the maps. `stages`: for each, the channels before
    and after it; the stem has as many as stage 1. `rectify`: apply a ReLU to the scores. Source: report `zoo`, sections 3.4
    and 5.2; `results/notes.md`, "How we read the ResNeXts", has the choices that the report leaves open.
    """

    def __init__(self, num_classes: int, stages: Sequence[tuple[int, int]], rectify: bool = False):
        super().__init__()
        out_channels = stages[0][0]
        self.conv1 = nn.Conv2d(3, out_channels, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        self.stage_names = []
        for number, (channels, out_channels) in enumerate(stages, start=1):
            blocks = (Bottleneck(channels, channels, cardinality=32, group_width=4) for _ in range(3))
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.add_module(f"transition{number}", nn.Conv2d(channels, out_channels, 3, stride=2, padding=1))
            self.stage_names += [f"layer{number}", f"transition{number}"]
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(out_channels, num_classes)
        if rectify:
            self.rectified = nn.ReLU()
        initialise_he(self)
