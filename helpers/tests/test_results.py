"""Records, intervals, paired tests and tables, pinned to closed forms and to the report's own numbers."""

import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import experiments, plots, results
from helpers.cifar import CIFAR100_CLASSES, CIFAR100_SUPERCLASSES
from helpers.runtime import UserError


def make_run(name="pikachu/resnext50_ours", seed=0, profile="full", predicted=(0, 0, 1, 1, 1), stopped=None):
    """A small record in the real form, and its predictions."""
    true = np.array([0, 0, 0, 1, 1], np.int16)
    predicted = np.array(predicted, np.int16)
    confusion = np.zeros((2, 2), int)
    np.add.at(confusion, (true, predicted), 1)
    epoch = {"epoch": 1, "lr": 0.1, "train_loss": 0.7, "train_accuracy": 0.5, "val_loss": 0.6, "val_accuracy": 0.6}
    record = {
        "experiment": name,
        "report": "pikachu",
        "seed": seed,
        "profile": profile,
        "dataset": {"name": "pikachu", "source": "folder pikachu", "fingerprint": "ab", "classes": ["no", "yes"]},
        "model": {"name": "resnext50_32x4d", "params": 22984002, "macs": 1},
        "recipe": {"epochs": 1},
        "history": [epoch | {"seconds": 2.0, "train_seconds": 1.5}],
        "stopped_early": stopped,
        "test": {"loss": 0.5, "accuracy": float((true == predicted).mean()), "n": 5, "confusion": confusion.tolist()},
        "predictions": f"seed{seed}.predictions.npz",
        "best": {"epoch": 1, "val_accuracy": 0.6, "val_loss": 0.6},
        "seconds": 2.0,
        "environment": {"device": "CPU, 2 threads"},
    }
    return record, {"true": true, "predicted": predicted, "confidence": np.full(5, 0.9, np.float32)}


def test_wilson_interval_in_closed_form():
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = 0.8, n = 10, z = 1.959964
    assert results.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_the_reports_three_accuracies_lie_within_each_others_intervals():
    low, high = results.wilson(205, 258)  # 79.46 %
    assert (low, high) == pytest.approx((0.7411, 0.8394), abs=5e-4)
    assert low < 200 / 258 < high and low < 215 / 258 < high


def test_exact_mcnemar_is_a_binomial_test_on_the_discordant_pairs():
    true = np.zeros(20, int)
    first, second = np.zeros(20, int), np.zeros(20, int)
    first[:1] = 1  # one image only the second gets right
    second[5:11] = 1  # six images only the first gets right
    only_first, only_second, p = results.mcnemar(
        {"true": true, "predicted": first}, {"true": true, "predicted": second}
    )
    assert (only_first, only_second) == (6, 1)
    assert p == pytest.approx(2 * (1 + 7) / 2**7)  # two tails of at most one success in seven
    assert results.mcnemar({"true": true, "predicted": first}, {"true": true, "predicted": first}) == (0, 0, 1.0)


def test_mcnemar_refuses_other_images():
    with pytest.raises(ValueError, match="different test images"):
        results.mcnemar(
            {"true": np.array([0, 1]), "predicted": np.array([0, 1])},
            {"true": np.array([1, 1]), "predicted": np.array([0, 1])},
        )


def test_a_saved_record_comes_back_as_it_was(tmp_path):
    record, predictions = make_run()
    path = results.save(record, predictions, tmp_path)
    assert path == tmp_path / "runs/pikachu/resnext50_ours/full/seed0.json"
    assert results.load(path) == record
    for name, array in results.predictions(record, tmp_path).items():
        assert np.array_equal(array, predictions[name])
    assert sorted(file.name for file in path.parent.iterdir()) == ["seed0.json", "seed0.predictions.npz"]
    assert results.load_all(tmp_path) == [record]


def test_a_quick_run_never_replaces_a_full_one(tmp_path):
    full, quick = make_run(), make_run(profile="quick")
    assert results.save(*full, tmp_path) != results.save(*quick, tmp_path)
    assert [record["profile"] for record in results.load_all(tmp_path)] == ["full", "quick"]
    assert len(results.load_all(tmp_path, "full")) == 1


