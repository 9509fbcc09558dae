"""The loss around a network: directions with its filters' norms, losses computed independently, weights restored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from helpers import data, experiments, models, training
from helpers.experiments import records as results
from helpers.report import landscape
from helpers.tests.training.test_fake_gpu import CUDA, Operations, gpu, on_gpu, small  # noqa: F401
from helpers.training import checkpoints

RECIPE = training.Recipe(
    epochs=1, batch_size=4, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, mixed_precision=False, channels_last=False
)


@pytest.fixture(scope="module")
def split():
    return data.sample("cifar10").test


def test_each_filter_of_a_direction_has_the_norm_of_the_networks_own():
    model = models.build("resnext29_under5m", 10)
    with torch.no_grad():
        model.layer1[0].conv1.weight[3] *= 7
    direction = landscape.filter_normalised_direction(model, torch.Generator().manual_seed(0))
    assert set(direction) == {name for name, weight in model.named_parameters() if weight.ndim > 1}
    for name, step in direction.items():
        own = model.get_parameter(name).detach()
        torch.testing.assert_close(step.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
        assert not torch.allclose(step, own)


def test_the_losses_are_those_of_the_moved_weights_and_the_weights_are_restored(split):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    direction = landscape.filter_normalised_direction(model, torch.Generator().manual_seed(0))
    losses = landscape.loss_along(model, direction, (-1, 0, 0.5), split, RECIPE)
    images = (split.images.double() / 255 - 0.5) / 0.5
    for radius, loss in zip((-1, 0, 0.5), losses, strict=True):
        moved = {name: (value + radius * direction[name] if name in direction else value) for name, value in before.items()}
        scores = functional_call(model, {name: value.double() for name, value in moved.items()}, (images,))
        assert loss == pytest.approx(nn.functional.cross_entropy(scores, split.labels).item(), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_images_cover_every_class_and_do_not_depend_on_the_order():
    split = data.sample("cifar10").train
    by_class, shuffled = (
        split.labels.argsort(stable=True),
        torch.randperm(len(split), generator=torch.Generator().manual_seed(1)),
    )
    chosen, again = (landscape.subset(split.subset(order), 20) for order in (by_class, shuffled))
    assert chosen.labels.bincount().tolist() == [2] * 10, "the first 20 of a sorted split would cover only five classes"
    assert chosen.names == again.names and torch.equal(chosen.images, again.images)


def test_a_landscape_is_measured_once_from_the_checkpoint_and_then_read(split, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(landscape.runtime, "choose_device", lambda: torch.device("cpu"))
    name = "cifar10/resnext29_under5m_sgd"
    record = {"experiment": name, "profile": "smoke", "seed": 0, "model": {"name": "zoo_resnext1"}}
    record["dataset"] = {"num_classes": 10}
    assert landscape.obtain(record, split, tmp_path) is landscape.obtain(record, split, str(tmp_path)) is None
    assert "there is no checkpoint of this run" in capsys.readouterr().out
    torch.manual_seed(0)
    model = models.build("zoo_resnext1", 10)
    checkpoint = experiments.checkpoint_path(name, "smoke", 0, tmp_path / "checkpoints")
    checkpoint.parent.mkdir(parents=True)
    checkpoints.save_checkpoint({"best_weights": model.state_dict(), "best": {"epoch": 2}}, checkpoint)
    assert landscape.obtain(record | {"best": {"epoch": 5}}, split, tmp_path) is None, "the checkpoint is another run's"
    record["best"] = {"epoch": 2}
    results.record_path(name, "smoke", 0, tmp_path).parent.mkdir(parents=True)
    losses = landscape.obtain(record, split.subset(range(4)), tmp_path)
    assert losses.shape == (landscape.DIRECTIONS, len(landscape.RADII))
    centre = landscape.RADII.index(0)
    assert len(set(losses[:, centre].tolist())) == 1, "every direction goes through the same weights"
    recipe = replace(experiments.recipe_for(experiments.find(name), "smoke"), mixed_precision=False)
    there = training.evaluate(model, landscape.subset(split.subset(range(4))), recipe)[0]
    assert losses[0, centre] == pytest.approx(there, rel=1e-3), "those weights are the checkpoint's"
    path = next(tmp_path.rglob("*.landscape.npz"))
    path.write_bytes(path.read_bytes()[:-20])
    again = landscape.obtain(record, split.subset(range(4)), tmp_path)
    assert np.array_equal(again, losses), "a damaged file is measured again"
    checkpoint.unlink()
    assert np.array_equal(landscape.obtain(record, split, tmp_path), losses)


def test_on_a_gpu_the_weights_stay_there_and_only_scores_and_labels_come_back(gpu):  # noqa: F811
    model = small()
    direction = landscape.filter_normalised_direction(model, torch.Generator().manual_seed(0))
    assert {step.device for step in direction.values()} == {CUDA} and len(direction) == 3
    with Operations() as operations:
        losses = landscape.loss_along(model, direction, (-1, 0, 0.5), on_gpu(10), replace(RECIPE, image_size=16))
    assert losses.shape == (3,)
    copies = 3 * (3 + 2)  # per radius: order, mean and deviation to the GPU, scores and labels back
    assert len(operations.copies) == copies and not operations.waits
