"""One run over the processes that torchrun started: each takes its share of every batch, and all take the same steps."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helpers.runtime import choose_device, require


def count() -> int:
    """How many processes train this run together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; process 0 prints and writes."""
    return dist.get_rank() if count() > 1 else 0


def join(name: str | torch.device | None = None) -> torch.device:
    """Join the other processes, if torchrun started any; returns this one's device. A UserError if any would share a GPU."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    if launched and torch.cuda.is_available():  # before any use of GPU 0
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    device, started = choose_device(name), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not launched or os.environ["WORLD_SIZE"] == "1":
        return device
    backend = "gloo"
    if device.type == "cuda":
        require(device.index is None, f"Each process needs its own GPU; leave out the number in '{device}'.")
        gpus = torch.cuda.device_count()
        require(started <= gpus, f"torchrun started {started} processes for {gpus} GPUs; use --nproc-per-node={gpus}.")
        backend = "cpu:gloo,cuda:nccl"
    # The others wait this long while the first one downloads the data; if one dies, torchrun ends those that wait.
    dist.init_process_group(backend, timeout=timedelta(hours=4))
    return device


def leave() -> None:
    """Leave the other processes; on GPUs, torch warns of possible leaks if a program ends without this."""
    if count() > 1:
        dist.destroy_process_group()


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let one process per machine run the block first; the others then find what it has downloaded or cached."""
    later = count() > 1 and os.environ["LOCAL_RANK"] != "0"
    if later:
        gathered(None)
    yield
    if not later:
        gathered(None)


def agreed(value):
    """The first process's value, in every process."""
    held = [value]
    if count() > 1:
        dist.broadcast_object_list(held)
    return held[0]


def gathered(value) -> list:
    """The values of all processes, in their order."""
    found = [value] * count()
    if count() > 1:
        dist.all_gather_object(found, value)
    return found


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch; the parts differ by at most one image, and may be empty."""
    return batch.tensor_split(count())[rank()]


def add_up(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


class Sum(torch.autograd.Function):
    """The differentiable sum of a tensor over all processes: its gradients are summed as well."""

    @staticmethod
    def forward(context, tensor: Tensor) -> Tensor:
        add_up(total := tensor.clone())
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return Sum.apply(gradient)


def wrap(model: nn.Module) -> nn.Module:
    """The model, wrapped so that `backward` averages its gradients over all processes."""
    if count() == 1:
        return model
    with warnings.catch_warnings(action="ignore"):  # torch 2.14 wants a new name here, which torch 2.8 does not know
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
