"""Checkpoints: atomic writes, fallback from damaged copies to intact ones, and mirrors that may vanish."""

import errno
import os
from dataclasses import replace
from functools import partial

import pytest
import torch

from helpers import training
from helpers.runtime import UserError
from helpers.tests.training.test_training import RECIPE, TRAIN, VALIDATION, make_model, same, without_times
from helpers.training import checkpoints, loop
from helpers.training import step as stepping
from helpers.training.checkpoints import copy_checkpoint, load_checkpoint, previous, save_checkpoint, temporary


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.ckpt"


def damage(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(path, capsys):
    for epoch in (1, 2):
        save_checkpoint({"history": [epoch]}, path)
    assert load_checkpoint(path) == {"history": [2]}
    damage(path)
    assert load_checkpoint(path) == {"history": [1]}
    assert "a.ckpt is damaged" in capsys.readouterr().out
    previous(path).write_bytes(b"")
    with pytest.raises(UserError, match="No intact copy of a.ckpt fits this run; start over with --fresh"):
        load_checkpoint(path)


def test_a_folder_named_like_a_checkpoint_in_the_mirror_is_ignored(path):
    (path.parent / "drive" / path.name).mkdir(parents=True)
    assert load_checkpoint(path, path.parent / "drive") is None


def test_a_kill_between_the_two_renames_loses_nothing(path):
    save_checkpoint({"history": [1]}, path)
    path.rename(previous(path))
    assert load_checkpoint(path) == {"history": [1]}


def test_a_damaged_checkpoint_never_replaces_an_intact_previous_one(path):
    for epoch in (1, 2):
        save_checkpoint({"history": [epoch]}, path)
    damage(path)
    save_checkpoint({"history": [3]}, path)
    damage(path)
    assert load_checkpoint(path) == {"history": [1]}, "not the damaged second one"


def test_the_newest_intact_copy_is_loaded_and_a_temporary_file_is_renamed(path):
    """The mirror's copy may be minutes old, so it is tried last."""
    drive = path.parent / "drive"
    save_checkpoint({"history": [1]}, path)
    copy_checkpoint(path, drive)
    for epoch in (2, 3):
        save_checkpoint({"history": [epoch]}, path)
    path.rename(temporary(path))
    path.write_bytes(b"damaged")
    assert load_checkpoint(path, drive) == {"history": [3]}
    assert temporary(path).exists(), "a reader leaves the file to the program that is writing it"
    assert load_checkpoint(path, drive, locked=True) == {"history": [3]}
    assert not temporary(path).exists() and load_checkpoint(path, drive) == {"history": [3]}
    damage(path)
    assert load_checkpoint(path, drive) == {"history": [2]}
    previous(path).unlink()
    assert load_checkpoint(path, drive) == {"history": [1]}
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert load_checkpoint(path, drive, locked=True) == load_checkpoint(path) == {"history": [1]}, "and it is here again"


def test_a_truncated_first_checkpoint_counts_as_none(path):
    temporary(path).write_bytes(b"half")
    assert load_checkpoint(path) is None


def test_a_full_disk_leaves_the_previous_checkpoint_intact(path, monkeypatch, disk_full):
    save_checkpoint({"history": [1]}, path)
    monkeypatch.setattr(checkpoints.os, "fsync", disk_full)
    with pytest.raises(UserError, match="could not be written .No space left on device.*--checkpoint-dir"):
        save_checkpoint({"history": [2]}, path)
    assert load_checkpoint(path) == {"history": [1]}
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]
    monkeypatch.setattr(checkpoints.Path, "unlink", disk_full)
    with pytest.raises(UserError, match="could not be written .No space left on device.*--checkpoint-dir"):
        save_checkpoint({"history": [2]}, path)


def test_the_mirror_is_used_if_the_local_checkpoint_is_gone(path):
    save_checkpoint({"history": [1]}, path)
    assert copy_checkpoint(path, path.parent / "drive") is None
    path.unlink()
    assert load_checkpoint(path, path.parent / "drive") == {"history": [1]}


def test_a_run_whose_checkpoints_are_gone_resumes_from_the_mirror(path, capsys):
    """As after Colab has disconnected, when only Google Drive is left."""
    whole, resumed, places = make_model(), make_model(seed=8), {"checkpoint": path, "mirror": path.parent / "drive"}
    training.fit(whole, TRAIN, VALIDATION, RECIPE)
    training.fit(make_model(), TRAIN, VALIDATION, RECIPE, **places, until=2)
    for file in (path, previous(path)):
        file.unlink()
    training.fit(resumed, TRAIN, VALIDATION, RECIPE, **places)
    assert "Resumed after epoch 2 of 4." in capsys.readouterr().out and same(whole, resumed)


