"""Benchmarks: a textbook training loop against ours, alternating; the speed of dense work; the time to an accuracy."""

import math
import multiprocessing
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, partial
from itertools import count, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from helpers import data, experiments, models, training
from helpers.experiments.queue import passes
from helpers.experiments.recipes import AMP_SGD, PIKACHU
from helpers.experiments.runner import make_model, peak_memory
from helpers.runtime import UserError, autocast_dtype, choose_device, environment, keep_freed_memory_in_process, require

# Batch and image size of the comparison: those of the reports (for `pikachu`, as in its code).
MODELS = {"resnext29_32x4d": (64, 32), "resnext29_under5m": (64, 32), "resnext50_32x4d": (8, 224), "resnet18": (8, 224)}
IMAGES = {32: ("cifar10", 5120), 224: ("pikachu", 64)}  # CIFAR in memory, photographs as JPEG files of 500×375 pixels
ROUNDS, ROUND_SECONDS, WORKERS = 5, 3, 2


def textbook_loader(split: data.Split, batch_size: int, image_size: int, folder: Path) -> DataLoader:
    """PIL transforms in a DataLoader with two workers, as in most tutorials; photographs become JPEG files in the folder."""
    images = list(split.images.permute(0, 2, 3, 1).numpy())
    change = [Image.fromarray, transforms.RandomCrop(32, padding=4)]
    if image_size != 32:
        change = [default_loader, transforms.Resize(256), transforms.CenterCrop(image_size)]
        for number, photograph in enumerate(images):
            images[number] = folder / f"{number}.jpg"
            Image.fromarray(photograph).resize((500, 375)).save(images[number], quality=85)
    change += [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    pairs, transform = list(zip(images, split.labels.tolist(), strict=True)), transforms.Compose(change)
    # A loop in its own process would start its workers from scratch, imports included; a textbook's are forked.
    workers = {"num_workers": WORKERS, "multiprocessing_context": "fork"}
    workers["collate_fn"] = lambda items: default_collate([(transform(image), label) for image, label in items])
    return DataLoader(pairs, batch_size, shuffle=True, **workers)


class Textbook:
    """Torch's default precision and memory layout, reading the loss after every step. `batches` is one epoch."""

    def __init__(self, model: nn.Module, split: data.Split, batch_size: int, image_size: int, device, folder: Path):
        self.model, self.device = model.to(device).train(), device
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.loader = textbook_loader(split, batch_size, image_size, folder)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.to(self.device), labels.to(self.device)) for images, labels in self.loader)

    def train(self, batches) -> None:
        for images, labels in batches:
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()


class Ours:
    """The same training as in `training.fit`, with its own functions."""

    def __init__(self, model: nn.Module, split, batch_size: int, image_size: int, device, folder: Path, compiled=False):
        base = AMP_SGD if image_size == 32 else replace(PIKACHU, augment="flip")
        recipe = replace(base, batch_size=batch_size, learning_rate=0.01, compiled=compiled)
        self.channels_last = training.choose_channels_last(model.to(device), split, recipe)
        self.learner = training.Learner(model, recipe, called=training.prepare(model, recipe, self.channels_last))
        self.model, self.device, self.optimizer = model, device, self.learner.optimizer
        self.split, self.generator = split.to(device), torch.Generator().manual_seed(0)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return training.training_batches(self.split, self.learner.recipe, self.generator)

    def train(self, batches) -> None:
        training.train_epoch(self.learner, batches)


SIDES = {"textbook": Textbook, "ours": Ours}
COMPILED = {"compiled": partial(Ours, compiled=True)}
KINDS = {f"aten::{by}_batch_norm{end}": "BatchNorm" for by in ("native", "cudnn") for end in ("", "_backward")}
KINDS |= dict.fromkeys(("aten::relu", "aten::relu_", "aten::threshold_backward"), "ReLU")


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def layer_kind(operation: str, shapes: list) -> str | None:
    """The kind of layer to which a torch operation belongs, forward or backward, by its name and its input shapes."""
    if operation not in ("aten::convolution", "aten::convolution_backward"):
        return KINDS.get(operation)
    image, weight = shapes[:2] if operation == "aten::convolution" else shapes[1:3]
    return "grouped convolutions" if weight[1] < image[1] else f"{weight[2]}×{weight[3]} convolutions"


class _Stopwatch(TorchDispatchMode):
    """Seconds spent in each kind of layer, with a synchronisation after each operation; under None, in all other operations.

    On a CPU, torch's profiler is no use: it stores its events in the memory that one step frees and the next would reuse, so
    that operations wait for new pages. For ResNeXt-29, it doubles BatchNorm's share of a step and triples that of ReLU.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.spent = device, Counter()

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        shapes, results = [list(value.shape) for value in args if isinstance(value, Tensor)], []
        kind = layer_kind(operation.name(), shapes)
        self.spent[kind] += _seconds(self.device, lambda: results.append(operation(*args, **(kwargs or {}))))
        return results[0]


def layer_shares(device: torch.device, work: Callable[[], object]) -> dict[str, float]:
    """Each kind of layer's share of the time that the operations of this work take."""
    with _Stopwatch(device) as stopwatch:
        work()
    return {kind: seconds / stopwatch.spent.total() for kind, seconds in stopwatch.spent.most_common() if kind}


