"""The exhaustive search and successive halving: nothing is trained twice, nothing is lost, and validation alone decides."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest

from helpers import data, models, runtime
from helpers.experiments import recipes, records, search
from helpers.experiments.search import Search
from helpers.models import Description, Stage, Stem
from helpers.report import tables
from helpers.runtime import UserError
from helpers.tests import programs
from helpers.training import loop as training

TINY = Description(Stem(8, 3, 2), (Stage(1, 8),)).build
BASE = replace(recipes.SLIM_SEARCH, schedule="cosine", epochs=3, image_size=16, initialisation=None)
SMALL = {"learning_rate": (0.1, 0.02), "weight_decay": (1e-4,), "batch_size": (8, 16)}


def make_search(folder, **changes) -> Search:
    dataset = data.sample("cifar10", counts=(120, 40, 10))
    return Search("tiny", dataset, changes.pop("base", BASE), folder, **{"grid": SMALL} | changes)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small search that ran without interruption, and its records."""
    models.MODELS["tiny"] = TINY
    found = make_search(tmp_path_factory.mktemp("whole"))
    trials = search.exhaustive(found)
    del models.MODELS["tiny"]
    return found, trials


def result(record: dict) -> dict:
    """A record without the fields that differ from run to run."""
    history = [{name: value for name, value in row.items() if "seconds" not in name} for row in record["history"]]
    return {name: record.get(name) for name in ("experiment", "recipe", "best", "test")} | {"history": history}


def written(found: Search) -> dict:
    """The record files in a search's folder, by trial name."""
    return {path.parts[-3]: path for path in sorted(found.folder.glob("runs/search_tiny/*/smoke/seed0.json"))}


def epochs_trained(monkeypatch) -> list:
    """A list that grows by one entry with every epoch trained from now on."""
    trained, epoch = [], training._epoch

    def note(*arguments):
        trained.append(None)
        return epoch(*arguments)

    monkeypatch.setattr(training, "_epoch", note)
    return trained


def test_the_reports_grid_has_twelve_trials_that_differ_only_in_three_settings():
    base = recipes.SLIM_SEARCH
    assert (base.schedule, base.period, base.lowest_learning_rate) == ("periodic_batches", 10, 0), "as in the report's code"
    assert (base.augment, base.momentum, base.epochs, base.initialisation) == ("none", 0, 20, "torch")
    trials = Search("slim_resnet_trial3", None, base, None).trials.values()
    points = [(recipe.learning_rate, recipe.weight_decay, recipe.batch_size) for recipe in trials]
    assert sorted(points) == [(lr, wd, bs) for lr in (0.005, 0.05, 0.1) for wd in (1e-4, 5e-4) for bs in (128, 256)]
    same = {replace(recipe, learning_rate=1, weight_decay=0, batch_size=1) for recipe in trials}
    assert (
        len(same) == 1
        and next(iter(same)).epochs == 20
        and next(iter(same)) == replace(recipes.SLIM_SEARCH, learning_rate=1, weight_decay=0, batch_size=1)
    )


def test_names_tell_the_trials_apart(whole):
    assert list(whole[0].trials)[0] == "batch_size=8,learning_rate=0.1,weight_decay=0.0001"
    assert list(written(whole[0])) == sorted(whole[0].trials)


def test_a_trial_is_a_run_with_a_record_like_any_other(whole):
    found, trials = whole
    assert sorted(records.load_all(found.folder), key=str) == sorted(trials, key=str)
    assert tables.full_runs([record | {"profile": "full"} for record in trials]) == []
    assert {record["dataset"]["source"] for record in trials} == {"sample"}
    for record in trials:
        assert len(records.predictions(record, found.folder)["true"]) == record["test"]["n"] == 10


def test_a_trial_has_the_history_of_a_plain_call_of_fit(whole):
    found, trials = whole
    name, recipe = list(found.trials.items())[1]
    training.seed_epoch(0)
    fitted = training.fit(TINY(10), found.dataset.train, found.dataset.validation, recipe, seed=0)
    assert result(trials[1])["history"] == result({"history": fitted.history})["history"]
    assert search.trial_of(trials[1]) == name and search.best_epoch(trials[1])["val_accuracy"] == fitted.best["val_accuracy"]


