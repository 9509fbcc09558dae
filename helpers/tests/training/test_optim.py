"""Adversarial model perturbation, compared with steps worked out by hand and with plain SGD; saved state, scalers, faults."""

import math

import pytest
import torch
from torch import nn

from helpers.training.perturbation import AdversarialModelPerturbation, step_clipped


def quadratic(weight, factor=2.0, scaler=None):
    """A closure for the loss factor/2 · |weight|², whose gradient is factor · weight, and the weights it was called at."""
    seen = []

    def closure():
        seen.append(weight.detach().clone())
        weight.grad = None
        loss = factor / 2 * (weight**2).sum()
        (scaler.scale(loss) if scaler else loss).backward()
        return loss

    return closure, seen


def test_one_step_on_a_quadratic_by_hand():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    closure, seen = quadratic(weight)
    optimizer = AdversarialModelPerturbation([weight], lr=0.1, epsilon=0.5)
    # Gradient 2, clipped to a perturbation of 0.5; the gradient at 1.5 is 3; 1 − 0.1 · 3 = 0.7.
    assert optimizer.step(closure).item() == 1.0, "the loss at the unperturbed weights"
    assert [point.item() for point in seen] == pytest.approx([1.0, 1.5])
    assert weight.item() == pytest.approx(0.7)


def test_two_inner_steps_by_hand():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    closure, seen = quadratic(weight)
    AdversarialModelPerturbation([weight], lr=0.1, epsilon=10, inner_lr=0.1, inner_steps=2).step(closure)
    # Perturbation 0.1 · 2 = 0.2, then 0.2 + 0.1 · 2.4 = 0.44; the gradient at 1.44 is 2.88.
    assert [point.item() for point in seen] == pytest.approx([1.0, 1.2, 1.44])
    assert weight.item() == pytest.approx(1 - 0.288)


def test_each_tensors_perturbation_is_clipped_to_its_own_ball():
    weights = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([0.06, 0.08]))]
    points = []

    def closure():
        points.append([weight.detach().clone() for weight in weights])
        for weight in weights:
            weight.grad = None
        loss = sum((weight**2).sum() / 2 for weight in weights)
        loss.backward()
        return loss

    AdversarialModelPerturbation(weights, lr=0.1, epsilon=0.5).step(closure)
    assert torch.allclose(points[1][0], torch.tensor([3.3, 4.4])), "a gradient of length 5 is clipped to 0.5"
    assert torch.allclose(points[1][1], torch.tensor([0.12, 0.16])), "one of length 0.1 is not clipped"


def test_momentum_and_weight_decay_act_at_the_unperturbed_weights():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    closure, _ = quadratic(weight)
    optimizer = AdversarialModelPerturbation([weight], lr=0.1, epsilon=0.5, momentum=0.9, weight_decay=0.1)
    optimizer.step(closure)
    assert weight.item() == pytest.approx(1 - 0.1 * (3 + 0.1 * 1))
    optimizer.step(closure)  # from 0.69: gradient 2 · 1.19 + 0.069 = 2.449; velocity 0.9 · 3.1 + 2.449 = 5.239
    assert weight.item() == pytest.approx(0.69 - 0.5239)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def make_closure(model, optimizer, batch):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


BATCHES = [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k)), torch.tensor([0, 1, 2, 0])) for k in range(6)]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_epsilon_zero_is_sgd_bit_for_bit():
    perturbed, plain = network(), network()
    arguments = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    first = AdversarialModelPerturbation(perturbed.parameters(), epsilon=0, **arguments)
    second = torch.optim.SGD(plain.parameters(), **arguments)
    for batch in BATCHES:
        first.step(make_closure(perturbed, first, batch))
        make_closure(plain, second, batch)()
        second.step()
    assert equal(perturbed, plain)


def test_the_perturbation_is_removed_to_the_last_bit():
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = AdversarialModelPerturbation(model.parameters(), lr=0.0, epsilon=0.37)
    for batch in BATCHES:
        optimizer.step(make_closure(model, optimizer, batch))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_closure_that_fails_leaves_the_weights_unperturbed():
    weight = nn.Parameter(torch.tensor([1.0]))
    closure, seen = quadratic(weight)

    def failing():
        if seen:
            raise RuntimeError("out of memory")
        return closure()

    with pytest.raises(RuntimeError, match="out of memory"):
        AdversarialModelPerturbation([weight], lr=0.1, epsilon=0.5).step(failing)
    assert weight.item() == 1.0


def test_groups_and_schedulers_reach_the_base_optimiser():
    slow, fast = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [slow], "lr": 0.01, "epsilon": 0.0}, {"params": [fast]}]
    optimizer = AdversarialModelPerturbation(groups, lr=0.1, epsilon=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)

    def closure():
        optimizer.zero_grad()
        loss = slow.square().sum() + fast.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (slow.item(), fast.item()) == pytest.approx((1 - 0.01 * 2, 1 - 0.1 * 3))
    schedule.step()
    assert [group["lr"] for group in optimizer.base.param_groups] == pytest.approx([0.001, 0.01])
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert optimizer.base.param_groups[2]["lr"] == 0.1 and optimizer.param_groups[2]["momentum"] == 0


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_a_restored_optimiser_continues_bit_for_bit(base):
    arguments = {"lr": 0.05, "epsilon": 0.3, "base": base} | ({"momentum": 0.9} if base is torch.optim.SGD else {})
    whole, resumed = network(), network()
    first = AdversarialModelPerturbation(whole.parameters(), **arguments)
    second = AdversarialModelPerturbation(resumed.parameters(), **arguments)
    for batch in BATCHES[:3]:
        first.step(make_closure(whole, first, batch))
        second.step(make_closure(resumed, second, batch))
    third = AdversarialModelPerturbation(resumed.parameters(), **arguments | {"lr": 9.0})
    third.load_state_dict(second.state_dict())
    for batch in BATCHES[3:]:
        first.step(make_closure(whole, first, batch))
        third.step(make_closure(resumed, third, batch))
    assert equal(whole, resumed)


