"""The benchmark's pieces compute what they claim to, and its two loops are the same training."""

import pytest
import torch
import torch.nn.functional as F

from helpers import bench, data, models, pieces
from helpers.__main__ import main
from helpers.training import layout as arrange
from helpers.training import step

CPU = torch.device("cpu")


@pytest.mark.parametrize("merged", [2, 4, 32])
def test_merged_groups_and_branches_are_the_grouped_convolution(merged):
    torch.manual_seed(0)
    images, weight = torch.randn(2, 128, 6, 6), torch.randn(128, 4, 3, 3)
    grouped = F.conv2d(images, weight, padding=1, groups=32)
    wider = arrange.merge_groups(weight, merged)
    assert wider.shape == (128, 4 * merged, 3, 3) and wider.count_nonzero() == weight.count_nonzero()
    torch.testing.assert_close(F.conv2d(images, wider, padding=1, groups=32 // merged), grouped, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pieces.split_convolution(images, weight), grouped, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["resnext29_32x4d", "torchvision/resnet18"])
def test_folding_batch_norm_leaves_the_scores(name):
    torch.manual_seed(0)
    model, images = models.build(name, 10), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        model.train()(images)
        before = model.eval()(images)
        folded = pieces.fold_batch_norm(model)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(images), before, rtol=1e-4, atol=1e-4)


def test_both_loops_take_the_same_step_from_the_same_batch(tmp_path, monkeypatch):
    """In the plain arithmetic; what the fast one changes is pinned in `test_training.py`."""
    monkeypatch.setattr(step, "autocast_dtype", lambda device: None)
    split = data.sample("cifar10", counts=(8, 10, 10)).train
    loops = []
    for side in bench.SIDES.values():
        torch.manual_seed(0)
        loops.append(side(models.build("resnext29_under5m", 10), split, 4, 32, CPU, tmp_path))
    batch = torch.randn(4, 3, 32, 32), torch.arange(4)
    start = weights(loops[0])
    for loop in loops:
        loop.optimizer.param_groups[0]["weight_decay"] = 0.0
        loop.train([batch])
    moved, apart = weights(loops[0]) - start, weights(loops[1]) - weights(loops[0])
    assert apart.norm() < 0.01 * moved.norm(), "rounding in another memory layout, and nothing more"


def weights(loop) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in loop.model.parameters()])


@pytest.mark.parametrize("size", [32, 224])
def test_the_textbooks_images_are_the_splits(size, tmp_path):
    split = data.sample("cifar10" if size == 32 else "pikachu", image_size=size, counts=(4, 4, 4)).train
    loader = bench.textbook_loader(split, 4, size, tmp_path)
    images, labels = next(iter(loader))
    assert images.shape == (4, 3, size, size) and sorted(labels.tolist()) == sorted(split.labels.tolist())
    assert len(list(tmp_path.iterdir())) == (0 if size == 32 else 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet1000"], "There is no benchmark of 'resnet1000'; choose from resnext29_32x4d"),
        (["--batch", "0"], "The batch size is 0; choose at least 1."),
        (["--device", "tpu9"], "Device 'tpu9' cannot be used"),
    ],
)
def test_what_cannot_be_measured_gets_its_sentence(arguments, sentence, capsys):
    assert main(["bench", *arguments]) == 1
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(("name", "size"), [("resnext29_under5m", 32), ("resnet18", 224)])
def test_the_two_sides_run_in_turns_and_their_numbers_agree(monkeypatch, name, size):
    """One short round for real, on small images and on photographs: the ratio is that of the medians."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.01)
    monkeypatch.setitem(bench.MODELS, name, (4, size))
    row = bench.compare(name, CPU)
    assert row["ratio"] == row["ours_images_per_second"] / row["textbook_images_per_second"]
    for side in bench.SIDES:
        low, high = row[f"{side}_range"]
        assert 0 < low <= row[f"{side}_images_per_second"] <= high
        assert list(row[f"{side}_phases"]) == list(bench.PHASES) and min(row[f"{side}_phases"].values()) > 0
        assert row[f"{side}_peak_memory_bytes"] > 2**27
