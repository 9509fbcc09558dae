"""Two and three processes compared with one: gradients, weights and metrics; a kill, an interrupt, a changed number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from helpers import experiments, training
from helpers.__main__ import main
from helpers.experiments import records
from helpers.runtime import ROOT, UserError, seed_epoch
from helpers.tests.programs import CONTEXT, folders
from helpers.tests.training.test_training import RECIPE, Narrow, make_split, without_times
from helpers.training import processes
from helpers.training.batchnorm import synchronise
from helpers.training.checkpoints import load_checkpoint
from helpers.training.loop import fit

PLAIN = replace(RECIPE, epochs=2, mixed_precision=False)  # batches of 8, 8 and 1: only one process gets an image of the last
TRAIN, VALIDATION = make_split(17, 1), make_split(70, 2)  # two evaluation batches
EVERYTHING = {
    **{"perturbation": 0.3, "perturbation_start": 0.2, "perturbation_every": 2, "clip_norm": 0.5, "ema": 0.9},
    **{"schedule": "linear", "warmup_epochs": 1, "flip": "alternating", "border": "reflect", "cutout": 3},
    **{"sizes": ((0.0, 4), (0.3, 6), (0.6, 8)), "flip_test": True, "label_smoothing": 0.1},
}
KINDS = {
    "plain": (False, {}),
    "synchronised": (True, {}),
    "everything": (True, EVERYTHING),
    "perturbed twice": (True, {"perturbation": 0.5, "inner_steps": 2}),
    "along the momentum": (True, {"momentum_perturbation": 0.2, "clip_norm": 0.1}),
    "four copies, Adam": (False, {"augment": "fourfold", "optimizer": "adam", "learning_rate": 0.01}),
}


def make_model(batchnorm: bool, dropout: float = 0.0, together: bool = True) -> nn.Module:
    seed_epoch(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6) if batchnorm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3))
    if together:
        synchronise(model)
    return model


def outcome(model: nn.Module, done: training.Fit) -> dict:
    return {"state": model.state_dict(), "history": without_times(done.history), "best": done.best}


def equalities() -> dict:
    """Results that must not depend on the number of processes."""
    found = {}
    for kind, (batchnorm, changes) in KINDS.items():
        model = make_model(batchnorm)
        found[kind] = outcome(model, fit(model, TRAIN, VALIDATION, replace(PLAIN, **changes)))
    found["scores"] = training.predict(make_model(False), VALIDATION, PLAIN, batch_size=8)
    return found


def one_has_less_memory() -> dict:
    """The second process has memory for two images, the others for all of theirs; all split a batch into as many parts."""
    batches = [(make_split(8, 3).images[:count, :, :4, :4] / 255, torch.arange(count) % 3) for count in (8, 8, 3)]
    model = Narrow(2 if processes.count() > 1 and dist.get_rank() == 1 else 8)
    learner = training.Learner(model, replace(PLAIN, perturbation=0.5))
    learner.called = processes.wrap(model)
    return {"means": training.train_epoch(learner, batches), "state": model.state_dict(), "parts": learner.parts}


def each_its_own() -> dict:
    """Each process has its own BatchNorm, dropout and clock; only the first process's clock counts."""
    model, recipe = make_model(True, dropout=0.5, together=False), replace(PLAIN, epochs=9, ema=0.5)
    ticks, draws = iter(range(0, 9000, 10 + 90 * dist.get_rank())), []

    def note(layer: nn.Module, given: tuple) -> None:
        """Record the random numbers that dropout is about to draw."""
        ahead = torch.Generator()
        ahead.set_state(torch.get_rng_state())
        draws.append(torch.rand(4, generator=ahead).tolist())

    model.get_submodule("3").register_forward_pre_hook(note)
    done = fit(model, TRAIN, VALIDATION, recipe, time_budget=65, clock=lambda: next(ticks))
    return {"state": model.state_dict(), "history": done.history, "stopped": done.stopped, "draws": draws[0]}