def test_a_mirror_that_cannot_be_asked_is_ignored(path, monkeypatch):
    """A mount whose server is gone, for which `Path.is_file` raises up to Python 3.12."""
    drive, asked = path.parent / "drive", os.stat

    def ask(file, *arguments, **options):
        if str(file).startswith(str(drive)):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return asked(file, *arguments, **options)

    monkeypatch.setattr(os, "stat", ask)
    assert load_checkpoint(path, drive) is None


def test_an_unmounted_mirror_is_not_created(path):
    save_checkpoint({"history": [1]}, path)
    drive = path.parent / "drive"
    assert copy_checkpoint(path, drive / "MyDrive/project/checkpoints/report/network/full") == "its folder is gone"
    assert not drive.exists()
    drive.write_bytes(b"a file")
    assert copy_checkpoint(path, drive) is not None and drive.read_bytes() == b"a file"
    own = path.parent / "MyDrive/resnext-notebooks/checkpoints/fingerprint/pikachu/resnet18_fast/quick"
    own.parents[4].mkdir(parents=True)
    assert copy_checkpoint(path, own) is None and load_checkpoint(own / path.name), "a fresh Drive, your own photographs"


def test_a_first_copy_that_ctrl_c_interrupts_is_made_again(path, monkeypatch):
    copies = []

    def copy(*places):
        copies.append(places)
        if len(copies) == 1:
            raise KeyboardInterrupt
        return copy_checkpoint(*places)

    monkeypatch.setattr(loop, "copy_checkpoint", copy)
    with pytest.raises(KeyboardInterrupt):
        training.fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path, mirror=path.parent / "drive")
    assert len(load_checkpoint(path.parent / "drive" / path.name)["history"]) == 1


def test_a_checkpoint_that_was_damaged_meanwhile_is_not_kept_as_the_previous_one(path, monkeypatch):
    """A checkpoint is read again only if it has changed since this process wrote it."""
    read, reads = checkpoints._read, []
    monkeypatch.setattr(checkpoints, "_read", lambda file: reads.append(file) or read(file))
    for epoch in (1, 2):
        save_checkpoint({"history": [epoch]}, path)
    assert reads == [path] and load_checkpoint(previous(path)) == {"history": [1]}, "read once, before the first was written"
    damage(path)
    save_checkpoint({"history": [3]}, path)
    assert load_checkpoint(path) == {"history": [3]} and load_checkpoint(previous(path)) == {"history": [1]}


def test_the_mirror_gets_the_first_and_the_last_checkpoint_and_few_in_between(path, monkeypatch):
    copies, copy = [], loop.copy_checkpoint
    monkeypatch.setattr(
        loop, "copy_checkpoint", lambda *places: copies.append(load_checkpoint(path)["history"]) or copy(*places)
    )
    recipe = replace(RECIPE, epochs=3)
    training.fit(make_model(), TRAIN, VALIDATION, recipe, checkpoint=path, mirror=path.parent / "drive")
    assert [len(history) for history in copies] == [1, 3]
    monkeypatch.setattr(loop, "BETWEEN_COPIES", -1)
    training.fit(make_model(), TRAIN, VALIDATION, recipe, checkpoint=path, mirror=path.parent / "drive", resume=False)
    assert [len(history) for history in copies[2:]] == [1, 2, 3, 3]


def test_a_failing_mirror_warns_once_leaves_no_partial_copy_and_does_not_stop_training(path, monkeypatch, capsys):
    calls, copyfile = [], checkpoints.shutil.copyfile

    def copy(source, target):
        calls.append(None)
        copyfile(source, target)
        if len(calls) in (2, 3, 4):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints.shutil, "copyfile", copy)
    monkeypatch.setattr(loop, "BETWEEN_COPIES", -1)
    mirror = path.parent / "drive"
    plain, whole = make_model(), make_model()
    expected = training.fit(plain, TRAIN, VALIDATION, RECIPE)
    for until in (3, 4):
        done = training.fit(whole, TRAIN, VALIDATION, RECIPE, checkpoint=path, mirror=mirror, until=until)
        assert [file.name for file in mirror.iterdir()] == ["a.ckpt"]
        assert len(load_checkpoint(mirror / "a.ckpt")["history"]) == (1 if until == 3 else 4)
    assert same(plain, whole) and without_times(done.history) == without_times(expected.history)
    printed = capsys.readouterr().out
    assert printed.count("could not be copied to") == 1 and "(Input/output error); training continues" in printed