def test_a_run_that_stopped_early_does_not_replace_a_whole_one(tmp_path):
    results.save(*make_run(stopped="time budget"), tmp_path)
    path = results.save(*make_run(), tmp_path)
    with pytest.raises(UserError, match="stopped early; it was not replaced"):
        results.save(*make_run(stopped="time budget"), tmp_path)
    assert results.load(path)["stopped_early"] is None


def test_a_run_on_other_images_does_not_replace_a_record(tmp_path, monkeypatch):
    record, predictions = make_run()
    results.save(record, predictions, tmp_path)
    other = copy.deepcopy(record)
    other["dataset"]["fingerprint"] = "cd"
    with pytest.raises(UserError, match="is a run on other images; it was not replaced"):
        results.save(other, predictions, tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert results.folder_for("full", "ab", "pikachu") == results.folder_for("full", "zz", "cifar10") == tmp_path
    assert results.folder_for("full", "cd", "pikachu") == results.ROOT / "data" / "results"
    assert results.folder_for("smoke", "ab", "pikachu") not in (tmp_path, results.ROOT / "data" / "results")


def test_a_record_that_contradicts_itself_is_refused(tmp_path):
    record, predictions = make_run()
    wrong = copy.deepcopy(record)
    wrong["test"]["accuracy"] = 0.99
    with pytest.raises(UserError, match="contradicts itself"):
        results.load(results.save(wrong, predictions, tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"test": {}}', '{"test": {"confusion": [[1]], "n": 0, "accuracy": 1}}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "seed0.json"
    path.write_text(text)
    with pytest.raises(UserError, match="seed0.json"):
        results.load(path)


def test_a_full_disk_leaves_no_half_written_record(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(UserError, match="could not be written .No space left on device"):
        results.save(*make_run(), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_comparison_over_seeds_in_closed_form(tmp_path):
    for seed, predicted in enumerate([(0, 0, 1, 1, 1), (0, 0, 0, 1, 1), (0, 1, 1, 1, 1)]):
        results.save(*make_run(seed=seed, predicted=predicted), tmp_path)
    row = results.comparison_table(results.load_all(tmp_path)).iloc[0]
    assert row["seeds"] == 3
    assert row["test accuracy"] == pytest.approx(0.8)
    assert row["sd"] == pytest.approx(0.2), "sample standard deviation of 0.8, 1.0, 0.6"
    assert row["accuracy, report"] == 0.7946


def test_the_gap_over_seeds_is_the_paired_t_interval(tmp_path):
    """Differences of 0.2, 0.4 and 0.0: mean 0.2, standard error 0.2 / sqrt(3), t of two degrees of freedom 4.3027."""
    other = "pikachu/resnet18_torchvision"
    runs = [(0, 0, 0, 1, 0), (0, 0, 1, 0, 1), (0, 0, 0, 1, 1)], [(0, 0, 0, 1, 1), (0, 0, 0, 1, 1), (0, 0, 0, 1, 1)]
    for name, row in zip(("pikachu/resnext50_ours", other), runs, strict=True):
        for seed, predicted in enumerate(row):
            results.save(*make_run(name, seed, predicted=predicted), tmp_path)
    records = results.load_all(tmp_path)
    gap = results.gap_over_seeds(records, "pikachu/resnext50_ours", other)
    half = 4.302652729911275 * 0.2 / 3**0.5
    assert gap == pytest.approx((3, 0.2, 0.2 - half, 0.2 + half))
    two, mean, *_ = results.gap_over_seeds(records[:2] + records[3:], other, "pikachu/resnext50_ours")
    assert (two, mean) == (2, pytest.approx(-0.3))
    one, mean, low, high = results.gap_over_seeds([records[0], records[3]], "pikachu/resnext50_ours", other)
    assert (one, mean) == (1, pytest.approx(0.2)) and np.isnan([low, high]).all()


def test_tables_and_figures_are_rebuilt_from_the_records_alone(tmp_path):
    results.save(*make_run(), tmp_path)
    results.save(*make_run(name="pikachu/resnet18_torchvision", predicted=(1, 1, 1, 1, 0)), tmp_path)
    names = {path.name for path in results.write_tables(tmp_path) + plots.write_figures(tmp_path)}
    assert {"runs.csv", "pikachu_comparison.md", "pikachu_mcnemar.csv", "pikachu_curves.png"} <= names
    for path in (tmp_path / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert [round(dots) for dots in image.info["dpi"]] == [300, 300], path.name
    assert "accuracy_parameters.png" in names
    pair = results.mcnemar_table(results.load_all(tmp_path), tmp_path).iloc[0]
    assert (pair["only first right"], pair["only second right"]) == (0, 3)
    assert "| 80.00% |" in (tmp_path / "tables/runs.md").read_text()


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
    assert bar.get_ydata().tolist() == [pytest.approx(results.wilson(4, 5)[0]), pytest.approx(results.wilson(5, 5)[1])]
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


def test_no_records_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no run record under .*; make one with python -m helpers run"):
        results.write_tables(tmp_path)


def test_obtain_loads_before_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "run", lambda name, seed, profile, **_: make_run(name, seed, profile))
    assert results.obtain("pikachu/resnext50_ours", 1, "quick", tmp_path, train=False) is None
    assert "not run yet; python -m helpers run pikachu/resnext50_ours --seed 1" in capsys.readouterr().out
    trained = results.obtain("pikachu/resnext50_ours", 1, "quick", tmp_path)
    other = lambda name, seed, profile, **_: make_run(name, seed, profile, predicted=(0, 0, 0, 1, 1))  # noqa: E731
    monkeypatch.setattr(experiments, "run", other)
    assert results.obtain("pikachu/resnext50_ours", 1, "quick", tmp_path) == trained
    again = results.obtain("pikachu/resnext50_ours", 1, "quick", tmp_path, retrain=True)
    assert (trained["test"]["accuracy"], again["test"]["accuracy"]) == (0.8, 1.0)


def test_all_runs_of_several_experiments_leave_out_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "run", lambda name, seed, profile, **_: make_run(name, seed, profile))
    names, cpu = ("pikachu/resnext50_ours", "pikachu/resnet18_torchvision"), torch.device("cpu")
    results.save(*make_run(names[1], 1), tmp_path)
    [found] = results.obtain_all(names, (0, 1), "full", tmp_path, device=cpu)
    assert (found["experiment"], found["seed"]) == (names[1], 1), "hours of training are not begun on a CPU"
    assert len(results.obtain_all(names, (0, 1), "quick", tmp_path, device=cpu)) == 4


def test_readme_tables_go_between_their_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "readme_table", lambda: "new\n")
    monkeypatch.setattr(results, "speed_table", lambda: "fast\n")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- results -->\nold\n<!-- /results -->\nb\n<!-- speed -->\n<!-- /speed -->\nc\n")
    results.write_readme(readme)
    assert readme.read_text() == (
        "a\n<!-- results -->\nnew\n<!-- /results -->\nb\n<!-- speed -->\nfast\n<!-- /speed -->\nc\n"
    )
    results.write_readme(readme, results="more\n")
    assert "<!-- results -->\nmore\n<!-- /results -->" in readme.read_text()
    readme.write_text("a\n<!-- results -->\n<!-- /results -->\n")
    with pytest.raises(UserError, match="README.md has no <!-- speed -->"):
        results.write_readme(readme)


def test_the_speed_table_is_read_from_what_bench_kept(tmp_path):
    row = {"model": "resnext29_32x4d", "image_size": 32, "batch": 64, "ratio": 5.04, "input_ratio": 7.0}
    row |= {"textbook_images_per_second": 19.4, "ours_images_per_second": 97.77}
    row |= {"textbook_peak_memory_bytes": 2**31, "ours_peak_memory_bytes": 2**30}
    (tmp_path / "bench").mkdir()
    around = {"device": "CPU, 2 threads", "mixed_precision": "bfloat16"}
    (tmp_path / "bench" / "cpu.json").write_text(json.dumps({"environment": around, "results": [row], "pieces": []}))
    line = "| CPU, 2 threads, bfloat16 | resnext29_32x4d | 32×32 | 64 | 19.4 | 97.8 | 5.0× | 7.0× | 2.0 → 1.0 |"
    assert line in results.speed_table(tmp_path)


def hundred_classes() -> dict:
    """A record where every class has one image, and is right, but for what follows."""
    counts = np.eye(100, dtype=int)
    apple, pear, bottle, shark = (CIFAR100_CLASSES.index(name) for name in ("apple", "pear", "bottle", "shark"))
    counts[apple, pear] += 3  # within fruit_and_vegetables
    counts[apple, bottle] += 1  # to food_containers
    counts[bottle, bottle] += 4
    counts[shark, shark], counts[shark, apple] = 0, 1  # fish to fruit_and_vegetables
    record = {"experiment": "cifar100/some", "dataset": {"classes": list(CIFAR100_CLASSES)}}
    return record | {"test": {"confusion": counts.tolist(), "n": int(counts.sum())}}


def test_superclass_confusion_by_hand():
    counts = results.superclass_confusion(hundred_classes())
    order = list(CIFAR100_SUPERCLASSES)
    fish, containers, fruit = (order.index(name) for name in ("fish", "food_containers", "fruit_and_vegetables"))
    expected = 5 * np.eye(20, dtype=int)  # five classes each, one image a class
    expected[fruit, fruit], expected[fruit, containers] = 5 + 3, 1
    expected[containers, containers] = 5 + 4
    expected[fish, fish], expected[fish, fruit] = 4, 1
    assert counts.tolist() == expected.tolist()


def test_superclass_table_by_hand():
    table = results.superclass_table(hundred_classes()).set_index("superclass")
    assert table.loc["fruit_and_vegetables"].tolist() == [9, 5 / 9, 8 / 9]
    assert table.loc["food_containers"].tolist() == [9, 1, 1]
    assert table.loc["fish"].tolist() == [5, 4 / 5, 4 / 5]
    assert table.loc["trees"].tolist() == [5, 1, 1]
    assert table.loc["all"].tolist() == pytest.approx([108, 103 / 108, 106 / 108])
    assert list(table.index) == [*CIFAR100_SUPERCLASSES, "all"]
    assert "| fish | 5 | 80.00% | 80.00% |" in results.markdown(results.superclass_table(hundred_classes()))


def test_other_classes_have_no_superclasses():
    with pytest.raises(UserError, match="pikachu/resnext50_ours is no run on the 100 classes of CIFAR-100"):
        results.superclass_table(make_run()[0])


def committed():
    return sorted((results.RESULTS / "runs").glob("*/*/*/seed*.json"))


@pytest.mark.parametrize("path", committed(), ids=lambda path: "/".join(path.parts[-4:]))
def test_committed_records_agree_with_themselves_and_with_the_plan(path):
    record = results.load(path)
    assert results.record_path(record["experiment"], record["profile"], record["seed"]) == path
    assert record["dataset"]["source"] != "sample"
    declared = asdict(experiments.recipe_for(experiments.find(record["experiment"]), record["profile"]))
    # An older record lacks the numbers that recipes have gained since; what it has must still be what the plan says.
    assert record["recipe"].items() <= json.loads(json.dumps(declared)).items()
    assert len(record["history"]) == record["recipe"]["epochs"] or record["stopped_early"]
    best = max(record["history"], key=lambda epoch: epoch["val_accuracy"])
    assert record["best"]["epoch"] == best["epoch"]
    arrays = results.predictions(record)
    counts = np.zeros_like(np.array(record["test"]["confusion"]))
    np.add.at(counts, (arrays["true"], arrays["predicted"]), 1)
    assert counts.tolist() == record["test"]["confusion"]


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path):
    if not committed():
        pytest.skip("no committed record yet")
    records = results.load_all()
    table = results.RESULTS / "tables" / "runs.md"
    assert table.read_text(encoding="utf-8") == results.markdown(results.runs_table(records))
    readme = (results.ROOT / "README.md").read_text(encoding="utf-8")
    assert results.readme_table() in readme and results.speed_table() in readme