def step_tensor_by_tensor(optimizer, closure, velocity):
    """Algorithm 1 with clipping, one tensor at a time, and SGD with momentum 0.9."""
    closure()
    members = [(p, p.detach().clone(), torch.zeros_like(p), group) for group in optimizer.param_groups for p in group["params"]]

    def clip() -> torch.Tensor:
        norm = torch.linalg.vector_norm(torch.stack([parameter.grad.norm() for parameter, *_ in members]))
        return (optimizer.clip_norm / (norm + 1e-6)).clamp(max=1)

    with torch.no_grad():
        for _ in range(optimizer.inner_steps):
            factor = clip()
            for parameter, weights, delta, group in members:
                delta.add_(parameter.grad * factor, alpha=group["inner_lr"])
                delta.mul_((group["epsilon"] / (delta.norm() + 1e-12)).clamp(max=1))
                torch.add(weights, delta, out=parameter)
            with torch.enable_grad():
                closure()
        factor = clip()
        for parameter, weights, _, group in members:
            gradient = parameter.grad.mul_(factor)
            if parameter in velocity:
                gradient = velocity[parameter].mul_(0.9).add_(gradient)
            velocity.setdefault(parameter, gradient.clone())
            parameter.copy_(weights.add(gradient, alpha=-group["lr"]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_tensors_at_once_equal_one_tensor_at_a_time_bit_for_bit(memory_format):
    """Two inner steps, groups with their own radii, and gradients long enough to be clipped."""
    together, apart = (network().to(memory_format=memory_format) for _ in "ab")
    optimizers = [
        AdversarialModelPerturbation(
            [{"params": [*model[0].parameters()], "epsilon": 0.3, "inner_lr": 0.7}, {"params": model[3].parameters()}],
            **{"lr": 0.05, "epsilon": 0.1, "inner_steps": 2, "momentum": 0.9, "clip_norm": 0.5},
        )
        for model in (together, apart)
    ]
    velocity = {}
    for batch in BATCHES:
        optimizers[0].step(make_closure(together, optimizers[0], batch))
        step_tensor_by_tensor(optimizers[1], make_closure(apart, optimizers[1], batch), velocity)
    assert equal(together, apart) and not equal(together, network())


def scaled_step(model, optimizer, scaler, batch, spoil=None):
    """A step as in fp16 training; `spoil` is the pass (0 or 1) whose gradients overflow."""
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        if len(calls) == spoil:
            next(model.parameters()).grad.view(-1)[0] = math.inf
        calls.append(None)
        return loss

    loss = optimizer.step(closure, scaler)
    scaler.update()
    return loss


def test_a_gradient_scaler_changes_nothing_but_the_scale():
    scaled, plain = network(), network()
    first = AdversarialModelPerturbation(scaled.parameters(), lr=0.1, epsilon=0.3, momentum=0.9)
    second = AdversarialModelPerturbation(plain.parameters(), lr=0.1, epsilon=0.3, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)  # a power of two: scaling and unscaling are exact
    for batch in BATCHES:
        loss = scaled_step(scaled, first, scaler, batch)
        assert loss.item() == second.step(make_closure(plain, second, batch)).item()
    assert equal(scaled, plain)


@pytest.mark.parametrize("spoil", [0, 1], ids=["in the inner pass", "in the last pass"])
def test_an_overflow_skips_the_step_and_lowers_the_scale(spoil):
    model = network()
    optimizer = AdversarialModelPerturbation(model.parameters(), lr=0.1, epsilon=0.3, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(model, optimizer, scaler, BATCHES[0])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    momentum = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    scaled_step(model, optimizer, scaler, BATCHES[1], spoil)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(a["momentum_buffer"], b) for a, b in zip(optimizer.state.values(), momentum, strict=True))
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("clip_norm", [None, 100.0])
def test_momenta_start_at_zero_if_the_first_step_overflows(clip_norm, monkeypatch):
    """In a step that the scaler skips, torch's fused SGD leaves them uninitialised; here such memory is filled with NaN."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        for gradient in (math.inf, 2.0, 2.0):
            optimizer.zero_grad()
            scaler.scale(weight.sum() * gradient).backward()
            step_clipped(optimizer, scaler, clip_norm)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(False)
    assert weight.tolist() == [-1 - 0.5 * (0.5 * 2 + 2)] * 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epsilon": -0.1}, "epsilon is -0.1; it cannot be negative"),
        ({"epsilon": math.nan}, "epsilon is nan; it cannot be negative"),
        ({"epsilon": 0.5, "inner_lr": -1}, "inner_lr is -1; it cannot be negative"),
        ({"epsilon": 0.5, "inner_steps": 0}, "inner_steps is 0; it must be a whole number of at least 1"),
        ({"epsilon": 0.5, "inner_steps": 1.5}, "inner_steps is 1.5"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        AdversarialModelPerturbation([nn.Parameter(torch.ones(1))], lr=0.1, **arguments)


def test_a_missing_closure_is_rejected():
    with pytest.raises(ValueError, match="needs a closure"):
        AdversarialModelPerturbation([nn.Parameter(torch.ones(1))], lr=0.1, epsilon=0.5).step()
