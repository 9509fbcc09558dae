"""Report `pikachu`: ResNeXt-50 on photographs, ResNeXt-29 on a part of CIFAR-10."""

from functools import partial

from helpers import experiments
from helpers.models import inspect as anatomy
from helpers.report.claims.checks import Arithmetic, Chance, each_of, images, only, shape_of, size_of
from helpers.report.claims.evidence import Claim
from helpers.report.claims.run_checks import Accuracy, Better, Close, Loss, Recall

OURS, OFFICIAL = "pikachu/resnext50_ours", "pikachu/resnext50_torchvision"
RESNET18 = "pikachu/resnet18_torchvision"
SMALL, SMALL_RESNET18 = "cifar10_5k/resnext29_32x4d", "cifar10_5k/resnet18_torchvision"
LABELS = {OURS: "our ResNext-50", OFFICIAL: "ResNext-50", RESNET18: "Resnet-18"}
TEST, SMALL_TEST = 258, 1_000  # test images, section 4

claim = partial(Claim, "pikachu")


def matrix_total(experiment: str) -> int:
    """The photographs in the confusion matrix that the report prints for an experiment."""
    return sum(sum(row) for row in experiments.find(experiment).reported["confusion"])


def matrix_accuracy(experiment: str) -> float:
    """The accuracy, in per cent, of that matrix."""
    (true_negatives, _), (_, true_positives) = experiments.find(experiment).reported["confusion"]
    return 100 * (true_negatives + true_positives) / matrix_total(experiment)


def nearest_fraction(per_cent: float, n: int) -> float:
    """The accuracy nearest to this one, in per cent, that n images can give."""
    return 100 * round(per_cent / 100 * n) / n


def printed_accuracy(experiment: str) -> float:
    """The test accuracy that the report prints for an experiment, in per cent."""
    return round(100 * experiments.find(experiment).reported["test_accuracy"], 2)


def whole_images(experiment: str, n: int) -> Arithmetic:
    """Whether the printed accuracy is one that n test images can give."""
    how = f"the nearest whole number of {n:,} test images, in per cent"
    return Arithmetic(how, lambda: nearest_fraction(printed_accuracy(experiment), n), "{:.2f}")


def table_row(experiment: str) -> list[Claim]:
    """What table 4.1 says of one network, and whether it agrees with itself."""
    name, reported = LABELS[experiment], experiments.find(experiment).reported
    (tn, fp), (fn, tp) = reported["confusion"]
    accuracy = f"{printed_accuracy(experiment):.2f}"
    total = Arithmetic("sum of the printed confusion matrix", lambda: matrix_total(experiment))
    share = Arithmetic("accuracy of the printed confusion matrix", lambda: matrix_accuracy(experiment), "{:.2f}")
    return [
        claim("Table 4.1", f"Validation loss of {name}", f"{reported['val_loss']:.4f}", Loss(experiment)),
        claim("Table 4.1", f"Test accuracy(%) of {name}", accuracy, Accuracy(experiment)),
        claim("Table 4.1", f"Not Pikachu, by {name}", f"TN: {tn} FP: {fp}", Recall(experiment, 0, tn, fp)),
        claim("Table 4.1", f"Pikachu, by {name}", f"FN: {fn} TP: {tp}", Recall(experiment, 1, tp, fn)),
        claim("Table 4.1", f"The confusion matrix of {name} is of the 258 test images of section 4", f"{TEST}", total),
        claim("Table 4.1", f"The confusion matrix of {name} gives its test accuracy(%)", accuracy, share),
        claim("Table 4.1", f"The test accuracy(%) of {name} is one of 258 images", accuracy, whole_images(experiment, TEST)),
    ]


def versus(first: str, second: str, n: int) -> Chance:
    """Two printed accuracies against chance."""
    return Chance(printed_accuracy(first), printed_accuracy(second), n)


