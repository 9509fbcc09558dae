"""The plan and the command line: the reports' recipes to the letter, real smoke runs, and an error for each bad input."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
import torch

from helpers import bench, data, experiments, models, runtime, training
from helpers.__main__ import COMMANDS, main
from helpers.experiments import queue, recipes, runner
from helpers.experiments import records as results
from helpers.report import claims
from helpers.report.perturbed import gradients
from helpers.runtime import ROOT, UserError
from helpers.tests import programs
from helpers.tests.experiments.test_results import make_run

RUN = ["run", "pikachu/resnet18_torchvision", "--profile", "smoke"]


def test_the_recipe_of_report_pikachu_to_the_letter():
    for name in ("ours", "torchvision"):
        recipe = experiments.EXPERIMENTS[f"pikachu/resnext50_{name}"].recipe
        assert (recipe.optimizer, recipe.batch_size, recipe.learning_rate, recipe.momentum) == ("sgd", 8, 0.1, 0.9)
        assert (recipe.schedule, recipe.step_epochs, recipe.step_factor) == ("step", 7, 0.1)
        assert (recipe.epochs, recipe.image_size, recipe.weight_decay, recipe.augment) == (20, 224, 0.0, "none")
        assert [(0 / 255 - recipe.mean[0]) / recipe.std[0], (1 - recipe.mean[0]) / recipe.std[0]] == [-1, 1]


def test_the_reports_accuracies_do_not_agree_with_its_confusion_matrices():
    """With 258 test photographs, the printed accuracies need other counts than the printed ones."""
    for name, true_negative, true_positive in (("ours", 95, 110), ("torchvision", 90, 110)):
        reported = experiments.EXPERIMENTS[f"pikachu/resnext50_{name}"].reported
        assert round((true_negative + true_positive) / 258, 4) == reported["test_accuracy"]
        (tn, _), (_, tp) = reported["confusion"]
        assert (tn, tp) == (true_negative, 102) and sum(map(sum, reported["confusion"])) == 250
    reported = experiments.EXPERIMENTS["pikachu/resnet18_torchvision"].reported
    assert round((100 + 115) / 258, 4) == reported["test_accuracy"]
    assert reported["confusion"][0] == [102, 29] and reported["confusion"][1] == [14, 102]


def test_profiles_shorten_the_recipe_and_leave_full_alone():
    for row in experiments.EXPERIMENTS.values():
        assert experiments.recipe_for(row, "full") == row.recipe
        quick = experiments.recipe_for(row, "quick")
        assert quick.epochs <= max(row.recipe.epochs, 60) and (quick.time_budget or 0) <= 600
        assert experiments.recipe_for(row, "smoke").epochs == 2
    quick = experiments.recipe_for(experiments.find("cifar10_5k/resnet18_coded"), "quick")
    assert (quick.epochs, quick.step_epochs, quick.period) == (8, 7, 10), "shorter than the first of the code's calls"
    quick = experiments.recipe_for(experiments.find("pikachu/resnet18_finetuned"), "quick")
    assert (quick.epochs, quick.step_epochs, quick.deterministic) == (4, 2, False)
    quick = experiments.recipe_for(experiments.find("cifar10/resnext29_under5m_amp_warm"), "quick")
    assert (quick.epochs, quick.warmup_epochs) == (8, 1), "3 of 100 epochs, scaled and rounded up"
    quick = experiments.recipe_for(experiments.find("cifar10/slim_resnet_by_epoch"), "quick")
    assert (quick.epochs, quick.period) == (4, 2), "25 of 80 epochs, scaled and rounded up"
    twice, same = (f"cifar10/resnext29_under5m_{name}" for name in ("sgd_twice", "sgd_same"))
    assert [experiments.recipe_for(experiments.find(name), "quick").epochs for name in (twice, same)] == [16, 8]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("cifar10/slim_resnet", "cifar10/slim_resnet_fast"),
        ("cifar10/slim_resnet_strong", "cifar10/slim_resnet_strong_fast"),
        ("cifar10/resnext29_under5m_strong", "cifar10/resnext29_under5m_fast"),
        ("cifar100/wrn16_2", "cifar100/wrn16_2_fast"),
        ("cifar100/wrn16_2_fast", "cifar100/wrn16_2_fast"),
        ("pikachu/resnext50_torchvision", "pikachu/resnext50_fast"),
        ("cifar10/resnext29_under5m_amp", None),
        ("cifar100/wrn16_8", None),
    ],
)
def test_quick_uses_the_networks_short_recipe_if_there_is_one(name, short):
    row = runner.short_form(experiments.find(name))
    assert row is (short and experiments.find(short))
    if short:
        assert experiments.recipe_for(experiments.find(name), "quick") == replace(row.recipe, deterministic=False)


def test_the_recipes_in_the_code_of_report_pikachu():
    """As in its code: squashed, mirrored, weight decay 0.1, last epoch kept; torch gives the rates of its two calls."""
    weights, rates, state = torch.zeros(1, requires_grad=True), [], None
    for _ in range(2):
        optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        state = optimizer.state_dict()
    assert rates == pytest.approx(7 * [0.1] + 10 * [0.01] + 3 * [0.001])
    for model in ("resnext50", "resnext50_torchvision", "resnet18"):
        recipe = experiments.EXPERIMENTS[f"pikachu/{model}_coded"].recipe
        assert (recipe.augment, recipe.flip_test, recipe.resize, recipe.weight_decay) == ("flip", True, "squash", 0.1)
        assert [training.learning_rate(recipe, epoch) for epoch in range(20)] == pytest.approx(rates) and recipe.keep == "last"
        if model != "resnext50_torchvision":
            other = experiments.EXPERIMENTS[f"pikachu/{model}_coded_decay0001"]
            assert replace(other.recipe, weight_decay=0.1) == recipe and other.recipe.weight_decay == 0.001
    assert experiments.EXPERIMENTS["pikachu/resnext50_coded"].model == "resnext50_unpadded"
    names = ("resnext29_coded", "resnet18_coded")
    rows = [experiments.EXPERIMENTS[f"cifar10_5k/{name}{end}"] for name in names for end in ("", "_decay0001")]
    assert [(row.recipe.epochs, row.recipe.weight_decay) for row in rows] == [(63, 0.1), (63, 0.001), (102, 0.1), (102, 0.001)]
    assert {(row.recipe.batch_size, row.recipe.flip_test, row.recipe.image_size) for row in rows} == {(64, True, 32)}


def test_a_recipe_decides_how_its_photographs_become_square(monkeypatch):
    """The fingerprint covers the files, not the pixels: it would not notice."""
    given = []
    monkeypatch.setattr(data, "load", lambda *name, **how: given.append((*name, how)))
    for name in ("pikachu/resnet18_coded", "pikachu/resnet18_torchvision"):
        experiments.load_data(experiments.find(name), "full", "here")
    assert given == [("pikachu", "here", {"image_size": 224, "resize": how}) for how in ("squash", "crop")]


def test_the_recipes_of_report_amp():
    plain, perturbed, same, twice = (
        experiments.EXPERIMENTS[f"cifar10/resnext29_under5m_{name}"].recipe for name in ("sgd", "amp", "sgd_same", "sgd_twice")
    )
    assert (plain.batch_size, plain.epochs, plain.weight_decay, plain.learning_rate) == (64, 100, 1e-4, 0.001)
    assert (perturbed.perturbation, perturbed.learning_rate, perturbed.momentum) == (0.5, 0.1, 0.9)
    assert (perturbed.clip_norm, perturbed.nesterov, perturbed.initialisation) == (50, True, "torch"), "as in its sources"
    assert (plain.augment, plain.padding, plain.std) == ("crop_flip", 4, (0.2023, 0.1994, 0.2010))
    coded = [experiments.EXPERIMENTS[f"cifar10/resnext29_under5m_{name}_coded"].recipe for name in ("sgd", "amp")]
    assert [(one.learning_rate, one.momentum, one.weight_decay, one.perturbation) for one in coded] == [
        (0.001, 0.9, 5e-4, None),
        (0.1, 0.9, 0.0, 0.5),
    ]
    assert [(one.clip_norm, one.nesterov, one.initialisation, one.batch_size, one.epochs) for one in coded] == [
        (None, False, "torch", 64, 67),
        (None, False, "torch", 64, 85),
    ]
    assert training.learning_rate(coded[1], 50.0) == pytest.approx(0.1 * (2 + 2**0.5) / 4), "T_max is 200"
    assert replace(perturbed, perturbation=None) == same, "the fair pair differs only in the perturbation"
    assert twice.epochs == perturbed.epochs * (1 + perturbed.inner_steps), "the same number of gradients"
    for name, recipe in (("sgd_8ep", plain), ("sgd_same_8ep", same), ("amp_8ep", perturbed), ("amp_16ep", perturbed)):
        short = experiments.EXPERIMENTS[f"cifar10/resnext29_under5m_{name}"].recipe
        assert short == replace(recipe, epochs=short.epochs) and f"_{short.epochs}ep" in name


def test_the_rows_of_the_fast_and_the_plain_path_differ_only_in_the_path():
    """On a tenth of the images, with the recipe from before the sources of report `amp` were read."""
    rows = [row for row in experiments.EXPERIMENTS.values() if row.dataset == "cifar10_tenth"]
    assert [row.report for row in rows] == ["speed"] * 2 and len({row.model for row in rows}) == 1
    assert not any(row.is_ours for row in rows), "their records have no mirrored accuracy"
    older = {"clip_norm": None, "nesterov": False, "initialisation": None}
    fast, plain = (row.recipe for row in rows)
    assert fast == replace(recipes.AMP_SAME, epochs=4, **older)
    assert plain == replace(fast, channels_last=False, mixed_precision=False)


def test_the_slim_rows_of_one_table_train_on_equally_many_images():
    rows = {name: row for name, row in experiments.EXPERIMENTS.items() if name.endswith(("_3ep", "_12ep"))}
    assert [row.recipe.epochs * (4 if row.recipe.augment == "fourfold" else 1) for row in rows.values()] == [12] * 5
    final = experiments.EXPERIMENTS["cifar10/slim_resnet"].recipe
    assert {replace(row.recipe, epochs=80, augment="fourfold", padding=0) for row in rows.values()} == {final}


def test_short_recipes_warm_up_decay_to_zero_and_end_at_full_image_size():
    rows = [row for row in experiments.EXPERIMENTS.values() if "fast" in row.name.split("_") and row.is_ours]
    assert len(rows) == 17
    for row in rows:
        recipe = row.recipe
        assert training.learning_rate(recipe, 0) == 0 and training.learning_rate(recipe, recipe.epochs) == pytest.approx(0)
        assert training.learning_rate(recipe, recipe.warmup_epochs) == recipe.learning_rate
        assert recipe.sizes[-1] == (0.6 if row.model == "simplenet" else 0.7, recipe.image_size)
        if row.name.endswith("_2"):
            assert replace(recipe, **recipes.LEAN) == recipe and row.mark == experiments.find(row.name[:-2]).mark
        if recipe.cutout == 0 and not recipe.zero_last_batchnorm:
            continue
        with torch.device("meta"):
            network = models.build(row.model, 10)
        with nullcontext() if recipe.zero_last_batchnorm else pytest.raises(ValueError, match="ends in a BatchNorm"):
            models.zero_last_batchnorm(network)


@pytest.mark.parametrize(("end", "zeros"), [("short", 6), ("short_without_zero", 0)])
def test_the_last_batchnorm_of_each_block_starts_at_zero_if_the_recipe_says_so(end, zeros):
    row = experiments.find(f"cifar10/zoo_resnext1_doubling_{end}")  # of six blocks
    weights = [value for name, value in runner.make_model(row, row.recipe, 10, seed=0).named_parameters() if "weight" in name]
    assert sum(not value.any() for value in weights) == zeros


def test_the_arms_of_the_fair_comparison_take_equally_many_gradients():
    rows = {name: row for name, row in experiments.EXPERIMENTS.items() if row.dataset == "cifar100" and row.report == "amp"}
    taken = {name.removeprefix("cifar100/wrn16_2_"): gradients(row.recipe, 100).sum() for name, row in rows.items()}
    assert taken.pop("sgd") == 2_000 and set(taken.values()) == {4_000} and len(taken) == 8
    recipe = {name.removeprefix("cifar100/wrn16_2_"): row.recipe for name, row in rows.items()}
    assert [recipe[f"momentum_length{length}"].momentum_perturbation for length in (1, 3)] == [1, 3]
    assert [recipe[f"perturbed_radius{text}"].perturbation for text in ("005", "01")] == [0.05, 0.1]
    assert {name for name in recipe if not recipe[name].nesterov} == {"momentum_length1", "momentum_length3"}, "as its authors"
    same = {"epochs": 20, "warmup_epochs": 2, "perturbation": None, "perturbation_start": 0.0, "momentum_perturbation": None}
    same |= {"learning_rate": 0.2, "nesterov": True}  # plain SGD, like each of the others, is tried with two settings
    assert len({replace(row.recipe, **same) for row in rows.values()}) == 1


def test_a_row_without_an_ingredient_differs_from_the_short_recipe_only_in_that():
    for network, lacking in (("wrn16_2", 8), ("zoo_resnext1_doubling", 1)):
        whole = experiments.EXPERIMENTS[f"cifar10/{network}_short"].recipe
        rows = [row for name, row in experiments.EXPERIMENTS.items() if name.startswith(f"cifar10/{network}_short_without_")]
        for row in rows:
            changed = [setting for setting in asdict(whole) if getattr(row.recipe, setting) != getattr(whole, setting)]
            assert changed == (["epochs", "sizes"] if row.name.endswith("resizing") else changed[:1]) and changed
        assert len(rows) == lacking


def test_the_recipes_of_report_slim():
    rows = experiments.EXPERIMENTS
    for name, accuracy in (("slim_resnet_trial1", 0.77), ("slim_resnet_trial2", 0.77), ("slim_resnet_trial3", 0.84)):
        recipe = rows[f"cifar10/{name}"].recipe
        assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.augment) == ("adam", 0.001, 64, "none")
        assert rows[f"cifar10/{name}"].reported == {"test_accuracy": accuracy} and rows[f"cifar10/{name}"].model == name
        assert recipe.initialisation is None, "these runs began before the report's code was read"
    baseline, final = rows["cifar10/resnet18_torchvision"], rows["cifar10/slim_resnet"]
    assert baseline.recipe.augment == "none" and baseline.reported == {"test_accuracy": 0.78}
    recipe = final.recipe
    assert recipe.initialisation == "torch", "the report's code sets none"
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay, recipe.batch_size) == ("sgd", 0.1, 1e-4, 128)
    assert (recipe.epochs, recipe.period, recipe.augment) == (80, 25, "fourfold") and final.reported == {"test_accuracy": 0.91}
    assert rows["cifar10/slim_resnet_by_epoch"].recipe == replace(recipe, schedule="periodic_epochs")
    assert rows["cifar10/slim_resnet_plain"].recipe == replace(recipe, augment="none", epochs=4 * 80)
    for name in ("slim_resnet_max_pool", "slim_resnet_stride_second"):
        assert rows[f"cifar10/{name}"].recipe == recipe and rows[f"cifar10/{name}"].model == name
    assert rows["cifar10/slim_resnet_strong"].recipe == rows["cifar10/resnext29_under5m_strong"].recipe


def test_the_accuracies_and_the_recipe_of_report_zoo():
    """Sections 3.4 and 5.2: the accuracies, six hours for each network, Adam, no augmentation; 50 epochs for SimpleNet."""
    printed = {
        "simplenet": 0.6356,
        **{"zoo_resnext1": 0.2857, "zoo_resnext2": 0.305, "zoo_resnext3": 0.2021},
        **{"wrn16_2": 0.4426, "wrn16_4": 0.4509, "wrn16_8": 0.4354, "wrn16_16": 0.4372, "wrn28_2": 0.4214, "wrn28_4": 0.4621},
    }
    rows = {row.model: row for row in experiments.EXPERIMENTS.values() if row.name == f"cifar100/{row.model}"}
    assert {model: row.reported["test_accuracy"] for model, row in rows.items() if row.reported} == printed
    for row in rows.values():
        assert (row.recipe.optimizer, row.recipe.augment, row.recipe.time_budget) == ("adam", "none", 6 * 60 * 60)
    assert rows["simplenet"].recipe.epochs == 50 and rows["wrn16_2"].recipe.patience == 10
    ours = {f"zoo_resnext1_{change}" for change in ("rectified", "doubling", "doubling_wide")}
    assert {"res2next29_6c24w4s", *ours} == rows.keys() - printed.keys()


def test_every_zoo_network_has_the_same_time_budget_on_cifar10_and_no_other_limit():
    zoo = [row for row in experiments.EXPERIMENTS.values() if row.report == "zoo"]
    rows = [row for row in zoo if row.dataset == "cifar10"]
    assert {row.model for row in rows} == {row.model for row in zoo if row.name == f"cifar100/{row.model}"} and len(rows) == 14
    (recipe,) = {row.recipe for row in rows}
    assert (recipe.time_budget, recipe.patience, recipe.epochs) == (600, None, 1000)
    same = ("epochs", "mean", "std", "patience", "time_budget")
    assert replace(recipe, **{name: getattr(recipes.ZOO, name) for name in same}) == recipes.ZOO


def test_the_strong_recipes_differ_only_in_mean_and_standard_deviation():
    strong = [row for name, row in experiments.EXPERIMENTS.items() if name.startswith("cifar") and name.endswith("_strong")]
    assert {replace(row.recipe, **recipes.CIFAR10) for row in strong} == {recipes.STRONG}
    assert all(row.recipe.mean == recipes.STATISTICS[row.dataset]["mean"] for row in strong) and len(strong) == 13


def test_the_plan_is_in_order_of_priority_and_declares_the_number_of_seeds():
    names = list(experiments.EXPERIMENTS)
    first = (
        "cifar10/resnet18_torchvision",
        "cifar10/slim_resnet_trial3",
        "cifar100/zoo_resnext1",
        "cifar10_5k/resnext29_coded",
    )
    then = ("pikachu/resnext50_ours", "cifar10/resnext29_under5m_amp_8ep", "cifar10/slim_resnet_3ep", "cifar100/simplenet_10ep")
    last = ("cifar10/resnext29_under5m_fast", "cifar100/wrn16_8", "cifar10/slim_resnet", "cifar10_tenth/speed_fast")
    places = [names.index(name) for name in (*first, *then, *last)]
    assert places == sorted(places) and len(names) == len({*names})
    assert {row.seeds for row in experiments.EXPERIMENTS.values()} == {1, 2, 3}
    assert {row.model for row in experiments.EXPERIMENTS.values()} <= set(models.MODELS)


def test_a_run_keeps_to_the_limits_of_its_row_by_default(tmp_path, monkeypatch):
    """A complete smoke run with 100 classes: the row's limits are in its record, and so is `sync_batchnorm` if given."""
    name = "cifar100/zoo_resnext3"
    row = experiments.EXPERIMENTS[name]
    monkeypatch.setitem(experiments.EXPERIMENTS, name, replace(row, recipe=replace(row.recipe, time_budget=1e-6)))
    record, predictions = experiments.run(name, profile="smoke", checkpoint_dir=tmp_path)
    assert len(record["history"]) == 1 and record["stopped_early"].startswith("time budget of 1e-06 s: ")
    assert record["limits"] == {"time_budget": 1e-6, "patience": 10}
    assert record["recipe"]["time_budget"] == 1e-6
    assert record["test"]["accuracy"] <= record["test"]["accuracy_at_5"] < 1
    synchronised = []
    monkeypatch.setattr(runner, "synchronise", synchronised.append)
    with pytest.raises(UserError, match="belongs to a run with sync_batchnorm None, not True"):
        experiments.run(name, profile="smoke", checkpoint_dir=tmp_path, sync_batchnorm=True)
    again, _ = experiments.run(name, profile="smoke", checkpoint_dir=tmp_path, sync_batchnorm=True, resume=False)
    assert again["sync_batchnorm"] and len(synchronised) == 2
    with pytest.raises(UserError, match="belongs to a run with sync_batchnorm True, not None"):
        experiments.run(name, profile="smoke", checkpoint_dir=tmp_path)


