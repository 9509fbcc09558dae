"""Run records: saving, loading, rejecting and obtaining them; the committed ones must match the plan."""

import copy
import json
import shutil
import tempfile
import weakref
from dataclasses import asdict

import numpy as np
import pytest
import torch

from helpers import experiments, runtime, training
from helpers.experiments import records as results
from helpers.experiments.queue import SIZES, Queue
from helpers.report import statistics
from helpers.runtime import UserError
from helpers.tests import programs


def make_run(name="pikachu/resnext50_ours", seed=0, profile="full", predicted=(0, 0, 1, 1, 1), stopped=None):
    """A small but valid record, and its predictions."""
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
        "dataset": {"name": "pikachu", "source": "folder pikachu", "fingerprint": "ab", "classes": ["no", "yes"]}
        | {"n_train": 774, "n_val": 258, "n_test": 5},
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


def test_a_saved_record_is_loaded_unchanged(tmp_path):
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


def test_records_are_in_the_order_of_their_seeds(tmp_path):
    for seed in (10, 2, 0):
        results.save(*make_run(seed=seed), tmp_path)
    (tmp_path / "runs/pikachu/resnext50_ours/full/seed0 (1).json").write_text("{}")  # a copy, as a browser or a sync names it
    assert [record["seed"] for record in results.load_all(tmp_path)] == [0, 2, 10]


def test_a_copy_of_a_record_is_not_another_seed(tmp_path):
    path = results.save(*make_run(), tmp_path)
    for copied in (path.with_name("seed1.json"), path.parents[1] / "full copy" / path.name):
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(path, copied)
        with pytest.raises(UserError, match=f"{copied.name} under {copied.parent.name} is not a run record"):
            results.load_all(tmp_path)
        copied.unlink()


def test_a_run_on_other_images_is_kept_apart_from_the_records(tmp_path, monkeypatch):
    """`run` on photographs of one's own must not become one more seed of the published experiment."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "OWN", tmp_path / "own")
    results.save(*make_run())
    record, predictions = make_run(seed=1)
    path = results.save(record | {"dataset": record["dataset"] | {"fingerprint": "cd"}}, predictions)
    assert path == tmp_path / "own/cd/runs/pikachu/resnext50_ours/full/seed1.json"
    assert [record["seed"] for record in results.load_all()] == [0]


def test_a_run_that_stopped_early_does_not_replace_a_complete_one(tmp_path):
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

    own = results.folder_for("full", "cd", "pikachu")
    assert own == results.ROOT / "data" / "results" / "cd" and results.checkpoint_folder("quick", own) == own / "checkpoints"
    assert results.checkpoint_folder("quick", tmp_path) is None
    assert results.folder_for("smoke", "ab", "pikachu") not in (tmp_path, own)


def test_a_record_that_contradicts_itself_is_rejected(tmp_path):
    record, predictions = make_run()
    wrong = copy.deepcopy(record)
    wrong["test"]["accuracy"] = 0.99
    with pytest.raises(UserError, match="contradicts itself"):
        results.load(results.save(wrong, predictions, tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"test": {}}', '{"test": {"confusion": [[1]], "n": 0, "accuracy": 1}}'])
def test_a_file_that_is_not_a_record_is_rejected(tmp_path, text):
    path = tmp_path / "seed0.json"
    path.write_text(text)
    with pytest.raises(UserError, match="seed0.json"):
        results.load(path)


DAMAGES = {
    "experiment": "../../../evil",
    "report": "../../../evil",
    "profile": "../full",
    "seed": -1,
    "predictions": "../../x.npz",
    "dataset": {},
    "model": {"name": 1},
    "test": {"n": "five"},
    "history": [{"epoch": 1}],
    "best": None,
    "environment": [],
    "seconds": "1",
    "stopped_early": 0,
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("gone", [True, False])
def test_a_record_with_a_missing_or_wrong_field_is_rejected(tmp_path, name, gone):
    record, predictions = make_run()
    path = results.save(record, predictions, tmp_path)
    damaged = {key: value for key, value in record.items() if key != name} | ({} if gone else {name: DAMAGES[name]})
    path.write_text(json.dumps(damaged))
    with pytest.raises(UserError, match="^seed0.json under full is not a run record; remove it and run it again.$"):
        results.load(path)


READ = [("best", "val_loss"), ("model", "macs"), ("dataset", "classes"), ("dataset", "n_test"), ("test", "n")]


@pytest.mark.parametrize(("part", "name"), READ)
def test_a_record_without_a_field_that_the_tables_read_is_rejected(tmp_path, part, name):
    record, predictions = make_run()
    path = results.save(record, predictions, tmp_path)
    del record[part][name]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="is not a run record"):
        results.load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1" + "0" * 400, '"0.6"', "null", "[" * 9999])
def test_a_record_with_an_invalid_number_is_rejected(tmp_path, number):
    path = results.save(*make_run(), tmp_path)
    path.write_text(path.read_text().replace('"val_accuracy": 0.6', f'"val_accuracy": {number}', 1))
    with pytest.raises(UserError, match="is not a run record"):
        results.load(path)


def flipped(whole: bytes, field: int, bit: int) -> bytes:
    """A zip file with a bit flipped in its first member's directory entry: byte 8 is its flags, byte 10 its compression."""
    place = whole.index(b"PK\1\2") + field
    return whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "short", "of another run", "encrypted", "packed"])
