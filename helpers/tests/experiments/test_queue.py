"""The queue: which runs are missing, how long they take, two programs side by side, and recovery after a kill."""

import errno
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from helpers import data, experiments, models, training
from helpers.__main__ import main
from helpers.experiments import lock as locks
from helpers.experiments import queue, records, runner
from helpers.experiments.lock import Taken
from helpers.experiments.queue import Queue
from helpers.runtime import UserError
from helpers.tests import programs
from helpers.tests.faults.child import SMALLEST
from helpers.tests.programs import folders
from helpers.training import loop
from helpers.training.checkpoints import save_checkpoint

NAMES = ["cifar10_tenth/speed_fast", "cifar10_tenth/speed_plain"]
COMMAND = ["run", "--missing", "--profile", "smoke", "--report", "speed"]
CPU = torch.device("cpu")


def with_the_smallest_network() -> None:
    """Give the two rows a network of one block, so that a run takes a second; none of these tests is about the network."""
    models.MODELS["smallest"] = SMALLEST
    experiments.EXPERIMENTS.update({name: replace(experiments.find(name), model="smallest") for name in NAMES})


@pytest.fixture(autouse=True)
def smallest():
    rows = {name: experiments.find(name) for name in NAMES}
    with_the_smallest_network()
    yield
    del models.MODELS["smallest"]
    experiments.EXPERIMENTS.update(rows)


def done(folder) -> list[str]:
    return sorted(record["experiment"] for record in records.load_all(folder))


def test_missing_runs_come_in_the_plans_order_one_seed_at_a_time(tmp_path):
    missing = [(row.name, seed) for row, seed in Queue(tmp_path).missing()]
    assert missing == [(row.name, seed) for row in experiments.EXPERIMENTS.values() for seed in range(row.seeds)]
    there = Queue(tmp_path).record(experiments.find("pikachu/resnext50_ours"), 1)
    there.parent.mkdir(parents=True)
    there.touch()
    some = Queue(tmp_path, report="pikachu", dataset="pikachu").missing()
    assert [seed for row, seed in some if row.name == "pikachu/resnext50_ours"] == [0, 2]
    assert {(row.report, row.dataset) for row, _ in some} == {("pikachu", "pikachu")}


def test_minutes_by_hand(tmp_path, monkeypatch):
    """A validation image takes a third of the time of a training image."""
    asked = []
    monkeypatch.setattr(queue, "pace", lambda *network: asked.append(network) or (0.03, 0.0))
    queue_ = Queue(tmp_path, tmp_path)
    found = {name: experiments.find(f"cifar10/resnext29_under5m_{name}") for name in ("sgd_8ep", "amp_8ep", "fast")}
    minutes = {name: queue_.minutes(row, 0, CPU) for name, row in found.items()}
    assert asked == [(CPU, "resnext29_under5m", 32)] * 3
    assert minutes["sgd_8ep"] == pytest.approx(8 * (3 * 45_000 + 5_000) / 100 / 60)
    assert minutes["amp_8ep"] == pytest.approx(8 * (3 * 2 * 45_000 + 5_000) / 100 / 60), "two gradients per step"
    # 16 epochs, each at the size of its middle: 6 at 16 pixels, 5 at 24 and 5 at 32.
    part = 6 * (16 / 32) ** 2 + 5 * (24 / 32) ** 2 + 5
    assert minutes["fast"] == pytest.approx((3 * 45_000 * part + 16 * 5_000) / 100 / 60)
    slim = experiments.find("cifar10/slim_resnet_3ep")
    assert queue_.minutes(slim, 0, CPU) == pytest.approx(3 * (3 * 4 * 45_000 + 5_000) / 100 / 60), "four copies per image"
    budgeted = experiments.find("cifar100/wrn28_4")
    assert queue_.minutes(budgeted, 0, CPU) == 360, "no longer than its time budget"
    checkpoint = experiments.checkpoint_path(budgeted.name, "full", 0, tmp_path)
    checkpoint.parent.mkdir(parents=True)
    save_checkpoint({"history": [{"seconds": 3600.0}] * 2}, checkpoint)
    assert queue_.minutes(budgeted, 0, CPU) == 240, "two hours of it are spent"
    late = replace(found["amp_8ep"].recipe, perturbation_start=0.75, perturbation_every=2)
    assert [queue.passes(late, epoch)[0] for epoch in range(8)] == [1] * 6 + [1.5] * 2
    monkeypatch.setattr(queue, "pace", lambda *_: (0.0, 0.5))
    assert queue_.minutes(found["amp_8ep"], 0, CPU) == pytest.approx(8 * 2 * 704 * 0.5 / 60), "704 steps per epoch"


