"""Memory layout and compilation: how a network is computed fastest, with the same parameters and scores."""

import copy
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from helpers import data
from helpers.runtime import require
from helpers.training.batchnorm import SynchronisedBatchNorm
from helpers.training.convolutions import convolutions
from helpers.training.recipe import Recipe
from helpers.training.step import autocast

ROUNDS, WARM_UP = 5, 1.0  # steps each, and seconds each before them
CLEARLY_FASTER = 0.9  # of the time of channels-last: smaller gains are noise, which must not decide how a run rounds


def choose_channels_last(model: nn.Module, train: data.Split, recipe: Recipe) -> bool:
    """Whether the model trains fastest with the channels of a pixel side by side in memory, or else with those of an image.

    On a GPU copies are measured; on a CPU channels-last is the faster (`helpers bench`). In some grouped convolutions cuDNN is
    30 to 40 times slower in one layout (pytorch issues 34977, 70954 and 10290).
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
            with convolutions(device, recipe), autocast(device, recipe):
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
    """What is called in training: the model itself, rearranged in place, or its compiled form, which shares its parameters."""
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if not channels_last:  # images are, and one such input is enough for a layer to compute so
        model.register_forward_pre_hook(lambda _, inputs: tuple(tensor.contiguous() for tensor in inputs))
    if not recipe.compiled:
        return model
    missing = "torch.compile needs a C++ compiler, and none is here; install g++, or train without --compile."
    require(any(map(shutil.which, ("c++", "g++", "clang++"))), missing)
    # A program for each layout, image size and batch size: the last batch is smaller, and CUDA graphs have fixed shapes. Beyond
    # torch's limit of eight, which all networks of one class share, a network would silently not be compiled.
    torch._dynamo.config.recompile_limit = 64
    mode = "reduce-overhead" if next(model.parameters()).device.type == "cuda" else "default"
    return torch.compile(model, dynamic=False, mode=mode)


def step_seconds(steps: Mapping, clock: Callable[[], float] = time.perf_counter) -> dict:
    """The median seconds of each step, taken in turns after a warm-up; infinite if it fails, as when cuDNN has no engine."""
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
    """Whether channels-last is chosen, by the seconds with and without it; only what is clearly faster displaces it."""
    return not seconds[False] < CLEARLY_FASTER * seconds[True]