def test_predictions_that_are_damaged_or_not_the_records_are_rejected(tmp_path, damage):
    record, arrays = make_run()
    path = results.save(record, arrays, tmp_path).with_name("seed0.predictions.npz")
    whole = path.read_bytes()
    other = {"predicted": np.array([0, 0, 0, 1, 1], np.int16), "confidence": np.ones(4)}
    changed = {"short": "confidence", "of another run": "predicted"}.get(damage)
    contents = {"cut": whole[:-30], "text": b"text", "encrypted": flipped(whole, 8, 1), "packed": flipped(whole, 10, 16)}
    path.unlink() if damage == "missing" else path.write_bytes(contents.get(damage, b""))
    if changed:
        runtime.save_arrays(path, **arrays | {changed: other[changed]})
    wrong = "does not match its record" if changed else "is missing or damaged"
    with pytest.raises(UserError, match=f"seed0.predictions.npz of pikachu/resnext50_ours {wrong}; run it again."):
        results.predictions(record, tmp_path)


@pytest.mark.parametrize("kill", ["save_arrays", "save_text"])
def test_a_kill_while_a_record_is_replaced_leaves_a_record_and_predictions_that_match(tmp_path, monkeypatch, kill):
    results.save(*make_run(), tmp_path)
    save = getattr(runtime, kill)

    def killed(*arguments, **arrays):
        save(*arguments, **arrays)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runtime, kill, killed)
        results.save(*make_run(predicted=(0, 0, 0, 1, 1)), tmp_path)
    [record] = results.load_all(tmp_path)
    assert len(results.predictions(record, tmp_path)["true"]) == 5, "they are checked against the record"
    assert record["test"]["accuracy"] == (0.8 if kill == "save_arrays" else 1.0)
    path = results.save(*make_run(predicted=(1, 1, 1, 0, 0)), tmp_path)
    assert results.predictions(results.load(path), tmp_path)["predicted"].tolist() == [1, 1, 1, 0, 0]