def test_finished_epochs_cost_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "pace", lambda *_: (0.01, 0.0))
    row, there = experiments.find(NAMES[0]), Queue(tmp_path, tmp_path, "smoke")
    whole = there.minutes(row, 0, CPU)
    deadline = {"deadline": time.perf_counter() - 1}
    monkeypatch.setattr(runner, "load_data", lambda *_: data.sample("cifar10", image_size=16))
    with pytest.raises(runner.Unfinished, match="Stopped after epoch 0 of 2; rerun to continue"):
        experiments.run(row.name, profile="smoke", checkpoint_dir=tmp_path, **deadline)
    assert there.minutes(row, 0, CPU) == whole
    experiments.run(row.name, profile="smoke", checkpoint_dir=tmp_path)
    assert there.minutes(row, 0, CPU) == 0


def test_a_damaged_checkpoint_neither_stops_the_list_nor_corrupts_its_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queue, "pace", lambda *_: print("A batch does not fit into memory.") or (0.01, 0.0))
    checkpoint = experiments.checkpoint_path(NAMES[0], "full", 0, tmp_path / "checkpoints")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    assert main(["list", "--json", "--report", "speed", *folders(tmp_path)]) == 0
    said = capsys.readouterr()
    assert [row["experiment"] for row in json.loads(said.out)] == NAMES
    assert f"The checkpoint {checkpoint.name} is damaged; trying another one." in said.err


def test_the_pace_is_measured(monkeypatch):
    monkeypatch.setattr(queue, "MEASURED_SECONDS", 0.0)
    queue.pace.cache_clear()
    per_image, per_step = queue.pace(CPU, "smallest", 32)
    assert 1e-8 < per_image < 1 and 0 <= per_step < 10
    queue.pace.cache_clear()


