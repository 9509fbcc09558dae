"""Memory counted without running: closed forms, and every experiment on a GPU of 15 GB."""

from dataclasses import replace

import torch
from torch import nn

from helpers.experiments import records as results
from helpers.experiments.plan import EXPERIMENTS
from helpers.report import formats, memory

FLOAT, LONG = 4, 8


def test_what_the_backward_pass_needs_in_closed_form():
    """Five images of 3×4×4 through a convolution of two channels: input, BatchNorm's input and statistics, and so on."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    pixels = 5 * 4 * 4
    images, convolved, activated, scores = 3 * pixels, 2 * pixels, 2 * pixels, 5 * 10
    loss = scores * FLOAT + 5 * LONG + FLOAT  # log-probabilities, labels and the number of images
    statistics = 2 * 2 * FLOAT  # mean and deviation of each channel of the batch
    expected = (images + convolved + activated) * FLOAT + statistics + loss
    assert memory.kept_for_backward(model, (5, 3, 4, 4)) == expected


def test_it_grows_with_the_batch_and_the_optimiser():
    weights, kept = memory._network("torchvision/resnet18", 10, 8, 32)
    assert weights == 11_181_642 * FLOAT
    assert abs(memory._network("torchvision/resnet18", 10, 16, 32)[1] / kept - 2) < 0.02
    images = 60_000 * 3 * 32 * 32
    assert memory.needed(EXPERIMENTS["cifar10_5k/resnet18_torchvision"]) == weights * 3 + kept + images  # with momentum
    plain, perturbed = (memory.needed(EXPERIMENTS[f"cifar10/resnext29_under5m_{name}"]) for name in ("sgd_same", "amp"))
    assert perturbed - plain == 2 * 4_761_770 * FLOAT
    row = EXPERIMENTS["cifar10/resnext29_under5m_sgd_same"]
    averaged, moved = (
        memory.needed(replace(row, recipe=replace(row.recipe, **{name: 0.9}))) for name in ("ema", "momentum_perturbation")
    )
    assert averaged - plain == moved - plain == 4_761_770 * FLOAT


def test_counting_computes_nothing():
    with torch.device("meta"):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2**20), nn.Linear(2**20, 2**20))
    assert model[-1].weight.nbytes == 2**42, "four TiB of weights"
    assert memory.kept_for_backward(model, (1, 3, 8, 8)) > 2**22


def test_every_experiment_fits_a_t4_and_the_committed_table_says_so():
    table = memory.table()
    assert set(table["experiment"]) == set(EXPERIMENTS) and table["GiB in fp32"].max() * 2**30 < memory.T4
    written = (results.RESULTS / "tables" / "memory.md").read_text(encoding="utf-8")
    assert written == formats.markdown(table), "run python -m helpers table"