def test_arguments_of_a_run_change_its_epochs_and_compilation(monkeypatch):
    monkeypatch.setattr(runner, "run_row", lambda row, *_: (row.recipe.epochs, row.recipe.compiled))
    assert experiments.run(RUN[1], profile="smoke", epochs=7, compiled=True) == (7, True)
    assert experiments.run(RUN[1], profile="smoke") == (2, False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The results folder of one real smoke run, started from the command line."""
    folder = tmp_path_factory.mktemp("smoke")
    assert main([*RUN, *programs.folders(folder)]) == 0
    return folder


def test_a_test_loss_that_is_not_finite_leaves_no_record(tmp_path, monkeypatch, capsys):
    """Such as after an fp16 overflow: a record of it would be unreadable, and stop every table."""
    monkeypatch.setattr(runner, "measure", lambda *_, **__: ({"loss": math.nan}, {}))
    assert main([*RUN, *programs.folders(tmp_path)]) == 1
    assert "The loss is not finite on the test images; no record is written" in capsys.readouterr().err
    assert not list(tmp_path.rglob("seed0.json"))


def test_a_smoke_run_writes_a_record_with_every_field(smoke):
    record = results.load(results.record_path("pikachu/resnet18_torchvision", "smoke", 0, smoke))
    assert set(record) == {
        *("experiment", "report", "seed", "profile", "dataset", "model", "recipe", "history", "stopped_early", "test"),
        *("processes", "sync_batchnorm", "limits", "arrangement", "predictions", "best"),
        *("seconds", "images_per_second", "peak_memory_bytes", "environment"),
    }
    assert set(record["dataset"]) >= {"name", "source", "fingerprint", "num_classes", "n_train", "n_val", "n_test"}
    assert set(record["test"]) == {"loss", "accuracy", "n", "confusion"}, "with two classes there is no top-5 accuracy"
    assert record["limits"] == {"time_budget": None, "patience": None}
    assert record["arrangement"] == {"channels_last": True}
    assert record["dataset"]["source"] == "sample"
    size = record["recipe"]["image_size"]
    assert record["model"]["params"] == 11_177_538
    assert record["model"]["macs"] == models.count_macs(models.build("resnet18", 2), (1, 3, size, size))
    assert record["images_per_second"] == pytest.approx(
        len(record["history"]) * record["dataset"]["n_train"] / sum(epoch["train_seconds"] for epoch in record["history"])
    )
    assert len(record["history"]) == 2
    assert set(record["history"][0]) >= {"epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"}
    assert set(record["environment"]) == {"device", "torch", "torchvision", "python", "commit", "dirty", "date"}
    assert sum(map(sum, record["test"]["confusion"])) == record["test"]["n"] == record["dataset"]["n_test"]
    assert json.loads(json.dumps(record)) == record


def test_repeating_a_run_resumes_it_and_gives_the_same_record(smoke, capsys):
    path = results.record_path("pikachu/resnet18_torchvision", "smoke", 0, smoke)
    before = results.load(path)
    assert main([*RUN, *programs.folders(smoke)]) == 0
    assert "Resumed after epoch 2 of 2." in capsys.readouterr().out
    after = results.load(path)
    assert (after["history"], after["test"]) == (before["history"], before["test"])


def test_a_smoke_run_leaves_the_committed_results_alone(tmp_path, capsys):
    before = sorted(ROOT.joinpath("results").rglob("*"))
    assert main([*RUN, "--epochs", "1", "--checkpoint-dir", str(tmp_path)]) == 0
    assert "No record was written" in capsys.readouterr().out
    assert sorted(ROOT.joinpath("results").rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--profile", "smoke"], ["--epochs", "1"]])
def test_a_smoke_profile_or_another_number_of_epochs_keeps_a_run_out_of_the_results(arguments, monkeypatch, capsys):
    record, given = {"test": {"accuracy": 0.5, "n": 10}, "dataset": {"source": "folder"}}, []
    monkeypatch.setattr(experiments, "run", lambda *_, **how: given.append(how) or (record, {}))
    monkeypatch.setattr(results, "save", lambda *_: pytest.fail("the record was written"))
    assert main(["run", RUN[1], *arguments]) == 0 and "No record was written" in capsys.readouterr().out
    assert main(["run", RUN[1], *arguments, "--fresh", "--compile", "--sync-batchnorm"]) == 0
    passed = [tuple(how[name] for name in ("resume", "compiled", "sync_batchnorm")) for how in given]
    assert passed == [(True, False, False), (False, True, True)]


def test_the_seed_decides_the_initial_weights_and_is_passed_on(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(
        training, "fit", lambda model, *_, **how: given.append((next(model.parameters()), how["seed"])) or 1 / 0
    )
    for seed in (0, 1, 1):
        with pytest.raises(ZeroDivisionError):
            experiments.run("cifar100/zoo_resnext3", seed, "smoke", checkpoint_dir=tmp_path)
    (first, *_), (second, *_), (again, *_) = given
    assert [seed for _, seed in given] == [0, 1, 1] and torch.equal(second, again) and not torch.equal(first, second)


def test_a_run_says_if_it_will_replace_a_record(monkeypatch, capsys):
    record = {"test": {"accuracy": 0.5, "n": 10}, "dataset": {"source": "folder"}}
    monkeypatch.setattr(experiments, "run", lambda *_, **__: (record, {}))
    monkeypatch.setattr(results, "save", lambda *_: results.RESULTS / "seed0.json")
    assert main(["run", RUN[1], "--seed", "0"]) == 0
    assert "A record already exists, seed0.json; a run on the same images replaces it" in capsys.readouterr().out
    assert main(["run", RUN[1], "--seed", "99"]) == 0 and "already" not in capsys.readouterr().out


def test_top_5_and_mirrored_accuracy_by_hand(monkeypatch):
    scores = {False: torch.arange(6.0).repeat(6, 1), True: torch.eye(6)}  # label i is ranked 6 - i; mirrored, all are right
    monkeypatch.setattr(training, "predict", lambda model, split, recipe, mirrored=False: scores[mirrored])
    split = data.Split(torch.zeros(6, 3, 1, 1, dtype=torch.uint8), torch.arange(6), [""] * 6)
    test, _ = runner.measure(None, split, None, mirrored=True)
    assert [test[name] for name in ("accuracy", "accuracy_at_5", "accuracy_mirrored")] == pytest.approx([1 / 6, 5 / 6, 1])


def test_a_finetuned_row_starts_from_published_weights(monkeypatch):
    asked, row = [], experiments.find("pikachu/resnet18_finetuned")
    monkeypatch.setattr(models, "build", lambda *name, **how: asked.append((name, how)))
    runner.make_model(row, row.recipe, 2, seed=0)
    assert asked == [(("torchvision/resnet18", 2), {"pretrained": True, "initialisation": None})]


def test_list_names_every_experiment_and_counts_only_full_runs(smoke, capsys, monkeypatch):
    monkeypatch.setattr(queue.Queue, "minutes", lambda *_: 1.0)
    assert main(["list", "--results-dir", str(smoke)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(experiments.EXPERIMENTS)
    assert not any("have seed" in line for line in lines), "a smoke run is not a full one"


def test_table_of_a_folder_with_a_smoke_run(smoke, capsys, monkeypatch):
    monkeypatch.setattr(claims.table, "statements", lambda: [])  # the claims have tests of their own
    assert main(["table", "--results-dir", str(smoke)]) == 0
    assert "runs.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "pikachu/resnet19"], "There is no experiment 'pikachu/resnet19'; choose one such as pikachu/resnet18_"),
        ([*RUN[:2], "--profile", "huge"], "There is no profile 'huge'; choose one of smoke, quick, full."),
        ([*RUN, "--device", "quantum"], "Device 'quantum' cannot be used on this machine"),
        ([*RUN, "--device", "cuda:97"], "Device 'cuda:97' cannot be used on this machine"),
        ([*RUN, "--seed", "-1"], "The seed is -1; it must be 0 or greater."),
        ([*RUN, "--seed", "x"], "Argument --seed: invalid int value: 'x'"),
        ([*RUN, "--epochs", "0"], "epochs is 0; it must be greater than 0."),
        ([*RUN, "--epochs", "-3"], "epochs is -3; it must be greater than 0."),
        ([*RUN, "--time-budget", "0"], "The time budget in seconds is 0.0; it must be greater than 0"),
        ([*RUN, "--time-budget", "-2"], "The time budget in seconds is -120.0; it must be greater than 0"),
        ([*RUN[:2], "--data-dir", "nowhere"], "nowhere"),
        (["table", "--results-dir", "nowhere"], "There is no run record under nowhere/runs"),
        ([*RUN, "--time-budget", "inf"], "The time budget in seconds is inf; it must be greater than 0, and at most 1e+09."),
        ([*RUN, "--time-budget", "nan"], "The time budget in seconds is nan; it must be greater than 0, and at most 1e+09."),
        ([*RUN, "--time-budget", "1e308"], "The time budget in seconds is inf; it must be greater than 0"),
        ([*RUN, "--device", "mps"], "Device 'mps' cannot be used on this machine; choose cpu, or cuda if there is a GPU."),
        ([*RUN, "--device", "hpu"], "Device 'hpu' cannot be used on this machine; choose cpu, or cuda if there is a GPU."),
        ([*RUN, "--results-dir=~nouser/r"], "Argument --results-dir: there is no home folder for '~nouser/r'"),
        ([*RUN, "--report", "amp"], "--report, --dataset and --minutes are for --missing"),
        ([*RUN, "--missing"], "Name one experiment to run, or pass --missing"),
        (["run"], "Name one experiment to run, or pass --missing"),
        (["run", "--missing", "--seed", "2"], "--missing runs what the plan declares; leave out --epochs and --seed."),
        (["run", "--missing", "--minutes", "0"], "--minutes is 0; it must be greater than 0."),
        (["run", "--missing", "--minutes", "nan"], "--minutes is nan; it must be greater than 0."),
        (["run", "--missing", "--report", "none"], "There is no report 'none'; choose one of amp, pikachu, slim, speed, zoo."),
        (["run", "--missing", "--profile", "smoke"], "Smoke runs are recorded only in a --results-dir; name one."),
        (["run", "--missing", "--profile", "huge"], "There is no profile 'huge'; choose one of smoke, quick, full."),
        (["list", "--dataset", "mnist"], "There is no dataset 'mnist'; choose one of cifar10, cifar100, "),
        (["bench", "resnext29_32x4d", "nonsense"], "There is no benchmark of 'nonsense'"),
        (["bench", "--json", "."], ". is a folder; name a file with --json."),
        (["colab", "../.."], "'../..' is not a GitHub repository; write it as OWNER/REPO."),
        (["colab", "no-slash"], "'no-slash' is not a GitHub repository; write it as OWNER/REPO."),
        (["colab", "a/b", "--ref", "x y"], "'x y' is not a branch or tag name."),
        (["fly"], "see python -m helpers --help"),
        ([], "see python -m helpers --help"),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_status_1(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("seed*"))


@pytest.mark.parametrize("option", ["--checkpoint-dir", "--results-dir"])
def test_an_unwritable_folder_is_reported_before_training_starts(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr(training, "train_epoch", None)
    (tmp_path / "file").write_text("in the way")
    assert main([*RUN, option, str(tmp_path / "file" / "folder")]) == 1
    assert f"choose another folder with {option}" in capsys.readouterr().err


def test_an_interrupted_process_resumes_to_the_same_record(smoke, tmp_path):
    """Ctrl-C as a shell sends it, after the first checkpoint; the rerun ends like an uninterrupted run. `faults` kills."""
    folders = programs.folders(tmp_path)
    checkpoint = experiments.checkpoint_path(RUN[1], "smoke", 0, tmp_path / "checkpoints")
    process = programs.start([*RUN, *folders], said := tmp_path / "said.txt", programs.hold_at_the_first_checkpoint)
    while not checkpoint.exists() and process.is_alive():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130 and "is kept in seed0.ckpt; rerun to continue" in said.read_text()
    assert main([*RUN, *folders]) == 0
    record, whole = (results.load(results.record_path(RUN[1], "smoke", 0, folder)) for folder in (tmp_path, smoke))
    assert record["test"] == whole["test"]
    keys = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert [[row[key] for key in keys] for row in record["history"]] == [[row[key] for key in keys] for row in whole["history"]]


def test_save_accepts_its_file_after_the_options(smoke, tmp_path, capsys):
    places = programs.folders(smoke)
    save = ["save", RUN[1], *places, "--profile", "smoke"]
    assert main([*save, str(tmp_path / "a.safetensors")]) == 0 and (tmp_path / "a.safetensors").exists()
    for rest in (["a", "b"], ["--nothing"]):
        assert main([*save, *rest]) == 1
        assert f"Unrecognized arguments: {rest[-1]}; see python -m helpers --help." in capsys.readouterr().err


def test_missing_tensorboard_gives_a_clear_error(monkeypatch, capsys):
    monkeypatch.setattr("helpers.__main__.find_spec", lambda name: None)
    assert main([*RUN, "--tensorboard"]) == 1
    assert "TensorBoard is not installed here; pip install tensorboard, or leave out --tensorboard." in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run", interrupted)
    assert main(RUN) == 130


def test_the_module_runs_as_a_program_without_the_notebook_packages():
    """A training machine may have no Jupyter, torchsummary, seaborn, kagglehub or safetensors."""
    block = "import sys\n"
    block += "for name in ('IPython', 'torchsummary', 'seaborn', 'kagglehub', 'pyarrow', 'nbformat', 'safetensors', 'tqdm'):\n"
    block += "    sys.modules[name] = None\n"
    block += "from helpers.experiments import queue\nqueue.pace = lambda *_: (0.01, 0.0)\n"  # tested in test_queue.py
    block += "from helpers.__main__ import main\nsys.exit(main(['list', '--report', 'amp']))"
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cifar10/resnext29_under5m_sgd" in done.stdout


def test_ctrl_c_while_torch_is_imported_ends_with_status_130():
    """The interrupt comes during the import of the first module of `helpers`."""
    program = "import os, runpy, signal, sys\n"
    program += "class Interrupt:\n"
    program += "    def find_spec(self, name, *_):\n"
    program += "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
    program += "sys.meta_path.insert(0, Interrupt()); sys.argv = ['helpers', 'list']\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_module('helpers', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_closed_output_pipe_ends_the_command_in_silence_but_keeps_the_record(monkeypatch, capsys, tmp_path):
    """As in `list | head`, which closes the pipe: nothing is raised, and the last flush goes nowhere."""
    monkeypatch.setattr(queue.Queue, "minutes", lambda *_: 1.0)
    monkeypatch.setattr(experiments, "run", lambda *_, **__: make_run())
    run = ["run", "pikachu/resnext50_ours", "--results-dir", str(tmp_path)]
    for arguments in (["list", "--report", "speed"], run):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w", buffering=1) as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            assert main(arguments) == 1
    assert not capsys.readouterr().err and len(results.load_all(tmp_path)) == 1


def test_output_may_be_closed_or_unable_to_show_a_name(monkeypatch):
    monkeypatch.setitem(COMMANDS, "table", lambda options: print("ж"))
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["table"]) == 0
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert main(["table"]) == 0 and shown.getvalue() == b"\\u0436\n"


def test_a_tilde_after_an_equals_sign_means_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(queue.Queue, "minutes", lambda *_: 1.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    assert main(["list", "--json", "--report", "speed", "--results-dir=~/r"]) == 0
    assert main(["table", "--results-dir=~/none"]) == 1
    assert not (tmp_path / "~").exists()


def test_a_path_that_the_system_refuses_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(queue.Queue, "record", lambda *_: os.stat("x" * 300))  # from Python 3.14 on, Path.exists hides it
    assert main(["list", "--report", "speed"]) == 1
    error = capsys.readouterr().err
    assert error.endswith(" cannot be used (File name too long); choose another file or folder.\n") and error.count("\n") == 1


def test_a_benchmark_that_cannot_be_saved_is_printed(tmp_path, monkeypatch, capsys, disk_full):
    monkeypatch.setattr(bench, "run", lambda *_: {"results": 42})
    monkeypatch.setattr(runtime, "save_text", disk_full)
    assert main(["bench", "--json", str(tmp_path / "a.json")]) == 1
    printed = capsys.readouterr()
    assert '"results": 42' in printed.out and "a.json could not be written (No space left on device)" in printed.err