def test_list_shows_the_recorded_seeds_and_the_minutes_of_the_missing_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Queue, "minutes", lambda self, row, seed, device: 90.0 + seed)
    there = Queue(tmp_path).record(experiments.find("pikachu/resnext50_ours"), 1)
    there.parent.mkdir(parents=True)
    there.touch()
    assert main(["list", "--report", "pikachu", "--dataset", "pikachu", *folders(tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pikachu/resnext50_ours ")]
    assert line.endswith("    20  have seed 1; need seed 0 (90 min), 2 (92 min)")
    assert main(["list", "--report", "zoo", "--dataset", "cifar100", *folders(tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar100/wrn16_2 ")]
    assert line.endswith("   200  need seed 0 (at most 90 min)"), "it may stop early"


def test_the_pace_by_hand(monkeypatch):
    now, sizes = [0.0], []

    def train(learner, batches):  # half a second per step, and a hundredth per image; the first two of a size take longer
        [(images, _)] = batches
        sizes.append(len(images))
        now[0] += 0.5 + 0.01 * len(images) + (sizes.count(len(images)) < 3)

    monkeypatch.setattr(queue, "train_epoch", train)
    monkeypatch.setattr(queue.time, "perf_counter", lambda: now[0])
    queue.pace.cache_clear()
    assert queue.pace(CPU, "smallest", 32) == pytest.approx((0.01, 0.5))
    queue.pace.cache_clear()


def test_list_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queue, "pace", lambda *_: (0.01, 0.0))
    assert main(["list", "--json", "--report", "speed", *folders(tmp_path)]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["experiment"] for row in table] == NAMES
    assert [(row["have"], list(row["minutes"])) for row in table] == [([], ["0"])] * 2


def test_the_queue_runs_everything_missing_and_then_nothing(tmp_path, capsys):
    assert main([*COMMAND, *folders(tmp_path)]) == 0
    assert done(tmp_path) == NAMES and "Nothing is missing." in capsys.readouterr().out
    assert main([*COMMAND, *folders(tmp_path)]) == 0
    assert "0 runs are missing." in capsys.readouterr().out and not list(tmp_path.rglob("*.lock"))


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    run = runner.run

    def fail(name, *arguments, **options):
        if name == NAMES[0]:
            raise UserError("There is no data.")
        return run(name, *arguments, **options)

    monkeypatch.setattr(runner, "run", fail)
    assert main([*COMMAND, *folders(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert done(tmp_path) == NAMES[1:] and f"{NAMES[0]}, seed 0: There is no data." in printed.out
    assert f"1 runs failed: {NAMES[0]}, seed 0" in printed.err


def test_a_run_on_other_images_says_where_its_record_lies(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "save", lambda *_: tmp_path / "data/results/ab/seed0.json")
    assert main([*COMMAND, *folders(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{NAMES[1]}, seed 0 was a run on other images: its record is {tmp_path}/data/results/ab/seed0.json" in printed


def test_a_report_without_experiments_on_a_data_set_is_refused(tmp_path, capsys):
    assert main(["run", "--missing", "--report", "slim", "--dataset", "cifar100", *folders(tmp_path)]) == 1
    assert "There is no experiment of report 'slim' on 'cifar100'; leave out one of the two." in capsys.readouterr().err


def test_the_time_limit_stops_the_queue_between_epochs_and_what_is_left_is_listed(tmp_path, monkeypatch, capsys):
    """After the first epoch, the clock jumps ahead by an hour; the next call resumes and does the rest."""
    fit, save, saved = training.fit, loop.save_checkpoint, []
    clock = {"clock": lambda: time.perf_counter() + 3600 * bool(saved)}
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", lambda *arguments, **options: fit(*arguments, **options | clock))
        patch.setattr(loop, "save_checkpoint", lambda *arguments: (save(*arguments), saved.append(None)))
        assert main([*COMMAND, "--minutes", "30", *folders(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Stopped after epoch 1 of 2" in printed and done(tmp_path) == []
    assert "2 runs are left:" in printed and f"{NAMES[0]}, seed 0" in printed
    assert main([*COMMAND, *folders(tmp_path)]) == 0
    assert "Resumed after epoch 1 of 2." in capsys.readouterr().out and done(tmp_path) == NAMES


def together(barrier) -> None:
    with_the_smallest_network()
    barrier.wait()


def test_two_programs_side_by_side_never_take_the_same_run(tmp_path):
    barrier, said = programs.CONTEXT.Barrier(2), [tmp_path / "first.txt", tmp_path / "second.txt"]
    both = [programs.start([*COMMAND, *folders(tmp_path)], file, partial(together, barrier)) for file in said]
    for process in both:
        process.join()
    printed = [file.read_text() for file in said]
    assert [process.exitcode for process in both] == [0, 0] and done(tmp_path) == NAMES, printed
    begun = [line for text in printed for line in text.splitlines() if line.endswith("seed 0:")]
    assert sorted(begun) == [f"{name}, seed 0:" for name in NAMES]


def held_at_the_first_checkpoint() -> None:
    with_the_smallest_network()
    programs.hold_at_the_first_checkpoint()


def test_a_killed_queue_blocks_nothing_and_loses_nothing(tmp_path):
    process = programs.start([*COMMAND, *folders(tmp_path)], tmp_path / "said.txt", held_at_the_first_checkpoint)
    checkpoint = experiments.checkpoint_path(NAMES[0], "smoke", 0, tmp_path / "checkpoints")
    while not checkpoint.exists() and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and list(tmp_path.rglob("*.lock")), "it was killed while it held its locks"
    assert main([*COMMAND, *folders(tmp_path)]) == 0 and done(tmp_path) == NAMES
    assert not list(tmp_path.rglob("*.lock"))


def hold(path, held, leave):
    with locks.lock(path):
        held.set()
        leave.wait()


def test_a_lock_belongs_to_one_process_and_ends_with_it(tmp_path):
    context, path = multiprocessing.get_context("fork"), tmp_path / "seed0.ckpt"
    held, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(path, held, leave))
    process.start()
    held.wait()
    with pytest.raises(Taken, match=f"seed0.ckpt under {tmp_path.name} is in use by process {process.pid} on "):
        with locks.lock(path):
            pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locks.lock(path):
        assert path.with_name("seed0.ckpt.lock").exists()
    assert not path.with_name("seed0.ckpt.lock").exists()


def test_a_lock_outlives_two_missed_heartbeats():
    assert 3 * locks.HEARTBEAT < locks.STALE


def test_a_lock_from_another_machine_holds_until_its_heartbeat_is_stale(tmp_path):
    path, lock = tmp_path / "seed0.ckpt", tmp_path / "seed0.ckpt.lock"
    sign = {"host": "elsewhere", "pid": 1, "time": time.time()}
    lock.write_text(json.dumps(sign))
    with pytest.raises(Taken, match="in use by process 1 on elsewhere"):
        with locks.lock(path):
            pass
    for ago in (locks.STALE + 1, -locks.STALE - 1):  # also if the other machine's clock is ahead
        lock.write_text(json.dumps(sign | {"time": time.time() - ago}))
        with locks.lock(path):
            assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "elsewhere", "pid": 1e999, "time": 9e99}', "[" * 100_000])
def test_a_damaged_lock_file_holds_nothing(tmp_path, text):
    (tmp_path / "seed0.ckpt.lock").write_text(text)
    with locks.lock(tmp_path / "seed0.ckpt"):
        assert json.loads((tmp_path / "seed0.ckpt.lock").read_text())["pid"] == os.getpid()


def elsewhere(path, held):
    locks.socket.gethostname = lambda: "elsewhere"
    locks.fcntl.flock = lambda *_: None
    with locks.lock(path):
        held.set()
        time.sleep(600)


def test_without_file_locks_machines_still_share_the_work_and_take_over_stale_locks(tmp_path, monkeypatch, capsys):
    """Another host dies in the first of two runs: the queue here does the second, then the first once its lock is stale."""
    queue_ = Queue(tmp_path, tmp_path / "checkpoints", "smoke", "speed")
    context = multiprocessing.get_context("fork")
    held, record = context.Event(), queue_.record(experiments.find(NAMES[0]), 0)
    process = context.Process(target=elsewhere, args=(record, held))
    process.start()
    held.wait()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)
    queue.run_missing(queue_, device="cpu")
    assert done(tmp_path) == NAMES[1:]
    assert f"seed0.json under smoke is in use by process {process.pid} on elsewhere" in capsys.readouterr().out
    monkeypatch.setattr(locks, "STALE", 0.0)
    queue.run_missing(queue_, device="cpu")
    assert done(tmp_path) == NAMES


def test_a_lock_renews_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    lock = tmp_path / "seed0.ckpt.lock"
    with locks.lock(tmp_path / "seed0.ckpt"):
        first = json.loads(lock.read_text())["time"]
        deadline = time.monotonic() + 10
        while json.loads(lock.read_text() or "{}").get("time", first) == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(lock.read_text() or '{"time": 0}')["time"] != first


def test_a_heartbeat_that_cannot_be_written_hides_no_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    with pytest.raises(UserError, match="The checkpoint could not be written"), locks.lock(tmp_path / "seed0.ckpt"):
        monkeypatch.setattr(os, "pwrite", full)
        monkeypatch.setattr(locks.Path, "unlink", full)
        time.sleep(0.05)
        raise UserError("The checkpoint could not be written.")


def test_a_run_locked_by_another_program_gives_a_clear_error(tmp_path, capsys):
    checkpoint = experiments.checkpoint_path(NAMES[0], "smoke", 0, tmp_path / "checkpoints")
    with locks.lock(checkpoint):
        assert main(["run", NAMES[0], "--profile", "smoke", *folders(tmp_path)]) == 1
        assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert main([*COMMAND, *folders(tmp_path)]) == 0
    assert done(tmp_path) == NAMES[1:], "the queue skips it"


def test_a_layout_that_fails_on_a_gpu_does_not_hide_the_minutes_of_the_other(monkeypatch):
    """For some networks, cuDNN has no engine for one of the two; a run then takes the other."""

    def measured(device, model, pixels, channels_last):
        if channels_last in failing:
            raise UserError("Not even one image fits into the device's memory")
        return (3.0, 1.0) if channels_last else (2.0, 1.0)

    monkeypatch.setattr(queue, "_pace", measured)
    failing = set()
    assert queue.pace.__wrapped__(torch.device("cuda"), "resnet18", 32) == (2.0, 1.0), "of the faster layout"
    failing = {True}
    assert queue.pace.__wrapped__(torch.device("cuda"), "resnet18", 32) == (2.0, 1.0)
    failing = {True, False}
    with pytest.raises(UserError, match="resnet18 cannot be trained on this device, not even on one image"):
        queue.pace.__wrapped__(torch.device("cuda"), "resnet18", 32)
