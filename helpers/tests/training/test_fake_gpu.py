"""The CUDA code paths without a GPU: fake tensors on cuda:0 reveal wrong devices, copies, host waits and launches.

What fake tensors cannot do is simulated: `backward` allocates gradients, a value that the host waits for is 1, and the
fused optimisers, which have no fake implementation, do nothing.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import data, models, runtime, training
from helpers.experiments import plan
from helpers.training import step as stepping
from helpers.training.recipe import Recipe

CUDA = torch.device("cuda:0")
PERTURBED = Recipe(1, 4, 16, (0.5,) * 3, (0.5,) * 3, perturbation=0.1, nesterov=True)


class Operations(TorchDispatchMode):
    """Records launches on the fake GPU outside the passes, values that the host waits for, and copies between devices."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits, self.copies, self.in_a_pass = [], [], [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func).removeprefix("aten."), kwargs or {}
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        places = devices | ({torch.device(kwargs["device"]).type} if kwargs.get("device") else set())
        if name.startswith(("_to_copy", "copy_", "to.")) and len(places) > 1:  # `to` in inference mode
            self.copies.append(name)
        if name.startswith("_local_scalar_dense"):
            self.waits.extend([name] * ("cuda" in devices))
            return 1.0 if tensors[0].dtype.is_floating_point else 1
        if "cuda" in devices and not func.is_view and not self.in_a_pass and not name.startswith(("prim.", "empty")):
            self.launches.append(name)
        return None if name.startswith("_fused") else func(*args, **kwargs)


@pytest.fixture(params=["fp16", "bf16"])
def gpu(request, monkeypatch):
    """A fake GPU whose mixed precision is fp16, with an active scaler, or bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: request.param == "bf16")
    monkeypatch.setattr(torch.amp.grad_scaler, "amp_definitely_not_available", lambda: False, raising=False)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a fake GPU")
    with FakeTensorMode():
        yield request.param


def small(name: str = "small") -> nn.Module:
    """A small network with a grouped convolution, or a registered network by name, on the fake GPU."""
    with CUDA:
        if name != "small":
            return models.build(name, 10).train()
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).train()


def on_gpu(count: int = 8) -> data.Split:
    images = torch.empty(count, 3, 16, 16, dtype=torch.uint8, device=CUDA)
    return data.Split(images, torch.zeros(count, dtype=torch.int64, device=CUDA), ["a"] * count)


def second_step(recipe: Recipe, monkeypatch, name: str = "small") -> Operations:
    """The operations of a recipe's second step, including those that make its batch."""
    model = small(name)
    parameters, operations, gradients = list(model.parameters()), Operations(), stepping.gradients

    def backward(loss):
        assert loss.device == CUDA
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)

    def one_pass(*given):
        operations.in_a_pass = True
        try:
            return gradients(*given)
        finally:
            operations.in_a_pass = False

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(stepping, "gradients", one_pass)
    learner = training.Learner(model, recipe)
    batches = training.training_batches(on_gpu(), recipe, torch.Generator(), torch.ones(8, dtype=torch.bool))
    with operations:
        stepping.step(learner, *next(batches))
        images, labels = next(batches)
        for noted in (operations.launches, operations.waits, operations.copies):
            noted.clear()
        images = data.resize(images, 12)
        logits, loss = stepping.step(learner, images, labels)
    assert images.device == labels.device == logits.device == loss.device == CUDA
    assert not operations.copies, "a step must not copy between host and device"
    return operations


def kinds() -> list[Recipe]:
    """One recipe for each kind of step in the plan, and two that combine many ingredients."""
    small = {
        "image_size": 16,
        "batch_size": 4,
        "sizes": (),
        "compiled": False,
        "perturbation_every": 1,
        "perturbation_start": 0.0,
    }
    recipes = [replace(row.recipe, cutout=min(row.recipe.cutout, 4), padding=2, **small) for row in plan.EXPERIMENTS.values()]
    recipes += [
        replace(PERTURBED, clip_norm=1.0, ema=0.9, inner_steps=2, decay_weights_only=True, cutout=4, augment="crop_flip")
    ]
    recipes += [replace(PERTURBED, perturbation=None, momentum_perturbation=0.1, ema=0.9, clip_norm=1.0)]
    numbers = ("learning_rate", "weight_decay", "perturbation", "clip_norm", "ema", "momentum_perturbation", "label_smoothing")
    found = {}
    for recipe in recipes:
        of_step = (recipe.optimizer, recipe.nesterov, recipe.decay_weights_only, recipe.inner_steps, recipe.mixed_precision)
        of_batch = (recipe.augment, recipe.border, bool(recipe.cutout))
        found.setdefault((*of_step, *of_batch, *(bool(getattr(recipe, name)) for name in numbers)), recipe)
    return list(found.values())


def test_no_kind_of_step_makes_the_host_wait(gpu, monkeypatch):
    recipes = kinds()
    assert len(recipes) >= 8 and {recipe.optimizer for recipe in recipes} == {"sgd", "adam"}
    for recipe in recipes:
        with monkeypatch.context() as patch:
            operations = second_step(recipe, patch)
        assert not operations.waits, recipe


def test_a_perturbed_step_of_a_whole_network_takes_at_most_forty_launches(gpu, monkeypatch):
    """For the optimiser, the scaler and the BatchNorm statistics, over 95 tensors; the two passes are not counted."""
    operations = second_step(PERTURBED, monkeypatch, "resnext29_under5m")
    assert 10 < len(operations.launches) <= 40, Counter(operations.launches)
    assert not any(name.startswith("clone") for name in operations.launches)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_plain_step_of_a_whole_network_launches_the_fused_optimiser_once(gpu, monkeypatch, optimizer):
    operations = second_step(replace(PERTURBED, perturbation=None, optimizer=optimizer), monkeypatch, "resnext29_under5m")
    assert [name for name in operations.launches if "fused" in name] == [f"_fused_{optimizer}_.default"]
    assert len(operations.launches) <= 20, Counter(operations.launches)


def test_an_evaluation_copies_its_scores_once(gpu):
    model = small()
    with Operations() as operations:
        logits = training.predict(model, on_gpu(10), replace(PERTURBED, flip_test=True), batch_size=4, mirrored=True)
    assert logits.shape == (10, 10) and logits.device.type == "cpu" and not operations.waits
    assert len(operations.copies) == 4 + 1, "to the GPU: order, windows, mean, deviation; back: all scores at once"


def test_the_scaler_is_enabled_only_in_fp16(gpu):
    learner = training.Learner(small(), PERTURBED)
    assert learner.scaler.is_enabled() == (gpu == "fp16") == (runtime.autocast_dtype(CUDA) == torch.float16)
    assert not training.Learner(small(), replace(PERTURBED, mixed_precision=False)).scaler.is_enabled()
