"""Tables made from run records, pinned to hand-computed rows and to what is committed."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_SUPERCLASSES
from helpers.experiments import records as results
from helpers.report import formats, plots, statistics, tables
from helpers.runtime import UserError
from helpers.tests.experiments.test_results import make_run


def test_comparison_over_seeds_in_closed_form(tmp_path):
    for seed, predicted in enumerate([(0, 0, 1, 1, 1), (0, 0, 0, 1, 1), (0, 1, 1, 1, 1)]):
        results.save(*make_run(seed=seed, predicted=predicted), tmp_path)
    table = tables.comparison_table(results.load_all(tmp_path))
    row = table.iloc[0]
    assert row["seeds"] == 3
    assert row["test accuracy"] == pytest.approx(0.8)
    assert row["sd"] == pytest.approx(0.2), "sample standard deviation of 0.8, 1.0, 0.6"
    assert row["report"] == 0.7946
    assert row["val loss"] == pytest.approx(0.6)
    assert (row["low"], row["high"]) == statistics.prediction_interval([0.8, 1.0, 0.6], 0, 1)
    assert len(table.columns) == 9


def test_runs_on_different_images_are_not_paired(tmp_path):
    one, other = make_run(), make_run("pikachu/resnet18_torchvision")
    other[0]["dataset"] = other[0]["dataset"] | {"fingerprint": "cd"}
    for run in (one, other):
        results.save(*run, tmp_path)
    assert tables.paired_table(results.load_all(tmp_path), results_dir=tmp_path).empty
    for name, fingerprint in itertools.product(("pikachu/resnext50_ours", "pikachu/resnet18_torchvision"), ("ab", "cd")):
        record, predictions = make_run(name, seed=int(fingerprint == "cd"))
        record["dataset"] = record["dataset"] | {"fingerprint": fingerprint}
        results.save(record, predictions, tmp_path / "two")
    table = tables.paired_table(results.load_all(tmp_path / "two"), results_dir=tmp_path / "two")
    assert list(table["seeds"]) == [1], "seed 1 has other test images"


def test_tables_without_records_are_empty():
    assert tables.runs_table([]).empty and list(tables.runs_table([])["experiment"]) == []


def test_tables_are_rebuilt_from_the_records_alone(tmp_path):
    results.save(*make_run(), tmp_path)
    results.save(*make_run(name="pikachu/resnet18_torchvision", predicted=(1, 1, 1, 1, 0)), tmp_path)
    records = results.load_all(tmp_path)
    names = {path.name for path in tables.write(records, tmp_path)}
    assert {"runs.csv", "pikachu_comparison.md", "pikachu_paired.csv"} <= names
    [pair] = tables.paired_table(records, results_dir=tmp_path).to_dict("records")
    assert (pair["first"], pair["only first right"], pair["only second right"]) == ("pikachu/resnet18_torchvision", 0, 3)
    assert pair["p"] == 0.25, "McNemar's exact test: 2 · (1/2)³"
    tables.write(records[:1], tmp_path)  # runs that price an ingredient are compared only in notebook 06
    priced = [records[0] | {"experiment": f"cifar10/wrn16_2_short{end}"} for end in ("", "_without_ema")]
    assert tables.full_runs(priced) == [] and tables.full_runs(records) == records
    results.save(priced[0], make_run()[1], tmp_path)
    tables.write([*records[:1], *priced], tmp_path)
    assert not (tmp_path / "tables/pikachu_paired.csv").exists() and (tmp_path / "tables/pikachu_comparison.md").exists()
    assert "| 20.00% |" in (tmp_path / "tables/runs.md").read_text()
    tables.write([records[0], make_run(seed=1, profile="quick")[0]], tmp_path)
    assert "| 22,984,002 | 1 |" in (tmp_path / "tables/pikachu_comparison.md").read_text(), "a quick run is not one more seed"


def test_no_records_gives_a_one_sentence_error(tmp_path):
    with pytest.raises(UserError, match="no run record under .*; make one with python -m helpers run"):
        tables.write([], tmp_path)


def hundred_classes() -> dict:
    """A record where every class has one image, all classified correctly except for the changes below."""
    counts = np.eye(100, dtype=int)
    apple, pear, bottle, shark = (CIFAR100_CLASSES.index(name) for name in ("apple", "pear", "bottle", "shark"))
    counts[apple, pear] += 3  # within fruit_and_vegetables
    counts[apple, bottle] += 1  # to food_containers
    counts[bottle, bottle] += 4
    counts[shark, shark], counts[shark, apple] = 0, 1  # fish to fruit_and_vegetables
    record = {"experiment": "cifar100/some", "dataset": {"classes": list(CIFAR100_CLASSES)}}
    return record | {"test": {"confusion": counts.tolist(), "n": int(counts.sum())}}


def test_superclass_confusion_by_hand():
    figure = plots.confusion_matrices({"run": hundred_classes()})
    [axis], order = figure.axes, list(CIFAR100_SUPERCLASSES)
    plt.close(figure)
    counts = np.zeros((20, 20), int)
    for text in axis.texts:
        counts[text.get_position()[::-1]] = text.get_text()
    assert [label.get_text() for label in axis.get_yticklabels()] == [name.replace("_", " ") for name in order]
    fish, containers, fruit = (order.index(name) for name in ("fish", "food_containers", "fruit_and_vegetables"))
    expected = 5 * np.eye(20, dtype=int)  # five classes each, one image per class
    expected[fruit, fruit], expected[fruit, containers] = 5 + 3, 1
    expected[containers, containers] = 5 + 4
    expected[fish, fish], expected[fish, fruit] = 4, 1
    assert counts.tolist() == expected.tolist()


def ten_classes() -> dict:
    """A CIFAR-10 record where every class has two images, all classified correctly except for the changes below."""
    counts = 2 * np.eye(10, dtype=int)
    for true, other in (("cat", "dog"), ("dog", "cat"), ("ship", "bird")):
        one, two = CIFAR10_CLASSES.index(true), CIFAR10_CLASSES.index(other)
        counts[one, one] -= 1
        counts[one, two] += 1
    counts[CIFAR10_CLASSES.index("ship"), CIFAR10_CLASSES.index("bird")] += 4
    return {"experiment": "cifar10/some", "dataset": {"classes": CIFAR10_CLASSES}, "test": {"confusion": counts.tolist()}}


def test_the_most_confused_classes_by_hand():
    assert tables.most_confused(ten_classes()).values.tolist() == [
        ["ship", "bird", 5, 5 / 6],
        ["cat", "dog", 1, 0.5],
        ["dog", "cat", 1, 0.5],
    ]
    assert tables.most_confused(ten_classes(), 1)["true"].tolist() == ["ship"]
    assert tables.most_confused(hundred_classes(), 1).values.tolist() == [["apple", "pear", 3, 3 / 5]]


def test_the_time_table_by_hand():
    records = []
    for seed, epochs, predicted in ((0, 3, (0, 0, 1, 1, 1)), (1, 2, (0, 0, 0, 1, 1))):
        record, _ = make_run("cifar10/wrn16_2", seed, predicted=predicted)
        record |= {"images_per_second": 100.0 + seed, "seconds": 60.0 * (1 + seed)}
        record["recipe"]["time_budget"] = 4.5 * record["history"][0]["seconds"]  # the recipe's budget, not the run's
        record["history"] = [record["history"][0] | {"train_seconds": float(seconds)} for seconds in (1, 1, 4)[:epochs]]
        record["test"]["accuracy_at_5"] = 1.0
        records.append(record)
    table = tables.time_table(["cifar10/wrn16_2", "cifar10/simplenet"], records, 100)
    speed = (200 + 101) / 2  # the first run's median epoch took half as long as its mean epoch
    expected = ["wrn16_2", 703_284, pytest.approx(101.118464), 2, speed, 2.5, 4, pytest.approx(0.9), 1]
    assert table.iloc[0].tolist() == expected
    text = formats.as_text(table).iloc[1].tolist()
    assert text == ["simplenet", "5,521,508", "652.2", *[""] * 6], "not run, and so no numbers"


def test_the_committed_tables_match_the_committed_records():
    records = results.load_all()
    expected = {"runs": tables.runs_table(records)}
    for report in {record["report"] for record in records}:
        own = [record for record in records if (record["report"], record["profile"]) == (report, "full")]
        paired = [record for record in own if tables.PRICED not in record["experiment"]]
        expected |= {f"{report}_comparison": tables.comparison_table(own), f"{report}_paired": tables.paired_table(paired)}
    for name, table in expected.items():
        text = f"{tables.CAPTIONS[name.split('_')[-1]]}\n\n{formats.markdown(table)}"
        path = results.RESULTS / "tables" / f"{name}.md"
        assert not len(table) or path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m helpers table"


def test_experiments_are_paired_image_by_image_over_their_common_seeds(tmp_path):
    one, other = "pikachu/resnext50_ours", "pikachu/resnet18_torchvision"
    for name, seed, predicted in ((one, 0, (0, 0, 1, 1, 1)), (other, 0, (0, 0, 0, 1, 1)), (other, 1, (0, 0, 0, 0, 0))):
        results.save(*make_run(name, seed, predicted=predicted), tmp_path)
    pairs = [(one, other), (other, one), (one, "pikachu/none")]
    table = tables.paired_table(results.load_all(tmp_path), pairs, tmp_path)
    half = 1.959964 * (0.2 * 0.8 / 5) ** 0.5  # only the second is right on a fifth of the images
    assert table.iloc[0].tolist() == [one, other, 1, 0, 1, *map(pytest.approx, (20, 20 - 100 * half, 20 + 100 * half)), 1.0]
    assert table.iloc[1]["points"] == pytest.approx(-20)
    assert formats.as_text(table).iloc[2].tolist() == [one, "pikachu/none", *[""] * 7]
    assert formats.as_text(table).iloc[0]["points"] == "+20.0"


def test_a_styled_table_has_a_caption_and_bold_best_values_and_is_reproducible():
    table = pd.DataFrame({"experiment": ["a", "b", "c"], "test accuracy": [0.5, 0.75, None], "val loss": [0.3, 0.4, 0.5]})
    html = formats.styled(table, "Two networks", best=("test accuracy", "val loss")).data
    assert "<caption>Two networks</caption>" in html and ">75.00%</td>" in html and "None" not in html
    bold = re.search(r"((?:#\S+, )*#\S+) \{\s*font-weight: bold", html)[1]
    assert [cell.split("_row")[1] for cell in bold.split(", ")] == ["1_col1", "2_col2"]
    assert html == formats.styled(table, "Two networks", best=("test accuracy", "val loss")).data


def test_a_mark_is_reached_missed_or_open(tmp_path):
    for name, predicted, flipped in (
        ("cifar100/wrn16_2_fast", (0, 0, 1, 0, 0), 0.4),
        ("pikachu/resnet18_fast", (0, 0, 1, 1, 1), 1.0),
        ("cifar100/zoo_resnext1_doubling_fast", (0, 0, 1, 0, 1), 0.6),
    ):
        record, predictions = make_run(name, predicted=predicted)
        record["test"]["accuracy_mirrored"] = flipped
        results.save(record, predictions, tmp_path)
    table = tables.short_recipes(results.load_all(tmp_path)).set_index("experiment")
    outcome = table[["seeds", "test accuracy", "flipped copy", "mark", "outcome"]].T
    assert outcome["cifar100/wrn16_2_fast"].tolist() == [1, 0.4, 0.4, 0.7, "missed"]
    assert outcome["pikachu/resnet18_fast"].tolist() == [1, 0.8, 1.0, 0.9, "missed"]
    assert outcome["cifar100/zoo_resnext1_doubling_fast"].tolist() == [1, 0.6, 0.6, 0.45, "reached"]
    assert outcome["cifar100/wrn28_2_fast"].drop("flipped copy").tolist() == [0, "not yet run", 0.72, ""]
    assert len(table.columns) == 8, "nine with the experiment"


def test_words_are_left_aligned_and_numbers_right_aligned():
    columns = {"claim": ["2 sets", "a", "b"], "quoted": ["258", "79 %", ""], "test accuracy": ["not yet run", 0.5, None]}
    columns |= {"image": ["1_cat.png", "2_dog.png", "3_cat.png"]}
    table = pd.DataFrame(columns | {"device": ["CPU"] * 3, "points": [1.0, 2.0, 3.0]})
    style = formats.styled(table, "Claims").data.split("</style>")[0]
    assert re.findall(r"\.col(\d) \{\s*text-align: left", style) == ["0", "3", "4"]


def test_no_table_of_runs_has_more_than_nine_columns():
    records = results.load_all()
    for table in (tables.runs_table(records), tables.comparison_table(records), tables.paired_table(records[:2])):
        assert 0 < len(table.columns) <= 9