def go_on(folder: Path) -> dict:
    model = make_model(True)
    return outcome(model, fit(model, TRAIN, VALIDATION, PLAIN, checkpoint=folder / "a.ckpt"))


def in_a_process(folder: Path) -> dict:
    """The work of one of several processes; only the first one writes a checkpoint and prints."""
    processes.join("cpu")
    found = equalities() | {"memory": one_has_less_memory(), "own": each_its_own()}
    (own := folder / f"own{processes.count()}").mkdir(exist_ok=True)
    fit(make_model(True), TRAIN, VALIDATION, PLAIN, checkpoint=own / "a.ckpt", until=1)
    if processes.count() == 3:
        found["resumed"] = go_on(folder / "own2")
    with pytest.raises(UserError) as refused:
        fit(make_model(True), TRAIN, VALIDATION, replace(PLAIN, batch_size=1))
    return found | {"refused": str(refused.value)}


def elastic(rank: int, world: int, port: int) -> None:
    """Set the environment that torchrun would have given this process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "CI": "1"}
    torch.set_num_threads(1)


def worker(rank: int, world: int, port: int, folder: Path) -> None:
    elastic(rank, world, port)
    with open(folder / f"{world}-{rank}.txt", "w", buffering=1) as sys.stdout:
        torch.save(in_a_process(folder), folder / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def command(rank: int, world: int, port: int, arguments: list[str], said: Path) -> None:
    elastic(rank, world, port)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = open(said.with_suffix(f".{rank}"), "w", buffering=1)
    status = main(arguments)
    assert status or not dist.is_initialized(), "a program must leave the process group before it ends"
    sys.exit(status)


def start(world: int, target, *arguments) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [CONTEXT.Process(target=target, args=(rank, world, port, *arguments)) for rank in range(world)]
    for process in started:
        process.start()
    return started


def ended(started: list) -> list[int]:
    for process in started:
        process.join()
    return [process.exitcode for process in started]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict]]:
    """The results of each process, by the number of processes: 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("processes")
    for world in (2, 3):
        assert ended(start(world, worker, folder)) == [0] * world, [path.read_text() for path in folder.glob("*.txt")]
    all_found = {world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)] for world in (2, 3)}
    return all_found | {1: [equalities() | {"folder": folder}]}