def test_the_best_validation_accuracy_is_chosen_and_a_tie_goes_to_the_smaller_loss():
    def record(trial, accuracies, losses, **more):
        history = [{"val_accuracy": a, "val_loss": b} for a, b in zip(accuracies, losses, strict=True)]
        return {"experiment": f"search_tiny/{trial}", "history": history, "recipe": {"epochs": 3}, **more}

    found = [
        record("low", [0.1, 0.2, 0.3], [1, 1, 1]),
        record("tie", [0.5, 0.1, 0.1], [0.9, 1, 1]),
        record("best", [0.1, 0.2, 0.5], [1, 1, 0.8]),
        record("diverged", [0.9], [0.1]),
    ]
    assert [search.trial_of(row) for row in search.ranked(found)] == ["best", "tie", "low", "diverged"]
    assert [search.trial_of(row) for row in search.ranked(found, 1)] == ["diverged", "tie", "low", "best"], "after epoch 1"
    assert search.best_epoch(found[2]) == {"val_accuracy": 0.5, "val_loss": 0.8}
    assert search.best_epoch(found[3]) is None
    tested = record("stopped early", [0.4, 0.3], [1, 1], test={"accuracy": 0.9})
    assert search.best_epoch(tested) == {"val_accuracy": 0.4, "val_loss": 1}, "the test accuracy plays no part"


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_between_trials(folder) -> None:
    models.MODELS["tiny"], advance = TINY, search.advance
    search.advance = lambda found, trial: kill() if written(found) else advance(found, trial)
    search.exhaustive(make_search(folder))


def killed_inside_a_trial(folder) -> None:
    models.MODELS["tiny"], save = TINY, training.save_checkpoint
    training.save_checkpoint = lambda *arguments: (save(*arguments), kill())
    search.exhaustive(make_search(folder))


def test_kill_9_between_and_inside_trials_repeats_no_finished_trial_and_loses_none(tmp_path, whole, monkeypatch):
    first, second = list(whole[0].trials)[:2]
    for killed, begun in ((killed_between_trials, 0), (killed_inside_a_trial, 1)):
        process = programs.CONTEXT.Process(target=killed, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and list(written(make_search(tmp_path))) == [first]
        assert len(list((tmp_path / "checkpoints").rglob("*.ckpt"))) == begun, "the second kill leaves one epoch of a trial"
    assert [path.parts[-3] for path in (tmp_path / "checkpoints").rglob("*.ckpt")] == [second]
    finished = written(whole[0])[first].relative_to(whole[0].folder)
    before = (tmp_path / finished).read_bytes()

    trained = epochs_trained(monkeypatch)
    found = search.exhaustive(make_search(tmp_path))
    assert len(trained) == 2 + 3 + 3, "the rest of the second trial, and the two others"
    assert (tmp_path / finished).read_bytes() == before
    assert [result(record) for record in found] == [result(record) for record in whole[1]]
    assert not list((tmp_path / "checkpoints").rglob("*.ckpt")), "a finished trial needs no checkpoint"


def test_a_kill_before_the_record_is_written_costs_no_epoch(tmp_path, monkeypatch, disk_full):
    trial = list(make_search(tmp_path).trials)[0]
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "save_text", disk_full)
        with pytest.raises(UserError, match="could not be written .No space left on device"):
            search.advance(make_search(tmp_path), trial)
    trained = epochs_trained(monkeypatch)
    assert len(search.advance(make_search(tmp_path), trial)["history"]) == 3 and not trained


def test_a_trial_that_diverges_comes_last_and_the_search_goes_on(tmp_path, monkeypatch):
    evaluate, calls = training.evaluate, []

    def diverge(*arguments):
        calls.append(None)
        return (float("nan"), 0.1) if len(calls) == 2 else evaluate(*arguments)

    monkeypatch.setattr(training, "evaluate", diverge)
    found = search.exhaustive(make_search(tmp_path))
    assert [len(record["history"]) for record in found] == [1, 3, 3, 3]
    assert list(written(make_search(tmp_path))) == sorted(list(make_search(tmp_path).trials)[1:]), "it has no record"
    trained = epochs_trained(monkeypatch)
    del calls[1:]  # the next evaluation is the second one again
    assert search.exhaustive(make_search(tmp_path)) == found and len(trained) == 1, "only its next epoch is tried again"
    last = search.ranked(found)[-1]
    assert (last["recipe"]["learning_rate"], last["recipe"]["batch_size"], len(last["history"])) == (0.1, 8, 1)
    assert search.best_epoch(last) is None


