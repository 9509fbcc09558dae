"""The benchmark counts what it claims to count, and its two loops do the same training."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import bench, data, experiments, models, training
from helpers.__main__ import main
from helpers.tests import programs
from helpers.training import step

CPU = torch.device("cpu")


def test_the_ceiling_counts_two_operations_for_each_multiply_add(monkeypatch):
    """If each measurement took a second, GFLOP/s would equal the operations: 2 · 32² · 9 · 256² per image."""
    monkeypatch.setattr(bench, "_seconds", lambda device, work: 1.0 if work() is not None else None)
    assert bench.ceiling(CPU, batch=1) == 2 * 1024 * 9 * 65_536 / 1e9


@pytest.mark.parametrize(("name", "size", "dataset"), [("resnext29_under5m", 32, "cifar10"), ("resnet18", 224, "pikachu")])
def test_both_loops_take_the_same_step_from_the_same_batch(name, size, dataset, tmp_path, monkeypatch):
    """In fp32; the effect of mixed precision is tested in `test_training.py`."""
    monkeypatch.setattr(step, "autocast_dtype", lambda device: None)
    split = data.sample(dataset, image_size=size, counts=(8, 10, 10)).train
    loops = []
    for side in bench.SIDES.values():
        torch.manual_seed(0)
        loops.append(side(models.build(name, 10), split, 4, size, CPU, tmp_path))
    assert all(images.shape == (4, 3, size, size) for images, _ in loops[1].batches())
    batch = torch.randn(4, 3, size, size), torch.arange(4)
    start = weights(loops[0])
    for loop in loops:
        loop.optimizer.param_groups[0]["weight_decay"] = 0.0
        loop.train([batch])
    moved, apart = weights(loops[0]) - start, weights(loops[1]) - weights(loops[0])
    assert apart.norm() < 0.01 * moved.norm(), "only rounding may differ, since the memory layouts do"


def weights(loop) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in loop.model.parameters()])


@pytest.mark.parametrize("size", [32, 224])
def test_the_textbook_loader_yields_every_image_of_the_split(size, tmp_path):
    split = data.sample("cifar10" if size == 32 else "pikachu", image_size=size, counts=(4, 4, 4)).train
    loader = bench.textbook_loader(split, 4, size, tmp_path)
    images, labels = next(iter(loader))
    assert images.shape == (4, 3, size, size) and sorted(labels.tolist()) == sorted(split.labels.tolist())
    assert len(list(tmp_path.iterdir())) == (0 if size == 32 else 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet1000"], "There is no benchmark of 'resnet1000'; choose from resnext29_32x4d"),
        (["resnet18", "nonsense"], "There is no benchmark of 'nonsense'; choose from resnext29_32x4d"),
        (["--batch", "0"], "The batch size is 0; choose at least 1."),
        (["--to", "90", "cifar10/wrn16_2"], "The accuracy after --to is 90.0; it is a fraction, such as 0.90."),
        (["--to", "nan", "cifar10/wrn16_2"], "The accuracy after --to is nan"),
        (["--to", "0.9"], "--to takes one experiment, not 0"),
        (["--to", "0.9", "cifar10/wrn16_2", "--compile"], "With --to, leave out --batch and --compile."),
        (["--to", "0.9", "cifar10/nonsense"], "There is no experiment 'cifar10/nonsense'"),
        (["--device", "tpu9"], "Device 'tpu9' cannot be used"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(bench, "ceiling", None)
    monkeypatch.setattr(bench, "compare", None)
    assert main(["bench", *arguments]) == 1
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(("size", "batch", "images"), [(224, 128, 128), (224, 48, 96), (32, 8192, 8192), (32, 64, 5120)])
def test_every_batch_of_a_benchmark_is_a_full_one(monkeypatch, size, batch, images):
    def sample(name, image_size, counts):
        raise ValueError(f"{counts[0]} images of {image_size} pixels")

    monkeypatch.setattr(bench.data, "sample", sample)
    with pytest.raises(ValueError, match=f"^{images} images of {size} pixels"):
        bench._started("ours", "resnet18", batch, size, CPU, None)


def use_few_images() -> None:
    bench.IMAGES[32] = (bench.IMAGES[32][0], 64)


def test_both_loops_are_timed_in_turns_and_their_numbers_are_consistent(monkeypatch):
    """One short round, really measured: the ratio is that of the medians."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda how: programs.CONTEXT)  # has already imported torch
    monkeypatch.setattr(bench, "ProcessPoolExecutor", partial(bench.ProcessPoolExecutor, initializer=use_few_images))
    row = bench.compare("resnext29_under5m", CPU, batch_size=1)
    assert row["ours_gflops"] == 6 * 759_801_856 * row["ours_images_per_second"] / 1e9
    assert row["ratio"] == row["ours_images_per_second"] / row["textbook_images_per_second"]
    for side in bench.SIDES:
        low, high = row[f"{side}_range"]
        assert 0 < low <= row[f"{side}_images_per_second"] <= high
        assert row[f"{side}_peak_memory_bytes"] > 2**27
    assert 0.3 < sum(row["layers"].values()) < 1 and {"3×3 convolutions", "BatchNorm", "ReLU"} & set(row["layers"])