TASKS = {
    "train": lambda loop, stream, steps: _seconds(loop.device, lambda: loop.train(islice(stream, steps))),
    "input": lambda loop, stream, steps: _seconds(loop.device, lambda: deque(islice(stream, steps), maxlen=0)),
    "layers": lambda loop, stream, steps: layer_shares(loop.device, lambda: loop.train(islice(stream, steps))),
    "peak": lambda loop, stream, steps: peak_memory(loop.device),
    "arrangement": lambda loop, stream, steps: {"channels_last": loop.channels_last},
}


@cache
def _started(side: str, name: str, batch_size: int, image_size: int, device: torch.device, folder: Path) -> tuple:
    """One side and its endless stream of batches; cached, so that its process builds them only once."""
    torch.manual_seed(0)
    dataset, images = IMAGES[image_size]
    images = -(-images // batch_size) * batch_size  # every batch is a full one
    split = data.sample(dataset, image_size=image_size, counts=(images, 10, 10)).train
    loop = (SIDES | COMPILED)[side](models.build(name, 10), split, batch_size, image_size, device, folder)
    return loop, (batch for _ in count() for batch in loop.batches())


def _ask(started: tuple, task: str, steps: int = 0):
    return TASKS[task](*_started(*started), steps)


def compare(name: str, device: torch.device, batch_size: int | None = None, compiled: bool = False) -> dict:
    """Time both loops on one model, and with `compiled` also ours compiled, alternating: images per second, memory, GFLOP/s."""
    batch_size, image_size = batch_size or MODELS[name][0], MODELS[name][1]
    row = {"model": name, "device": str(device), "batch": batch_size, "image_size": image_size}
    sides = [*SIDES, *COMPILED] if compiled else [*SIDES]
    context, steps, speeds = multiprocessing.get_context("spawn"), {}, {side: [] for side in sides}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Each side gets its own process, so that they share neither memory nor settings.
        processes = {side: stack.enter_context(ProcessPoolExecutor(1, context)) for side in sides}

        def ask(side: str, *task):
            started = side, name, batch_size, image_size, device, folder
            return processes[side].submit(_ask, started, *task).result()

        try:
            row["arrangement"] = ask("ours", "arrangement")
            for side in sides:
                ask(side, "train", 3)
                steps[side] = max(2, round(ROUND_SECONDS * 2 / ask(side, "train", 2)))
            for side in sides * ROUNDS:
                speeds[side].append(steps[side] * batch_size / ask(side, "train", steps[side]))
            for side in sides:
                row[f"{side}_images_per_second"] = statistics.median(speeds[side])
                row[f"{side}_range"] = [min(speeds[side]), max(speeds[side])]
                row[f"{side}_peak_memory_bytes"] = ask(side, "peak")
                row[f"{side}_input_images_per_second"] = 4 * steps[side] * batch_size / ask(side, "input", 4 * steps[side])
            row["layers"] = ask("ours", "layers", steps["ours"])
        except RuntimeError as error:  # such as a killed process, or a GPU out of memory
            raise UserError(f"The benchmark of {name} failed, most likely out of memory; try a smaller --batch.") from error
    for kind in ("", "input_"):
        row[f"{kind}ratio"] = row[f"ours_{kind}images_per_second"] / row[f"textbook_{kind}images_per_second"]
    macs = models.count_macs(models.inspect.network(name, 10), (1, 3, image_size, image_size))
    row["ours_gflops"] = 6 * macs * row["ours_images_per_second"] / 1e9  # the backward pass costs twice the forward pass
    return row


def _line(row: dict) -> str:
    speeds = [row[f"{side}_images_per_second"] for side in SIDES]
    memory = [row[f"{side}_peak_memory_bytes"] / 2**30 for side in SIDES]
    share = row["ours_images_per_second"] / row["ours_input_images_per_second"]
    layers = ", ".join(f"{kind} {part:.0%}" for kind, part in row["layers"].items())
    compiled = f"; compiled {row['compiled_images_per_second']:.1f}" if "compiled_images_per_second" in row else ""
    return (
        f"{row['model']:18} batch {row['batch']:3} at {row['image_size']:3}: {speeds[0]:.1f} and {speeds[1]:.1f} images/s, "
        f"{row['ratio']:.1f}×; input alone {row['input_ratio']:.1f}×, {share:.1%} of our step; {row['part_of_ceiling']:.2f} of "
        f"the ceiling; peak memory {memory[0]:.1f} and {memory[1]:.1f} GiB{compiled}; of our step, {layers}"
    )


def ceiling(device: torch.device, batch: int = 64) -> float:
    """The GFLOP/s of a dense 3×3 convolution of `batch` images, 256 channels of 32×32 pixels in and out, in training precision.

    A multiply–add counts as two operations; the median over a second.
    """
    keep_freed_memory_in_process()
    dtype = autocast_dtype(device) or torch.float32
    shapes = ((batch, 256, 32, 32), (256, 256, 3, 3))
    tensors = [torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last) for shape in shapes]
    times = []
    while len(times) < 4 or sum(times[1:]) < 1:  # the first one warms up
        times.append(_seconds(device, lambda: F.conv2d(*tensors, padding=1)))
    return 2 * batch * 32**2 * 9 * 256**2 / statistics.median(times[1:]) / 1e9