def test_replacing_a_run_deletes_its_other_files(tmp_path):
    path = results.save(*make_run(), tmp_path)
    path.with_name("seed0.landscape.npz").touch()
    results.save(*make_run(predicted=(0, 0, 0, 1, 1)), tmp_path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["seed0.json", "seed0.predictions.2.npz"]
    path.with_name("seed0.landscape.npz").touch()
    path.unlink()  # as an error message may advise
    results.save(*make_run(), tmp_path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["seed0.json", "seed0.predictions.npz"]


def test_a_full_disk_leaves_no_half_written_record(tmp_path, monkeypatch, disk_full):
    monkeypatch.setattr(runtime.os, "fsync", disk_full)
    with pytest.raises(UserError, match="could not be written .No space left on device"):
        results.save(*make_run(), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_obtain_all_lists_or_trains_the_missing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "run", lambda name, seed, profile, **_: make_run(name, seed, profile))
    monkeypatch.setattr(Queue, "minutes", lambda *_: 90.0)
    names, cpu = ("pikachu/resnext50_ours", "pikachu/resnet18_torchvision"), torch.device("cpu")
    results.save(*make_run(names[1], 1), tmp_path)
    [found] = results.obtain_all(names, (0, 1), "full", tmp_path, device=cpu)
    assert (found["experiment"], found["seed"]) == (names[1], 1), "hours of training are not started on a CPU"
    assert capsys.readouterr().out.splitlines() == [
        "1 full run recorded; 3 not run yet, with the minutes each takes here:",
        f"90 min: python -m helpers run {names[0]} --seed 0 --results-dir '{tmp_path}' (and 1)",
        f"90 min: python -m helpers run {names[1]} --seed 0 --results-dir '{tmp_path}'",
    ]
    monkeypatch.setattr(results, "NAMED", 1)
    results.obtain_all(names, (0,), "full", tmp_path / "none", device=cpu)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "90", "And"], "and more"
    assert len(results.obtain_all(names, (0, 1), "quick", tmp_path, device=cpu)) == 4
    assert len(results.obtain_all(names[:1], (0, 0, 9), "full", tmp_path, device=torch.device("cuda"))) == 1
    results.obtain_all(names[:1], (1,), "full", tmp_path / "more", device=torch.device("cuda"), minutes=5)
    printed = capsys.readouterr().out
    assert "Training the missing runs now, for about 5 minutes" in printed, "a time budget ends them sooner"
    assert "Training the missing runs now, for about 90 minutes" in printed, "only runs that the plan wants, once each"


def test_obtain_all_goes_on_after_a_run_that_diverges(tmp_path, monkeypatch, capsys):
    def run(name, seed, profile, **_):
        if seed == 0:
            raise training.Diverged("The loss was not finite in epoch 1; lower the learning rate.")
        return make_run(name, seed, profile)

    monkeypatch.setattr(experiments, "run", run)
    name = "pikachu/resnet18_torchvision"
    [there] = results.obtain_all([name], (0, 1), "quick", tmp_path, device=torch.device("cpu"))
    assert there["seed"] == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{name}, seed 0: The loss was not finite in epoch 1; lower the learning rate.", "1 quick run recorded."
    ]  # fmt: skip


def test_a_run_cut_short_by_a_time_budget_resumes_with_a_larger_one(tmp_path, monkeypatch):
    name, cpu, given = "pikachu/resnet18_torchvision", torch.device("cpu"), []
    record, predictions = make_run(name, 0, "quick")
    record |= {"stopped_early": "time budget of 60 s: …", "limits": {"time_budget": 60.0}}
    record["recipe"] = {"epochs": 1, "time_budget": 60.0}
    results.save(record, predictions, tmp_path)
    checkpoint = tmp_path / "seed0.ckpt"
    monkeypatch.setattr(experiments, "checkpoint_path", lambda *_: checkpoint)
    monkeypatch.setattr(experiments, "run", lambda *run, **how: given.append(how["time_budget"]) or make_run(*run))

    def stopped(minutes: float) -> str | None:
        [there] = results.obtain_all([name], (0,), "quick", tmp_path, device=cpu, minutes=minutes)
        return there["stopped_early"]

    assert stopped(2) and not given, "without its checkpoint it would start over"
    checkpoint.touch()
    assert stopped(1) and stopped(0) and not given, "0 means the recipe's own budget, one minute"
    assert not stopped(2) and given == [120]