def assert_alike(one, other, **tolerance) -> None:
    torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_same_results_as_one(found, world, kind):
    """Weights, BatchNorm statistics, losses and accuracies agree up to rounding, even with uneven and empty shares."""
    alone = found[1][0][kind]
    for several in found[world]:
        assert_alike(several[kind]["state"], alone["state"], rtol=1e-4, atol=1e-5)
        for row, expected in zip(several[kind]["history"], alone["history"], strict=True):
            numbers = [name for name, value in expected.items() if not isinstance(value, str)]
            assert [row[name] for name in numbers] == pytest.approx([expected[name] for name in numbers], rel=1e-4, abs=1e-5)
        assert_alike(several[kind]["state"], found[world][0][kind]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("world", [2, 3])
def test_scores_are_in_the_order_of_the_split_and_equal_bit_for_bit(found, world):
    assert all(torch.equal(several["scores"], found[1][0]["scores"]) for several in found[world])


@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_use_as_many_parts_as_the_one_with_least_memory_and_the_step_is_the_same(found, world):
    alone = one_has_less_memory()
    assert alone["parts"] == 1
    for several in found[world]:
        assert several["memory"]["parts"] == 2
        assert several["memory"]["means"] == pytest.approx(alone["means"], rel=1e-5)
        assert_alike(several["memory"]["state"], alone["state"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_one_clock_decides_and_processes_share_statistics_but_not_dropout(found, world):
    """An epoch reads the clock three times, 10 s apart: three epochs fit 65 s. Other clocks are at least ten times as fast."""
    own = [several["own"] for several in found[world]]
    assert [row["seconds"] for row in own[0]["history"]] == [20, 20, 20] and "65 s: 60 s spent" in own[0]["stopped"]
    for one in own[1:]:
        assert one["history"] == own[0]["history"] and one["stopped"] == own[0]["stopped"]
        assert_alike(one["state"], own[0]["state"], rtol=0, atol=0)
        assert one["draws"] != own[0]["draws"]


def test_a_run_can_resume_with_another_number_of_processes(found):
    """Started with two processes and resumed with three or one, it ends like an uninterrupted run of one."""
    alone = found[1][0]
    for resumed in (found[3][2]["resumed"], go_on(alone["folder"] / "own2")):
        assert_alike(resumed["state"], alone["synchronised"]["state"], rtol=1e-4, atol=1e-5)
        assert len(resumed["history"]) == 2


def test_only_the_first_process_writes(found):
    folder = found[1][0]["folder"]
    assert sorted(path.name for path in (folder / "own3").iterdir()) == ["a.ckpt"]
    assert "Resumed after epoch 1 of 2." in (folder / "3-0.txt").read_text()


def test_more_processes_than_images_in_a_batch_are_refused(found):
    assert found[3][1]["refused"] == "The batch size is 1, for 3 processes; start at most 1."


NAME = "cifar10/wrn16_2_short"
RUN = ["run", NAME, "--profile", "smoke", "--device", "cpu", "--epochs", "20"]


def wait_for(path: Path, running) -> None:
    while not path.exists() and running():
        time.sleep(0.02)


def test_a_killed_process_ends_the_run_and_another_number_can_resume_it(tmp_path):
    """A kill under torchrun itself, then Ctrl-C in three processes, as torchrun passes it on; then two finish the run."""
    checkpoint = experiments.checkpoint_path(NAME, "smoke", 0, tmp_path / "checkpoints")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "helpers"]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen([*torchrun, *RUN, *folders(tmp_path)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **said)
    wait_for(checkpoint, lambda: run.poll() is None)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    second = next(pid for pid in workers if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    _, errors = run.communicate()
    assert run.returncode == 1 and "SIGKILL" in errors
    kept = len(load_checkpoint(checkpoint)["history"])
    assert 1 <= kept < 20

    started = start(3, command, [*RUN, *folders(tmp_path)], tmp_path / "said")
    printed = tmp_path / "said.0"
    while started[0].is_alive() and len(load_checkpoint(checkpoint)["history"]) == kept:
        time.sleep(0.02)
    for process in started:
        os.kill(process.pid, signal.SIGINT)
    assert ended(started)[0] == 130
    assert f"Resumed after epoch {kept} of 20." in printed.read_text()
    assert "the last checkpoint is kept in seed0.ckpt; rerun to continue." in printed.read_text()
    assert [(tmp_path / f"said.{rank}").read_text() for rank in (1, 2)] == ["", ""]

    assert ended(start(2, command, [*RUN, *folders(tmp_path)], tmp_path / "said")) == [0, 0]
    record = records.load(records.record_path(NAME, "smoke", 0, tmp_path))
    assert (record["processes"], record["sync_batchnorm"], len(record["history"])) == (2, False, 20)
    assert json.loads(json.dumps(record)) == record and len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    ("device", "arguments", "sentence"),
    [
        ("cpu", ["--missing"], "torchrun trains one experiment; name it, or start run --missing by itself"),
        ("cuda", [NAME], "torchrun started 2 processes for 1 GPUs; use --nproc-per-node=1."),
        ("cuda:1", [NAME], "Each process needs its own GPU; leave out the number in 'cuda:1'."),
    ],
)
def test_unsupported_uses_of_torchrun_give_a_clear_error(monkeypatch, capsys, device, arguments, sentence):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr(processes, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["run", *arguments, "--device", device]) == 1
    assert sentence in capsys.readouterr().err
