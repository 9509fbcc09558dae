"""Helpers of notebooks 05 to 07: printed figures, first steps, gradients, outcomes and sentences."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import data, experiments, report
from helpers.experiments import recipes
from helpers.report import perturbed, tables
from helpers.report.tables import PAIRED_COLUMNS


def test_figure_2_of_report_amp_prints_six_wrong_counts_and_five_wrong_sizes_of_convolutions():
    lines = report.amp_figure2()
    convolutions = lines[lines["line"].str.startswith("Conv")]
    assert (convolutions["printed parameters"] != convolutions["true parameters"]).sum() == 6
    assert (convolutions["printed output"] != convolutions["true output"]).sum() == 5
    assert set(lines["printed parameters"] - lines["true parameters"]) == {0, 2_000}


def test_the_log_of_report_slim_has_the_learning_rates_of_1562_batches_per_epoch():
    rates = report.slim_rates([1_562, 1_406])
    assert np.allclose(rates["1,562 batches"], rates["printed"], rtol=1e-9, atol=0)
    assert not np.isclose(rates["1,406 batches"], rates["printed"], rtol=1e-2).any()


def test_the_steps_of_report_zoo_in_width_and_depth():
    steps = report.zoo_steps().set_index(["first", "second"])
    assert steps.loc[("wrn28_2", "wrn28_4"), "points"] == pytest.approx(4.07)
    assert [step for step, p in steps["p"].items() if p >= 0.05] == [
        ("wrn16_2", "wrn16_4"),
        ("wrn16_8", "wrn16_16"),
        ("wrn16_4", "wrn28_4"),
    ]


def test_a_perturbed_step_counts_as_two_gradients():
    late, every = (experiments.find(f"cifar100/wrn16_2_perturbed{name}").recipe for name in ("_late_radius01", "_radius01"))
    assert report.gradients(late, 10).tolist() == [10] * 24 + [20] * 8
    assert report.gradients(every, 10).tolist() == [20] * 20
    assert report.gradients(recipes.ZOO, 7).tolist() == [7] * 200


def test_first_losses_differ_only_by_initial_weights_and_full_runs_are_read_from_the_file(tmp_path, monkeypatch):
    train = data.sample("cifar10", image_size=16).train
    losses = report.obtain_first_steps(train, torch.device("cpu"), "smoke")
    assert list(losses) == list(perturbed.FIRST_STEPS) and {len(found) for found in losses.values()} == {2}
    first = {label: found[0] for label, found in losses.items()}
    assert len({first[label] for label in first if label != "without torch's initialisation"}) == 1
    assert first["as in the sources"] != first["without torch's initialisation"]
    monkeypatch.setattr(perturbed, "FILE", tmp_path / "first_steps.json")
    assert report.obtain_first_steps(train, torch.device("cpu"), "full") == {}
    perturbed.FILE.write_text(json.dumps({"device": "CPU", "losses": {"a": [2.5]}}))
    assert report.obtain_first_steps(train, torch.device("cpu"), "full") == {"a": [2.5]}


def test_the_first_steps_leave_out_what_their_labels_say():
    recipe, coded = (experiments.find(f"{perturbed.PERTURBED}{end}").recipe for end in ("", "_coded"))
    assert all(getattr(recipe, name) != value for changes in perturbed.FIRST_STEPS.values() for name, value in changes.items())
    changes = perturbed.FIRST_STEPS["as in the report's code"]
    assert replace(recipe, **changes) == replace(coded, schedule=recipe.schedule, period=recipe.period, epochs=recipe.epochs)


def test_measured_first_steps_are_kept_when_the_rest_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(perturbed, "FILE", tmp_path / "first_steps.json")
    monkeypatch.setattr(perturbed.experiments, "load_data", lambda *_: data.sample("cifar10"))
    asked = []

    def measure(_train, _device, steps, labels):
        asked.extend(labels)
        return {label: [2.3] * steps for label in labels}

    monkeypatch.setattr(perturbed, "first_steps", measure)
    report.measure_first_steps()
    assert asked == list(json.loads(perturbed.FILE.read_text())["losses"]) == list(perturbed.FIRST_STEPS)
    perturbed.FILE.write_text(json.dumps({"device": "CPU", "losses": {asked[0]: [2.5]}}))
    report.measure_first_steps()
    assert json.loads(perturbed.FILE.read_text())["losses"][asked[0]] == [2.5] and asked[5:] == list(perturbed.FIRST_STEPS)[1:]


def test_the_curves_of_report_amp():
    curves = report.amp_curves()
    assert curves.max().tolist() == [88.52, 90.32] and curves.count().tolist() == [66, 85]
    assert curves.loc[[1, 51, 66]].fillna(0).to_numpy().tolist() == [[52.37, 10.5], [87.95, 86.17], [87.8, 88.66]]


def run(name: str, seed: int, accuracy: float) -> dict:
    return {
        **{"experiment": name, "seed": seed, "history": [{}] * 3, "seconds": 120.0},
        **{"test": {"accuracy": accuracy, "n": 100}, "best": {"val_accuracy": 1 - accuracy}},
    }


def test_outcomes_include_what_is_not_run_yet():
    names = {"ours": "cifar10/slim_resnet", "another": "cifar10/slim_resnet_plain"}
    records = [run(names["ours"], seed, accuracy) for seed, accuracy in enumerate((0.5, 0.6))]
    ours, another = report.outcome_table(names, records).to_dict("records")
    assert (ours["epochs"], ours["seeds"], ours["test accuracy"], ours["report"]) == (3, 2, 0.55, "91%")
    assert ours["low"] <= 0.5 and ours["high"] >= 0.6 and ours["minutes"] == 2
    assert (another["epochs"], another["seeds"], another["test accuracy"]) == (320, 0, "not yet run")
    assert report.tables.best_by_validation(names.values(), [*records, run(names["another"], 0, 0.1)]) == names["another"]
    assert report.tables.best_by_validation(names.values(), []) == names["ours"]


def test_a_sentence_says_which_is_better_only_if_the_data_can_tell(monkeypatch, tmp_path):
    rows = [
        ("a/x", "a/y", 2, 5, 9, 4.0, 1.0, 7.0, 0.01),
        ("a/x", "a/w", 2, 9, 5, -4.0, -7.0, -1.0, 0.01),
        ("a/x", "a/v", 2, 5, 9, 4.0, -1.0, 9.0, 0.01),
        ("a/x", "a/z", 1, 5, 6, 1.0, -3.0, 5.0, 0.6),
        ("a/x", "a/u", 1, 5, 9, 4.0, 1.0, 7.0, 0.01),
        ("a/y", "a/z"),
    ]
    rows = [(*row, *[None] * (len(PAIRED_COLUMNS) - len(row))) for row in rows]
    monkeypatch.setattr(tables, "paired_table", lambda *_: pd.DataFrame(rows, columns=PAIRED_COLUMNS))
    assert report.pair_sentences([], [], tmp_path, {"a/x": "the first"}) == [
        "y is better than the first (+4.0 points, 95 % interval +1.0 to +7.0, 2 seeds).",
        "w is worse than the first (-4.0 points, 95 % interval -7.0 to -1.0, 2 seeds).",
        "v and the first cannot be told apart (+4.0 points, 95 % interval -1.0 to +9.0, 2 seeds).",
        "z and the first cannot be told apart (+1.0 points, 95 % interval -3.0 to +5.0, 1 seed).",
        "u did better than the first in the one run of each (+4.0 points, 95 % interval +1.0 to\n+7.0, 1 seed).",
        "Not run yet: z against y.",
    ]