def test_an_intact_checkpoint_that_does_not_fit_falls_back_to_the_previous_one(path, capsys):
    training.fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path, until=1)
    good = load_checkpoint(path)
    other = torch.nn.Linear(2, 2).state_dict()
    for bad in (
        {"model": other},
        {"best_weights": other},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"best": {}},
        {"history": 7},
        {"history": []},
        {"arrangement": 7},
        None,
    ):
        save_checkpoint(good, path)
        save_checkpoint(good | bad if bad else {name: good[name] for name in good if name != "history"}, path)
        model = make_model()
        done = training.fit(model, TRAIN, VALIDATION, RECIPE, checkpoint=path, until=2)
        assert len(done.history) == 2
        assert "a.ckpt does not fit this run" in capsys.readouterr().out
    previous(path).unlink()
    save_checkpoint(good | {"model": other}, path)
    previous(path).unlink()
    with pytest.raises(UserError, match="fits this run; start over with --fresh"):
        training.fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path)


def test_a_folder_named_like_the_checkpoint_gives_a_clear_error(path):
    path.mkdir()
    with pytest.raises(UserError, match="No intact copy of a.ckpt fits this run"):
        training.fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path)


@pytest.mark.parametrize("halves", [("bf16", "fp16"), ("fp16", "bf16"), ("fp32", "fp16")])
def test_a_run_can_resume_in_another_precision(path, monkeypatch, capsys, halves):
    """As on another GPU: fp16 uses a gradient scaler, bf16 does not. fp16 is simulated by fp32 with fp16's scaler."""
    places = iter([{"device": "NVIDIA A100", "software": "torch 2"}] + [{"device": "Tesla T4", "software": "torch 2"}] * 99)
    scaler = torch.amp.GradScaler
    for half in halves:
        fp16 = partial(scaler, enabled=half == "fp16", init_scale=8.0)
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled, fp16=fp16: fp16(device))
        place = next(places)
        monkeypatch.setattr(loop, "platform", lambda device, place=place: place)
        recipe = replace(RECIPE, mixed_precision=half == "bf16")
        monkeypatch.setattr(stepping, "autocast_dtype", lambda device: torch.bfloat16)
        monkeypatch.setattr(loop, "_check_identity", lambda *_: None)
        done = training.fit(make_model(), TRAIN, VALIDATION, recipe, checkpoint=path, until=2 if half == halves[0] else None)
    assert [row["device"] for row in done.history] == ["NVIDIA A100"] * 2 + ["Tesla T4"] * 2
    line = "It began on NVIDIA A100, torch 2 and continues on Tesla T4, torch 2; it will not match an uninterrupted run"
    assert line in capsys.readouterr().out


def test_the_loss_scale_and_the_number_of_parts_are_restored():
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 4.0)]
    first, second = (training.Learner(make_model(), RECIPE, scaler=scaler) for scaler in scalers)
    first.parts = 4
    second.load_state_dict(first.state_dict())
    assert (second.scaler.get_scale(), second.parts) == (8.0, 4)


def test_a_checkpoint_with_a_gpus_fused_optimiser_resumes_with_this_devices_optimiser(path):
    recipe = replace(RECIPE, optimizer="adam")
    training.fit(make_model(), TRAIN, VALIDATION, recipe, checkpoint=path, until=2)
    state = load_checkpoint(path)
    state["optimizer"]["param_groups"][0] |= {"fused": True, "foreach": None}
    save_checkpoint(state, path)
    whole, resumed = make_model(), make_model()
    training.fit(whole, TRAIN, VALIDATION, recipe)
    training.fit(resumed, TRAIN, VALIDATION, recipe, checkpoint=path)
    assert same(whole, resumed)


def test_the_history_names_the_device_and_software_of_each_epoch(path):
    row = training.fit(make_model(), TRAIN, VALIDATION, replace(RECIPE, epochs=1)).history[0]
    assert row["device"].startswith("CPU, ") and row["software"] == f"torch {torch.__version__}"


def test_a_checkpoint_from_before_averages_and_parts_resumes_bit_for_bit(path):
    """It has the keys and settings of checkpoints written until November 2026."""
    whole, resumed = make_model(), make_model()
    training.fit(whole, TRAIN, VALIDATION, RECIPE)
    training.fit(make_model(), TRAIN, VALIDATION, RECIPE, checkpoint=path, until=2)
    state = load_checkpoint(path)
    for name in ("average", "parts"):
        del state[name]
    new = ("clip_norm", "perturbation_start", "perturbation_every", "momentum_perturbation", "ema", "initialisation")
    for name in (*new, "zero_last_batchnorm", "border", "cutout", "flip", "flip_test", "resize", "sizes", "deterministic"):
        del state["identity"][name]
    state |= {"scaler": None, "arrangement": {"channels_last": True, "group_width": 1}}
    for row in state["history"]:
        del row["device"], row["software"]
    save_checkpoint(state, path)
    training.fit(resumed, TRAIN, VALIDATION, RECIPE, checkpoint=path)
    assert same(whole, resumed)