CLAIMS = [
    claim(
        "section 3.1",
        "The input block has one 7x7 convolution layer and one 3x3 max pool layer",
        "7x7, 3x3",
        shape_of("resnext50_32x4d", 2, "stem", lambda net: f"{anatomy.kernel(net.conv1)}, {anatomy.kernel(net.maxpool)}"),
    ),
    claim(
        "section 3.1",
        "A residual block consists of 3 convolution layers",
        "3",
        size_of(
            "resnext50_32x4d",
            2,
            "convolutions on the main path of every block",
            lambda net: only(anatomy.depth(block) for block in anatomy.bottlenecks(net)),
        ),
    ),
    claim(
        "section 3.1",
        "The middle layer has a cardinality of 32",
        "32",
        size_of(
            "resnext50_32x4d",
            2,
            "groups of every middle convolution",
            lambda net: only(block.conv2.groups for block in anatomy.bottlenecks(net)),
        ),
    ),
    claim(
        "section 3.1",
        "The ResNext-29 for CIFAR-10 starts with a single 3x3 convolution layer",
        "3x3",
        shape_of("resnext29_32x4d", 10, "stem", lambda net: anatomy.kernel(net.conv1)),
    ),
    claim(
        "section 3.1",
        "It has 3 stages of residual block",
        "3",
        size_of("resnext29_32x4d", 10, "stages", lambda net: len(net.stage_names)),
    ),
    claim("section 3.1", "29 layer in total", "29", size_of("resnext29_32x4d", 10, "layers on the main path", anatomy.depth)),
    claim(
        "section 3.1",
        "Every convolution layer is followed by batch norm",
        "every",
        each_of(
            "resnext50_32x4d",
            2,
            "BatchNorms and convolutions",
            lambda net: (len(anatomy.batch_norms(net)), len(anatomy.convolutions(net))),
        ),
    ),
    claim(
        "section 3.1",
        "Every convolution layer is followed by relu layer",
        "every",
        each_of(
            "resnext50_32x4d",
            2,
            "convolutions with a ReLU before anything is added, of all convolutions",
            lambda net: (anatomy.directly_activated(net), len(anatomy.convolutions(net))),
        ),
    ),
    claim("section 4", "774 images in the training set", "774", images("pikachu", "train")),
    claim("section 4", "258 images in validation set", "258", images("pikachu", "validation")),
    claim("section 4", "258 images in testing set", "258", images("pikachu", "test")),
    claim(
        "section 4",
        "The result for all the models is close to each other (the lowest and the highest)",
        "77.52 and 83.33",
        Close(RESNET18, OFFICIAL, 0.0581, "the widest difference of table 4.1"),
    ),
    claim("section 4", "The best result from Resnet-18 (over our model)", "83.33 over 79.46", Better(RESNET18, OURS)),
    claim("section 4", "The best result from Resnet-18 (over ResNext-50)", "83.33 over 77.52", Better(RESNET18, OFFICIAL)),
    claim("Table 4.1", "Resnet-18 over our model, by the printed numbers", "83.33 over 79.46", versus(RESNET18, OURS, TEST)),
    claim(
        "Table 4.1", "Resnet-18 over ResNext-50, by the printed numbers", "83.33 over 77.52", versus(RESNET18, OFFICIAL, TEST)
    ),
    *table_row(OURS),
    *table_row(OFFICIAL),
    *table_row(RESNET18),
    claim(
        "section 4",
        "CIFAR-10 dataset consists of 5000 images in training set",
        "5000",
        images("cifar10_5k", "train", "validation"),
    ),
    claim("section 4", "1000 images in testing set", "1000", images("cifar10_5k", "test")),
    claim("Table 4.2", "Test accuracy(%) of our model on CIFAR-10", "45.06", Accuracy(SMALL)),
    claim("Table 4.2", "Test accuracy(%) of Resnet-18 on CIFAR-10", "66.38", Accuracy(SMALL_RESNET18)),
    claim(
        "Table 4.2",
        "The test accuracy(%) of our model is one of the 1000 images of section 4",
        "45.06",
        whole_images(SMALL, SMALL_TEST),
    ),
    claim(
        "Table 4.2",
        "The test accuracy(%) of Resnet-18 is one of 1000 images",
        "66.38",
        whole_images(SMALL_RESNET18, SMALL_TEST),
    ),
    claim("Table 4.2", "Resnet-18 is better than our model on CIFAR-10", "66.38 over 45.06", Better(SMALL_RESNET18, SMALL)),
    claim("Table 4.2", "The same by the printed numbers", "66.38 over 45.06", versus(SMALL_RESNET18, SMALL, SMALL_TEST)),
    claim(
        "Table 4.2",
        "The column of our model is the network that section 3.1 describes for CIFAR-10",
        "ResNext-50",
        Arithmetic("the name that section 3.1 gives it", lambda: "ResNext-29"),
    ),
    claim(
        "section 5",
        "The result is close to the official implementation in the pikachu dataset",
        "79.46 and 77.52",
        Close(OURS, OFFICIAL, 0.0194, "the difference of table 4.1"),
    ),
]
