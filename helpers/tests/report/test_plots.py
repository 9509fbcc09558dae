"""Figures: what stands where, in whose colour and marker."""

import numpy as np
import pytest

from helpers import experiments
from helpers.report import plots
from helpers.report import statistics as intervals
from helpers.tests.experiments.test_results import make_run


def test_every_model_of_the_plan_has_a_marker_of_its_own_and_a_colour():
    planned = {row.model for row in experiments.EXPERIMENTS.values()}
    assert planned <= plots.MARKERS.keys() == plots.COLOURS.keys()
    assert len(set(plots.MARKERS.values())) == len(plots.MARKERS)
    assert set(plots.COLOURS.values()) <= set(plots.PALETTE)


@pytest.fixture(autouse=True)
def closed():
    """Every figure is closed after its test."""
    yield
    plots.plt.close("all")


def test_the_figure_of_all_runs_has_a_point_an_experiment_at_its_means():
    records = [make_run()[0], make_run(seed=1, predicted=(0, 0, 0, 1, 1))[0], make_run("cifar10/other")[0]]
    records[1]["seconds"] = 4.0
    records[2]["report"] = "slim"
    figure = plots.accuracy_against_cost(records)
    titles = [axis.get_title("left") for axis in figure.axes]
    assert titles == ["cifar10, report slim", "", "pikachu, report pikachu", ""]
    size, time = figure.axes[2:]
    assert size.lines[0].get_xydata().tolist() == [[22.984002, pytest.approx(0.9)]]
    [bar] = size.collections[0].get_segments()
    assert bar[:, 1] == pytest.approx([intervals.wilson(4, 5)[0], intervals.wilson(5, 5)[1]])
    assert time.lines[0].get_xdata() == pytest.approx([0.05])  # minutes
    assert {axis.lines[0].get_color() for axis in figure.axes} == {plots.colour("resnext50_32x4d")}
    assert [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes[1::2]] == [
        ["other"],
        ["resnext50_ours"],
    ]


def test_experiments_with_one_network_are_numbered_and_stand_side_by_side():
    names = ("pikachu/resnext50_ours", "pikachu/resnext50_longer", "pikachu/other")
    records = [make_run(name)[0] for name in names]
    records[2]["model"] = {"name": "torchvision/resnet18", "params": 11_177_538, "macs": 1}
    size, time = plots.accuracy_against_cost(records).axes
    assert [text.get_text() for text in time.get_legend().get_texts()] == ["1 resnext50_ours", "2 resnext50_longer", "other"]
    assert [text.get_text() for text in size.texts] == ["1 ", "2 ", ""]
    first, second, other = (line.get_xdata()[0] for line in size.lines)
    assert first < 22.984002 < second < 1.1 * first and other == 11.177538
    assert first * second == pytest.approx(22.984002**2)
    assert len({line.get_xdata()[0] for line in time.lines}) == 1, "the minutes stay where they are"


def test_curves_have_their_models_colours_and_markers():
    history = make_run()[0]["history"]
    names = ["torchvision/resnet18", "resnext50_32x4d"]
    loss, accuracy = plots.curves({"one": history, "other": history}, models=names).axes
    for axis, what in ((loss, "loss"), (accuracy, "accuracy")):
        assert [(line.get_color(), line.get_marker()) for line in axis.lines[::2]] == [
            (plots.colour(name), plots.look(name)["marker"]) for name in names
        ]
        assert [line.get_ydata()[0] for line in axis.lines[:2]] == [history[0][f"train_{what}"], history[0][f"val_{what}"]]
        assert [line.get_linestyle() for line in axis.lines[:2]] == ["--", "-"]


def test_curves_over_minutes_add_up_what_the_epochs_took():
    row = make_run()[0]["history"][0]
    history = [row | {"seconds": seconds, "val_accuracy": accuracy} for seconds, accuracy in ((60, 0.3), (120, 0.5))]
    together = plots.curves({"one": history}, models=["simplenet"], minutes=True)
    assert together.axes[1].lines[1].get_xydata().tolist() == [[1, 0.3], [3, 0.5]]
    assert together.axes[1].get_xlabel() == "minutes of training"
    apart = plots.curves({"one": history, "other": history[:1]}, models=["wrn16_2", "wrn16_4"], minutes=True)
    last = {axis.get_title(): axis.lines[-1].get_xdata()[-1] for axis in apart.axes if axis.get_title()}
    assert last == {"one": 3, "other": 1}


@pytest.mark.parametrize(("models", "axes"), [(["wrn16_2", "wrn16_4"], 4), (["wrn16_2"] * 13, 26), ((), 2)])
def test_curves_of_many_runs_or_of_one_colour_stand_apart(models, axes):
    histories = {f"run {index}": make_run()[0]["history"] for index in range(len(models) or 2)}
    histories["run 1"] = [row | {"val_loss": 0.8} for row in histories["run 1"]]
    figure = plots.curves(histories, models=models)
    assert len(figure.axes) == axes
    if models:
        second = next(axis for axis in figure.axes if axis.get_title() == "run 1")
        *others, train, own = second.lines
        assert [line.get_ydata()[0] for line in others] == [row[0]["val_loss"] for row in histories.values()]
        assert (train.get_ydata()[0], own.get_ydata()[0], own.get_color()) == (0.7, 0.8, plots.colour(models[1]))


@pytest.mark.parametrize(
    ("number", "classes", "shape", "counts"), [(3, 2, (1, 3), 4), (13, 10, (4, 4), 100), (5, 20, (2, 3), 0)]
)
def test_confusion_matrices_stand_in_rows_of_at_most_four(number, classes, shape, counts):
    matrices = {f"run {index}": np.arange(classes**2).reshape(classes, classes) for index in range(number)}
    axes = plots.confusion(matrices, [f"class {index}" for index in range(classes)]).axes
    assert len(axes) == number and axes[0].get_gridspec().get_geometry() == shape
    assert all(len(axis.texts) == counts for axis in axes)
    assert [len(axis.get_yticklabels()) for axis in axes] == [0 if index % shape[1] else classes for index in range(number)]
    assert [bool(axis.get_xlabel()) for axis in axes] == [index + shape[1] >= number for index in range(number)]
    if counts:
        assert [text.get_text() for text in axes[0].texts] == [str(count) for count in range(classes**2)]


def test_accuracies_are_points_with_bars_and_those_that_are_there_are_joined():
    points = {name: plots.Point(x, y, y - 0.1, y + 0.1) for name, x, y in (("wrn16_2", 1, 0.5), ("wrn16_8", 4, 0.7))}
    figure = plots.accuracies({"ours": points}, "width", joined={"depth 16": ("wrn16_2", "wrn16_4", "wrn16_8")})
    joined, first, second = figure.axes[0].lines
    assert joined.get_xydata().tolist() == [[1, 0.5], [4, 0.7]]
    [bar] = figure.axes[0].collections[0].get_segments()
    assert (bar.tolist(), first.get_ydata()) == ([[1, pytest.approx(0.4)], [1, pytest.approx(0.6)]], [0.5])
    assert first.get_marker() != second.get_marker() or first.get_fillstyle() != second.get_fillstyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["depth 16", "wrn16_2", "wrn16_8"]
