"""BatchNorm statistics: running ones, which only some passes of a step update, and batch ones over several processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from helpers.training import processes


class RunningStatistics:
    """The BatchNorm running statistics of a model, which can be frozen, or restored to their values before a step."""

    def __init__(self, model: nn.Module):
        self.tracking = [layer for layer in model.modules() if getattr(layer, "track_running_stats", False)]
        self.layers = [layer for layer in self.tracking if layer.momentum]
        self.values = [value for layer in self.layers for value in (layer.running_mean, layer.running_var)]
        self.counters = [layer.num_batches_tracked for layer in self.layers]
        self.before = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Freeze them in a pass that must not count, such as the second one of a perturbed step."""
        for layer in self.tracking:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in self.tracking:
                layer.track_running_stats = True

    @contextmanager
    def moving(self, passes: int, mend: bool) -> Iterator[None]:
        """Let `passes` passes update them; with `mend`, restore values that are no longer finite, as after an fp16 overflow.

        The layers' batch counters would take a launch each on a GPU, so they are increased together.
        """
        if not self.layers:
            yield
            return
        self.before = torch.cat(self.values), torch.stack(self.counters)
        for layer in self.layers:
            layer.num_batches_tracked = None
        try:
            yield
        finally:
            for layer, counter in zip(self.layers, self.counters, strict=True):
                layer.num_batches_tracked = counter
        torch._foreach_add_(self.counters, passes)
        if mend:
            after = torch.cat(self.values)
            self._put(torch.where(after.isfinite(), after, self.before[0]))

    def undo(self) -> None:
        """Restore their values from before the step that has just failed."""
        if self.before:
            self._put(self.before[0])
            torch._foreach_copy_(self.counters, self.before[1].unbind())

    def _put(self, flat: Tensor) -> None:
        torch._foreach_copy_(self.values, flat.split([len(value) for value in self.values]))


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes, some of which may be empty; takes over the values of a plain one.

    Torch's own SyncBatchNorm needs GPUs and a batch counter, which `RunningStatistics` removes during a pass.
    """

    def __init__(self, plain: nn.BatchNorm2d):
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        for name, value in (*plain.named_parameters(), *plain.named_buffers()):
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float()
        count = values.new_full((1,), values.numel() // self.num_features)
        sums = processes.Sum.apply(torch.cat([values.sum((0, 2, 3)), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean[:, None, None]
        variance = processes.Sum.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


def synchronise(model: nn.Module) -> None:
    """If several processes train the model, replace each of its BatchNorms, in place, by one that sees the whole batch."""
    if processes.count() > 1:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.BatchNorm2d):
                model.set_submodule(name, SynchronisedBatchNorm(layer))