def hardware(device: torch.device) -> dict[str, str]:
    """Driver and clocks of a GPU, or name and clock of a CPU, if the system reports them."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        if device.type == "cuda":
            names = ("driver_version", "clocks.sm", "clocks.max.sm")
            gpu = torch.cuda.get_device_properties(device).uuid  # torch's index may differ from nvidia-smi's
            query = ["nvidia-smi", f"--id=GPU-{gpu}", f"--query-gpu={','.join(names)}"]
            answer = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True, check=True, timeout=10)
            return dict(zip(names, answer.stdout.strip().split(", "), strict=True))
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return dict(re.findall(r"^(model name|cpu MHz)\s*: (.*)", facts, re.MULTILINE)[:2])
    return {}


def run(names: list[str], device: str | None = None, batch_size: int | None = None, compiled: bool = False) -> dict:
    """Benchmark these models, or all: `{environment, ceiling, results}`, as in `results/bench/`; prints one line per model.

    `ceiling` is in GFLOP/s; a row's `part_of_ceiling` is its `ours_gflops` divided by the convolution's; `layers` are shares
    of our step. An unknown model or device, or a batch size below 1, is a UserError before anything is measured.
    """
    for name in names:
        require(name in MODELS, f"There is no benchmark of '{name}'; choose from {', '.join(MODELS)}.")
    require(batch_size is None or batch_size >= 1, f"The batch size is {batch_size}; choose at least 1.")
    device = choose_device(device)
    around = environment(device) | {"mixed_precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch.")}
    reached, rows, around = ceiling(device), [], around | hardware(device)
    print(f"{around['device']}, torch {around['torch']}, mixed precision {around['mixed_precision']}; textbook and ours:")
    print(f"dense 3×3 convolution: {reached:,.0f} GFLOP/s")
    for name in names or MODELS:
        row = compare(name, device, batch_size, compiled)
        row["part_of_ceiling"] = row["ours_gflops"] / reached
        rows.append(row)
        print(_line(row))
    return {"environment": around, "ceiling": {"dense 3×3 convolution": reached}, "results": rows}


def time_to(accuracy: float, names: list[str], data_dir: str | Path | None = None, device: str | None = None) -> dict:
    """Train one experiment with seed 0 up to this validation accuracy, a fraction: seconds, epochs, images, operations."""
    require(0 < accuracy <= 1, f"The accuracy after --to is {accuracy}; it is a fraction, such as 0.90.")
    require(len(names) == 1, f"--to takes one experiment, not {len(names)}; choose one from python -m helpers list.")
    experiment, device = experiments.find(names[0]), choose_device(device)
    recipe, around = experiments.recipe_for(experiment, "full"), environment(device) | hardware(device)
    dataset = experiments.load_data(experiment, "full", data_dir)
    model = make_model(experiment, recipe, len(dataset.classes), seed=0).to(device)
    macs = models.count_macs(model, (1, 3, recipe.image_size, recipe.image_size))
    fitted = training.fit(model, dataset.train, dataset.validation, recipe, target=accuracy)
    epochs, images = len(fitted.history), data.images_shown(dataset.train, recipe.augment)
    best = max(epoch["val_accuracy"] for epoch in fitted.history)  # `fitted.best` may be the last epoch
    row = {"experiment": experiment.name, "target": accuracy, "reached": best >= accuracy, "best": best, "epochs": epochs}
    row |= {"seconds": sum(epoch["seconds"] for epoch in fitted.history), "images": epochs * images}
    row["flops"] = sum(6 * macs * images * math.prod(passes(recipe, epoch)) for epoch in range(epochs))
    print(
        f"{experiment.name}: a validation accuracy of {accuracy:.2%} was {'' if row['reached'] else 'not '}reached in "
        f"{row['seconds']:.0f} s, {epochs} epochs, {row['images']:,} images, {row['flops']:.3g} operations; best {best:.2%}."
    )
    return {"environment": around, "results": [], "time_to": row}