def test_the_speeds_of_a_comparison_by_hand(monkeypatch):
    """A step of six images takes 0.3 s in the textbook loop, 0.1 s in ours, its input 0.1 and 0.01 s; two rounds are odd."""
    factors = {side: iter((1, 1, 1, 2, 0.5, 1, 1)) for side in bench.SIDES}  # of the warm-up, the trial and the rounds
    seconds = {"textbook": {"train": 0.3, "input": 0.1}, "ours": {"train": 0.1, "input": 0.01}}

    def ask(started, task, steps=0):
        factor = next(factors[started[0]]) if task == "train" else 1
        return factor * steps * seconds[started[0]][task] if task in ("train", "input") else {"peak": 2**30}.get(task, {})

    monkeypatch.setattr(bench, "_ask", ask)
    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    row = bench.compare("resnext29_under5m", CPU, batch_size=6)
    for side, speed, input_speed in (("textbook", 20, 60), ("ours", 60, 600)):
        found = [row[f"{side}_images_per_second"], row[f"{side}_input_images_per_second"], *row[f"{side}_range"]]
        assert found == pytest.approx([speed, input_speed, speed / 2, 2 * speed])
    assert (row["ratio"], row["input_ratio"]) == pytest.approx((3, 10))


def test_the_hardware_is_reported_if_the_system_reports_it(monkeypatch):
    assert set(bench.hardware(CPU)) <= {"model name", "cpu MHz"}
    asked, answers = [], ["550.54.15, 1980 MHz, 1980 MHz\n", "[N/A]\n"]

    def run(command, **keywords):
        asked.append(command)
        return subprocess.CompletedProcess([], 0, answers[len(asked) - 1])

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    found = bench.hardware(torch.device("cuda"))
    assert found == {"driver_version": "550.54.15", "clocks.sm": "1980 MHz", "clocks.max.sm": "1980 MHz"}
    assert "--id=GPU-1-2" in asked[0]
    assert bench.hardware(torch.device("cuda")) == {}, "an answer in an unexpected format"


def test_the_record_has_the_ceiling_and_our_speed_as_a_fraction_of_it(monkeypatch, capsys):
    row = {"model": "resnet18", "batch": 8, "image_size": 224, "ratio": 2.0, "input_ratio": 3.0, "ours_gflops": 100.0}
    row |= {f"{side}_{what}": 5.0 for side in bench.SIDES for what in ("images_per_second", "input_images_per_second")}
    row |= {f"{side}_peak_memory_bytes": 2**30 for side in bench.SIDES}
    row |= {"layers": {"grouped convolutions": 0.25, "BatchNorm": 0.125}}
    monkeypatch.setattr(bench, "compare", lambda *arguments: dict(row))
    monkeypatch.setattr(bench, "ceiling", lambda device: 400.0)
    measured = bench.run(["resnet18"], "cpu")
    assert measured["ceiling"]["dense 3×3 convolution"] == 400 and measured["results"][0]["part_of_ceiling"] == 0.25
    printed = capsys.readouterr().out
    assert "0.25 of the ceiling" in printed and "of our step, grouped convolutions 25%, BatchNorm 12%" in printed


def test_the_shares_of_a_step_are_reported_by_kind_of_layer(monkeypatch):
    layers = [nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 5)]
    model = nn.Sequential(*layers)
    shares = bench.layer_shares(CPU, lambda: model(torch.randn(16, 4, 32, 32)).sum().backward())
    assert set(shares) == {"1×1 convolutions", "grouped convolutions", "5×5 convolutions", "BatchNorm", "ReLU"}
    assert all(share > 0 for share in shares.values()) and sum(shares.values()) < 1
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device))
    bench.layer_shares(torch.device("cuda"), lambda: model(torch.randn(16, 4, 32, 32)))
    assert len(waits) >= len(layers), "on a GPU, every operation is waited for"
    assert bench.layer_kind("aten::convolution_backward", [[1, 8, 9, 9], [1, 4, 9, 9], [8, 2, 3, 3]]) == "grouped convolutions"


@pytest.mark.parametrize(("target", "epochs", "reached"), [(0.5, 2, True), (0.95, 3, False)])
def test_the_time_to_an_accuracy_ends_with_the_first_epoch_that_reaches_it(monkeypatch, target, epochs, reached):
    """Each epoch has the sample's 40 training images; the second is the best, with 0.6, although the recipe keeps the last."""
    sizes = {"image_size": 16, "sizes": ((0.0, 8), (0.4, 16))}  # the first of three epochs at a quarter of the pixels
    recipe = training.Recipe(epochs=3, batch_size=20, **sizes, mean=(0.5,) * 3, std=(0.5,) * 3, keep="last")
    fit, fitted = training.fit, []
    monkeypatch.setattr(training, "fit", lambda *given, **more: fitted.append(fit(*given, **more)) or fitted[-1])
    accuracies = iter([0.3, 0.6, 0.5])
    monkeypatch.setattr("helpers.training.loop.evaluate", lambda *arguments: (1.0, next(accuracies)))
    monkeypatch.setattr(experiments, "recipe_for", lambda experiment, profile: recipe)
    monkeypatch.setattr(experiments, "load_data", lambda *arguments: data.sample("cifar10"))
    found = bench.time_to(target, ["cifar10/resnet18_torchvision"], device="cpu")["time_to"]
    macs = models.count_macs(models.build("torchvision/resnet18", 10), (1, 3, 16, 16))
    assert (found["epochs"], found["images"], found["reached"]) == (epochs, 40 * epochs, reached)
    assert found["flops"] == 6 * macs * 40 * (epochs - 0.75) and found["best"] == 0.6, "6 operations for each multiply-add"
    assert found["seconds"] == sum(row["seconds"] for row in fitted[0].history), "validation included"