def test_obtain_all_passes_on_the_device_the_minutes_and_the_folder_on_drive(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(experiments, "run", lambda *run, **how: given.append(how) or make_run(*run))
    name, cpu = "pikachu/resnet18_torchvision", torch.device("cpu")
    results.obtain_all([name], (0,), "quick", tmp_path, device=cpu, drive=tmp_path / "drive", minutes=1.5, compiled=True)
    results.obtain_all([name], (1,), "quick", tmp_path, device=cpu)
    mirror = tmp_path / "drive/checkpoints" / name / "quick"
    assert {key: given[0][key] for key in ("device", "time_budget", "mirror", "compiled")} == {
        "device": cpu, "time_budget": 90, "mirror": mirror, "compiled": True
    }  # fmt: skip
    assert given[1]["time_budget"] is None and given[1]["mirror"] is None


def test_in_one_environment_our_resnext50_and_torchvisions_end_as_one_network():
    ours, theirs = (results.load(results.record_path(f"pikachu/resnext50_{of}", "full", 2)) for of in ("ours", "torchvision"))
    assert ours["environment"] | {"date": ""} == theirs["environment"] | {"date": ""} and ours["test"] == theirs["test"]
    for mine, other in zip(ours["history"], theirs["history"], strict=True):
        assert [mine[name] for name in mine if "seconds" not in name] == [other[name] for name in mine if "seconds" not in name]
    answers = [results.predictions(run) for run in (ours, theirs)]
    assert all(np.array_equal(answers[0][name], answers[1][name]) for name in ("predicted", "confidence"))


def committed():
    return sorted((results.RESULTS / "runs").glob("*/*/*/seed*.json"))


@pytest.mark.parametrize("path", committed(), ids=lambda path: "/".join(path.parts[-4:]))
def test_committed_records_are_consistent_and_match_the_plan(path):
    record = results.load(path)
    assert results.record_path(record["experiment"], record["profile"], record["seed"]) == path
    assert record["dataset"]["source"] != "sample"
    planned = experiments.find(record["experiment"])
    assert (record["model"]["name"], record["model"]["pretrained"]) == (planned.model, planned.pretrained)
    assert (record["dataset"]["name"], record["report"]) == (planned.dataset, planned.report)
    declared = asdict(experiments.recipe_for(planned, record["profile"]))
    assert json.dumps(training.completed(record["recipe"]), sort_keys=True) == json.dumps(declared, sort_keys=True)
    assert len(record["history"]) == record["recipe"]["epochs"] or record["stopped_early"]
    best, last = max(record["history"], key=lambda epoch: epoch["val_accuracy"]), record["history"][-1]
    assert record["best"]["epoch"] == (last if declared["keep"] == "last" else best)["epoch"]
    assert SIZES[record["dataset"]["name"]] == (record["dataset"]["n_train"], record["dataset"]["n_val"])
    arrays = results.predictions(record)
    counts = np.zeros_like(np.array(record["test"]["confusion"]))
    np.add.at(counts, (arrays["true"], arrays["predicted"]), 1)
    assert counts.tolist() == record["test"]["confusion"]


def use_the_smoke_folder(folder) -> None:
    tempfile.tempdir = str(folder)
    assert [results.folder_for("smoke"), results.folder_for("smoke")] == list(folder.iterdir()) * 2
    weakref.finalize._exitfunc()  # Python calls it at exit, but not in every multiprocessing process


def test_the_folder_of_smoke_runs_is_deleted_when_the_process_ends(tmp_path):
    process = programs.CONTEXT.Process(target=use_the_smoke_folder, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0 and not list(tmp_path.iterdir())


def test_two_processes_with_a_batchnorm_each_end_with_a_higher_loss_than_one():
    """The first report's ResNet-18 as coded, ten epochs on real images; the accuracies do not differ by more than chance."""
    name = "cifar10_5k/resnet18_coded_decay0001"
    folders = [results.RESULTS / "processes" / which for which in ("one", "two")]
    one, two = (results.load(results.record_path(name, "full", 0, folder)) for folder in folders)
    assert [record["processes"] for record in (one, two)] == [1, 2]
    assert not any(record["sync_batchnorm"] or record["environment"]["dirty"] for record in (one, two))
    assert (one["dataset"], one["recipe"]) == (two["dataset"], two["recipe"])
    accuracies = [record["test"]["accuracy"] for record in (one, two)]
    assert accuracies == [0.455, 0.435]
    assert [round(record["history"][-1]["val_loss"], 2) for record in (one, two)] == [1.46, 1.58]
    paired = statistics.Paired.of([results.predictions(one, folders[0])], [results.predictions(two, folders[1])])
    assert (paired.only_first, paired.only_second) == (112, 92) and paired.p == pytest.approx(0.1833, abs=1e-4)
