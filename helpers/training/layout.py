"""Memory layout and compilation: the fastest way to compute a network, with the same parameters and scores."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from helpers import data
from helpers.runtime import UserError
from helpers.training import processes
from helpers.training.batchnorm import SynchronisedBatchNorm
from helpers.training.convolutions import convolutions
from helpers.training.recipe import Recipe
from helpers.training.step import autocast

ROUNDS, WARM_UP = 5, 1.0  # timed steps per layout, after this many seconds of warm-up
CLEARLY_FASTER = 0.9  # of channels-last's time: smaller gains are noise, which must not decide how a run rounds


def choose_channels_last(model: nn.Module, train: data.Split, recipe: Recipe) -> bool:
    """Whether the model trains faster in the channels-last memory layout than in torch's default one.

    On a GPU, copies of the model are timed; on a CPU, channels-last is faster (`helpers bench`). For some grouped
    convolutions, cuDNN is 30 to 40 times slower in one layout (pytorch issues 34977, 70954 and 10290).
    """
    device = next(model.parameters()).device
    together = any(isinstance(layer, SynchronisedBatchNorm) for layer in model.modules())  # a pass waits for other processes
    if device.type != "cuda" or not recipe.channels_last or together:
        return recipe.channels_last
    images, labels = next(data.batches(train.to(device), min(recipe.batch_size, len(train)), **recipe.view))

    def step_of(channels_last: bool) -> Callable[[], None]:
        called = prepare(copy.deepcopy(model), recipe, channels_last).train()

        def step() -> None:
            called.zero_grad(set_to_none=True)
            with convolutions(device, recipe):
                with autocast(device, recipe):
                    loss = F.cross_entropy(called(images), labels)
                loss.backward()
            torch.cuda.synchronize(device)

        return step

    with torch.random.fork_rng(devices=[device]):
        seconds = step_seconds({channels_last: step_of(channels_last) for channels_last in (True, False)})
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return fastest(seconds)


def prepare(model: nn.Module, recipe: Recipe, channels_last: bool = True) -> nn.Module:
    """The module to call in training: the model, rearranged in place, or its compiled form, which shares its parameters."""
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if not channels_last:  # the images are, and one such input is enough to make a layer use that layout
        model.register_forward_pre_hook(lambda _, inputs: tuple(tensor.contiguous() for tensor in inputs))
    if not recipe.compiled:
        return model
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=next(model.parameters()).device))
    except Exception as error:  # no compiler, no Python headers, no OpenMP, no Triton
        needs = "a C++ compiler and Python's headers"
        raise UserError(f"torch.compile does not work here; install {needs}, or train without --compile.") from error
    # One graph per layout, image size and batch size: the last batch is smaller, and CUDA graphs have fixed shapes. Beyond
    # torch's default limit of eight, shared by all networks of one class, a network would silently run uncompiled.
    torch._dynamo.config.recompile_limit = 64
    # With several processes, a batch in parts would overwrite gradients that CUDA graphs own (pytorch issue 169545).
    mode = "reduce-overhead" if next(model.parameters()).device.type == "cuda" and processes.count() == 1 else "default"
    return torch.compile(model, dynamic=False, mode=mode)


def step_seconds(steps: Mapping, clock: Callable[[], float] = time.perf_counter) -> dict:
    """The median seconds of each step, timed alternately after a warm-up; infinite if it fails, as when cuDNN has no engine."""
    times = {name: [] for name in steps}
    for number in range(1 + ROUNDS):
        for name, step in steps.items():
            start = clock()
            try:
                step()
                while number == 0 and clock() - start < WARM_UP:
                    step()
                times[name].append(clock() - start)
            except RuntimeError:  # torch.OutOfMemoryError is one, and so is cuDNN's "unable to find an engine"
                times[name].append(math.inf)
    return {name: math.inf if math.inf in taken else statistics.median(taken[1:]) for name, taken in times.items()}


def fastest(seconds: Mapping[bool, float]) -> bool:
    """Whether to use channels-last, given the seconds with and without it; the other must be clearly faster to win."""
    return not seconds[False] < CLEARLY_FASTER * seconds[True]
