"""Figures made from run records: what stands where, in whose colour and marker."""

import pytest
from PIL import Image

from helpers import experiments, intervals, plots, results
from helpers.tests.test_results import make_run


def test_figures_are_rebuilt_from_the_records_alone(tmp_path):
    results.save(*make_run(), tmp_path)
    results.save(*make_run(name="pikachu/resnet18_torchvision", predicted=(1, 1, 1, 1, 0)), tmp_path)
    written = plots.write_figures(tmp_path)
    assert {path.name for path in written} == {"accuracy_parameters.png", "pikachu_curves.png", "pikachu_confusion.png"}
    for path in written:
        with Image.open(path) as image:
            assert [round(dots) for dots in image.info["dpi"]] == [300, 300], path.name


def test_every_model_of_the_plan_has_a_marker_of_its_own_and_a_colour():
    planned = {row.model for row in experiments.EXPERIMENTS.values()}
    assert planned <= plots.MARKERS.keys() == plots.COLOURS.keys()
    assert len(set(plots.MARKERS.values())) == len(plots.MARKERS)
    assert set(plots.COLOURS.values()) <= set(plots.PALETTE)


def test_the_figure_of_all_runs_has_a_point_an_experiment_at_its_means():
    records = [make_run()[0], make_run(seed=1, predicted=(0, 0, 0, 1, 1))[0], make_run("cifar10/other")[0]]
    records[1]["seconds"] = 4.0
    figure = plots.accuracy_against_cost(records)
    assert [axis.get_title() for axis in figure.axes] == ["pikachu", "pikachu", "cifar10", "cifar10"]
    bar, point = figure.axes[0].lines
    assert point.get_xydata().tolist() == [[22.984002, pytest.approx(0.9)]]
    assert bar.get_ydata().tolist() == [pytest.approx(intervals.wilson(4, 5)[0]), pytest.approx(intervals.wilson(5, 5)[1])]
    assert figure.axes[1].lines[1].get_xdata() == pytest.approx([0.05])  # minutes
    assert {axis.lines[1].get_color() for axis in figure.axes} == {plots.colour("resnext50_32x4d")}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["resnext50_32x4d"]
    plots.plt.close(figure)


def test_curves_have_their_models_colours_unless_two_share_one():
    history = make_run()[0]["history"]
    two = {"one": history, "other": history}
    figure = plots.curves(two, models=["torchvision/resnet18", "resnext50_32x4d"])
    assert [line.get_color() for line in figure.axes[0].lines[::2]] == [
        plots.colour("torchvision/resnet18"),
        plots.colour("resnext50_32x4d"),
    ]
    shared = plots.curves(two, models=["wrn16_2", "wrn16_4"])
    assert [line.get_color() for line in shared.axes[0].lines[::2]] == plots.PALETTE[:2]
    plots.plt.close(figure)
    plots.plt.close(shared)


def test_accuracy_over_time_is_a_line_a_run_over_its_minutes():
    history = [{"seconds": seconds, "val_accuracy": accuracy} for seconds, accuracy in ((60, 0.3), (120, 0.5))]
    figure = plots.accuracy_over_time({"a": {"one": history, "two": history[:1]}, "none": {}, "b": {"three": history}})
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 0.3], [3, 0.5]]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    plots.plt.close(figure)


def test_accuracies_are_points_with_bars_and_those_that_are_there_are_joined():
    points = {name: plots.Point(x, y, y - 0.1, y + 0.1) for name, x, y in (("wrn16_2", 1, 0.5), ("wrn16_8", 4, 0.7))}
    figure = plots.accuracies({"ours": points}, "width", joined={"depth 16": ("wrn16_2", "wrn16_4", "wrn16_8")})
    joined, first, second = figure.axes[0].lines
    assert joined.get_xydata().tolist() == [[1, 0.5], [4, 0.7]]
    [bar] = figure.axes[0].collections[0].get_segments()
    assert (bar.tolist(), first.get_ydata()) == ([[1, pytest.approx(0.4)], [1, pytest.approx(0.6)]], [0.5])
    assert first.get_marker() != second.get_marker() or first.get_fillstyle() != second.get_fillstyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["depth 16", "wrn16_2", "wrn16_8"]
    plots.plt.close(figure)
