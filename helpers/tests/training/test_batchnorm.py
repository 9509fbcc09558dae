"""BatchNorm running statistics: updated only by the passes that should count."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import training
from helpers.runtime import UserError
from helpers.tests.training.test_training import RECIPE, make_model
from helpers.training import step as stepping
from helpers.training.batchnorm import RunningStatistics

BATCH = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def learner_of(model: nn.Module) -> training.Learner:
    model.train()
    return training.Learner(model, replace(RECIPE, mixed_precision=False))


def test_running_statistics_match_torchs():
    ours, theirs = make_model(), make_model().train()
    training.train_epoch(learner_of(ours), [BATCH])
    theirs(BATCH[0])
    assert all(torch.equal(ours[1].state_dict()[name], value) for name, value in theirs[1].named_buffers())
    training.train_epoch(learner_of(ours), [BATCH])
    assert ours[1].num_batches_tracked == 2


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory.",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "FIND was unable to find an engine to execute this computation",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes. Error code 12",
    ],
)
def test_a_pass_that_runs_out_of_memory_is_undone_and_the_number_of_parts_is_kept(words, monkeypatch, capsys):
    """Each CUDA library reports this in its own words. The second batch is split from the start."""

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.linear, self.attempts = nn.BatchNorm2d(3), nn.Linear(192, 3), []

        def forward(self, images):
            hidden = self.bn(images)
            self.attempts.append(len(images))
            if len(images) > 4:
                raise RuntimeError(words)
            return self.linear(hidden.flatten(1))

    model = Narrow()
    learner = learner_of(model)
    single = BATCH[0][:1], BATCH[1][:1]
    training.train_epoch(learner, [BATCH, BATCH, single])
    assert model.attempts == [8, 4, 4, 4, 4, 1] and learner.parts == 2 == learner.state_dict()["parts"], "no part is empty"
    assert model.bn.num_batches_tracked == 4 + 1 and capsys.readouterr().out.count("into 2 parts") == 1
    expected = nn.BatchNorm2d(3)
    for part in (*BATCH[0].chunk(2) * 2, single[0]):
        expected(part)
    assert torch.equal(model.bn.running_mean, expected.running_mean)


def test_a_failure_before_the_first_pass_undoes_nothing(monkeypatch):
    """Such as one in the copy of the weights that momentum perturbation makes: the step before is finished."""
    learner = learner_of(make_model())
    training.train_epoch(learner, [BATCH])
    after, failures, along = learner.model[1].running_mean.clone(), [RuntimeError("out of memory")], stepping.along_momentum

    def fail_once(*arguments):
        if failures:
            raise failures.pop()
        return along(*arguments)

    monkeypatch.setattr(stepping, "along_momentum", fail_once)
    training.train_epoch(learner, [BATCH])
    twice = learner_of(make_model())
    training.train_epoch(twice, [BATCH])
    assert torch.equal(twice.model[1].running_mean, after) and learner.model[1].num_batches_tracked == 1 + 2


def test_other_errors_are_not_caught():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images):
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        training.train_epoch(learner_of(Wrong()), [BATCH])


def test_undo_restores_values_and_counters():
    model = nn.BatchNorm2d(3).train()
    statistics = RunningStatistics(model)
    with statistics.moving(1, mend=False):
        model(BATCH[0])
    assert model.num_batches_tracked == 1 and model.running_mean.any()
    statistics.undo()
    assert model.num_batches_tracked == 0 and not model.running_mean.any() and (model.running_var == 1).all()


def test_an_overflow_in_the_forward_pass_does_not_corrupt_the_running_statistics():
    """As in fp16: one channel of the first layer overflows, and with it every channel of the second."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 3))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    learner = training.Learner(model.train(), replace(RECIPE, mixed_precision=False), scaler=scaler)
    before = [parameter.clone() for parameter in model.parameters()]
    images = BATCH[0].clone()
    images[0, 1, 0, 0] = torch.inf
    assert math.isnan(training.train_epoch(learner, [(images, BATCH[1])])[0])
    assert model[0].running_mean[[0, 2]].all() and model[0].running_mean[1] == 0 and model[0].running_var[1] == 1
    assert not model[2].running_mean.any() and (model[2].running_var == 1).all()
    assert scaler.get_scale() == 2.0, "the step was skipped"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    expected = training.train_epoch(copy.deepcopy(learner), [BATCH])[0]
    assert training.train_epoch(learner, [(images, BATCH[1]), BATCH])[0] == expected, "skipped steps do not count"


def test_a_last_batch_of_one_image_at_one_pixel_gives_a_clear_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    single = BATCH[0][:1], BATCH[1][:1]
    with pytest.raises(
        UserError, match="BatchNorm cannot normalise a single image.*choose a batch size that does not leave a single image"
    ):
        training.train_epoch(learner_of(model), [BATCH, single])