def test_another_search_in_the_same_folder_is_refused(whole, tmp_path):
    found, _ = whole
    for other in (
        replace(found, base=replace(BASE, epochs=5)),
        replace(found, dataset=replace(found.dataset, fingerprint="another")),
    ):
        with pytest.raises(UserError, match="^The record of batch.* belongs to another search; choose another folder, or rem"):
            search.exhaustive(other)
    for other in (replace(found, seed=1), replace(found, model="resnet18")):
        assert search.finished(other, list(found.trials)[0]) is None, "another seed or model has records of its own"
    trial = list(found.trials)[0]
    broken = tmp_path / written(found)[trial].relative_to(found.folder)
    broken.parent.mkdir(parents=True)
    broken.write_text("{broken")
    with pytest.raises(UserError, match="seed0.json under smoke is not a run record; remove it and run it again"):
        search.exhaustive(replace(found, folder=tmp_path))
    record = json.loads(written(found)[trial].read_text())
    broken.write_text(json.dumps(record | {"recipe": {"epochs": record["recipe"]["epochs"]}}))
    with pytest.raises(UserError, match="belongs to another search"):
        search.exhaustive(replace(found, folder=tmp_path))


def test_a_record_from_before_a_recipe_had_a_setting_still_counts(whole, tmp_path):
    found, trials = whole
    shutil.copytree(found.folder / "runs", tmp_path / "runs")
    old = {**trials[0], "recipe": {name: value for name, value in trials[0]["recipe"].items() if name != "step_epochs"}}
    written(replace(found, folder=tmp_path))[search.trial_of(old)].write_text(json.dumps(old))
    assert search.finished(replace(found, folder=tmp_path), search.trial_of(old))["history"] == old["history"]


# Successive halving.


def test_rungs_by_hand():
    # Li et al. 2018: n/factor^i trials for R·factor^(i-s) epochs; 20/8 and 20/9 are rounded up.
    assert search.rungs(12, 20, 2) == [(12, 3), (6, 5), (3, 10), (1, 20)]
    assert search.rungs(12, 20, 3) == [(12, 3), (4, 7), (1, 20)]
    assert search.rungs(12, 3, 2) == [(12, 2), (6, 3)], "no rung is shorter than an epoch"
    assert search.rungs(1, 20, 2) == [(1, 20)]
    with pytest.raises(UserError, match="factor of successive halving is 1; choose 2 or more"):
        search.rungs(12, 20, 1)


def test_halving_continues_only_the_survivors_and_gives_them_the_exhaustive_searchs_records(tmp_path, whole, monkeypatch):
    _, trials = whole
    trained = epochs_trained(monkeypatch)
    found = make_search(tmp_path)
    run = search.halving(found)
    assert search.rungs(4, 3, 2) == [(4, 2), (2, 3)]
    assert len(trained) == run["epochs"] == 4 * 2 + 2 * 1
    assert [rung["epochs"] for rung in run["rungs"]] == [2, 3]
    early = [search.trial_of(record) for record in search.ranked(trials, 2)]
    assert run["rungs"][0]["trials"] == early and set(run["rungs"][1]["trials"]) == set(early[:2])
    by_name = {search.trial_of(record): result(record) for record in trials}
    for trial in early:
        history = result(search.advance(found, trial, 2))["history"]
        assert history == by_name[trial]["history"][: len(history)], "bit for bit, resumed or not"
        assert len(history) == (3 if trial in early[:2] else 2) and len(trained) == 10
    assert run["chosen"] == search.trial_of(search.ranked([search.finished(found, trial) for trial in early[:2]])[0])

    again = search.halving(found)
    assert again == run and len(trained) == 10, "a second call trains nothing"
    finished = search.exhaustive(found)
    assert len(trained) == 12 and [result(record) for record in finished] == list(by_name.values())


def test_halving_after_an_exhaustive_search_trains_nothing(whole, monkeypatch):
    found, trials = whole
    trained = epochs_trained(monkeypatch)
    runs = [search.halving(found, factor) for factor in (2, 3)]
    assert not trained and [run["epochs"] for run in runs] == [10, 4 * 1 + 1 * 2]
    names = {search.trial_of(record) for record in trials}
    assert all(run["chosen"] == run["rungs"][-1]["trials"][0] in names for run in runs)
