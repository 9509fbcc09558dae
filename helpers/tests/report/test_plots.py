"""Figures: what is drawn where, and in which colour and marker."""

import numpy as np
import pandas as pd
import pytest

from helpers import experiments
from helpers.report import plots
from helpers.tests.experiments.test_results import make_run


def test_every_planned_model_belongs_to_a_family_with_its_own_colour_and_marker():
    planned = {row.model for row in experiments.EXPERIMENTS.values()}
    assert all(model.startswith(tuple(plots.FAMILIES)) for model in planned)
    assert {ink for ink, _ in plots.FAMILIES.values()} <= set(plots.PALETTE)
    styles = {tuple(plots.model_style(model).values()) for model in planned}
    assert len({marker for _, marker in styles}) == len(styles), "in greyscale, only markers tell the families apart"


def test_sixteen_lines_have_sixteen_colours():
    assert plots.INKS[:2] == ["#0072B2", "#E69F00"]
    assert len(plots.INKS) == len(set(plots.INKS)) == 16 and plots.INKS[14] == (0.5, 0.5, 0.5), "black, half as strong"


@pytest.fixture(autouse=True)
def closed():
    """Close every figure after its test."""
    yield
    plots.plt.close("all")


def test_the_accuracy_chart_shows_each_seed_the_mean_the_reports_value_and_the_published_one():
    """The reports print 90 to 91% and 77%; 94.73% is published elsewhere for the first network."""
    name, other = "cifar10/resnext29_under5m_amp", {"not run": "cifar10/slim_resnet_trial1"}
    records = [make_run(name, seed, predicted=predicted)[0] for seed, predicted in ((0, (0, 0, 1, 1, 0)), (1, (0, 0, 0, 1, 0)))]
    axis, other = plots.accuracy_chart({"CIFAR-100": {"one": name} | other, "CIFAR-10": other}, records).axes
    drawn = {
        (line.get_marker(), line.get_ydata()[0]): list(line.get_xdata()) for line in axis.lines if line.get_marker() in "oD"
    }
    ticks = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "|"]
    assert drawn["o", 0] == [0.6, 0.8] and drawn["D", 0] == [0.90, 0.91] and drawn["D", 1] == [0.77, 0.77]
    assert ticks == [pytest.approx(0.7), 0.9473]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "not run"]
    assert (axis.get_title("left"), other.get_title("left")) == ("CIFAR-100", "CIFAR-10")
    assert axis.get_xlim() == other.get_xlim()
    [apart] = (figure := plots.accuracy_chart({"own photographs": {"one": name}}, records, reported=False)).axes
    assert not [line for line in apart.lines if line.get_marker() == "D"]
    assert "the report's value" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_costs_are_drawn_at_their_true_values_on_one_accuracy_scale():
    table = pd.DataFrame(
        {
            "model": ["wrn16_2", "wrn16_4"],
            "parameters": [703_284, 2_772_020],
            "million MACs": [101.1, 400.0],
            "accuracy": [0.7, 0.7],
        },
        index=["narrow", "wide"],
    )
    size, time = plots.accuracy_against_cost(table, joined=[["narrow", "wide", "wider"]], hollow=["wide"]).axes
    joined, *points = size.lines
    assert joined.get_xydata().tolist() == [[0.703284, 0.7], [2.77202, 0.7]]
    assert [line.get_xydata().tolist() for line in points] == [[[0.703284, 0.7]], [[2.77202, 0.7]]]
    assert [line.get_xdata()[0] for line in time.lines[1:]] == [101.1, 400.0]
    assert [line.get_markerfacecolor() for line in points] == ["#000000", "white"]
    assert size.get_ylim() == time.get_ylim() and size.get_xscale() == "log"
    heights = [text.get_position()[1] for text in size.texts]
    assert abs(heights[0] - heights[1]) > 0.03, "labels of equal accuracies do not overlap"


def test_curves_are_validation_accuracies_and_losses_on_a_log_axis_with_a_label_on_each_line():
    first, second = (
        [row | {"epoch": epoch, "val_loss": loss} for epoch, row in enumerate(make_run()[0]["history"] * 3, 1)]
        for loss in (0.6, 0.8)
    )
    models = ("torchvision/resnet18", "resnext50_32x4d")
    runs = [{"history": rows, "model": {"name": model}} for rows, model in zip((first, second), models, strict=True)]
    figure = plots.curves({"one": runs[0], "other": runs[1]})
    accuracy, loss = figure.axes
    assert [line.get_ydata()[0] for line in accuracy.lines] == [0.6, 0.6]
    assert [(line.get_ydata()[0], line.get_linestyle()) for line in loss.lines] == [
        (0.6, "-"),
        (0.7, "--"),
        (0.8, "-"),
        (0.7, "--"),
    ]
    assert loss.get_yscale() == "log"
    for axis in figure.axes:
        assert sorted(text.get_text() for text in axis.texts) == ["one", "other"]
    assert [line.get_color() for line in accuracy.lines] == ["#0072B2", "#E69F00"]


def test_a_loss_that_diverged_has_no_label():
    rows = [make_run()[0]["history"][0] | {"epoch": epoch, "val_loss": loss} for epoch, loss in ((1, 2.3), (2, float("nan")))]
    accuracy, loss = plots.curves({"diverged": {"history": rows, "model": {"name": "wrn16_2"}}}).axes
    assert [text.get_text() for text in accuracy.texts] == ["diverged"] and not loss.texts


def test_a_single_epoch_is_drawn_as_a_point():
    row = make_run()[0]["history"][0]
    one = {"history": [row | {"epoch": epoch, "val_accuracy": accuracy} for epoch, accuracy in ((1, 0.3), (2, 0.5))]}
    one["model"] = {"name": "simplenet"}
    accuracy, loss = plots.curves({"one": one, "other": one | {"history": one["history"][:1]}}).axes
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 0.3], [2, 0.5]]
    assert [line.get_marker() for line in accuracy.lines] == ["", "o"]
    assert accuracy.get_xlabel() == loss.get_xlabel() == "epoch"


@pytest.mark.parametrize(
    ("number", "classes", "shape", "counts"), [(3, 2, (1, 3), 3), (13, 10, (4, 4), 99), (5, 20, (2, 3), 0)]
)
def test_confusion_matrices_are_drawn_in_rows_of_at_most_four(number, classes, shape, counts):
    run = {"dataset": {"classes": [f"class {index}" for index in range(classes)]}}
    run["test"] = {"accuracy": 0.5, "confusion": np.arange(classes**2).reshape(classes, classes).tolist()}
    axes = plots.confusion_matrices({f"run {index}": run for index in range(number)}).axes
    assert len(axes) == number and axes[0].get_gridspec().get_geometry() == shape
    assert all(len(axis.texts) == counts for axis in axes)
    assert [len(axis.get_yticklabels()) for axis in axes] == [0 if index % shape[1] else classes for index in range(number)]
    assert [bool(axis.get_xlabel()) for axis in axes] == [index + shape[1] >= number for index in range(number)]
    assert [text.get_text() for text in axes[0].texts] == [str(1 + count) for count in range(counts)], "zeros stay empty"


def test_the_loss_around_a_network_is_a_line_for_each_direction_and_one_for_their_mean():
    [axis] = plots.loss_around((-1, 1), {"a": np.array([[1.0, 2.0], [3.0, 6.0]])}).axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1, 2], [3, 6], [2, 4]]
