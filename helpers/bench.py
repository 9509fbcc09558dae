"""How fast: a textbook training loop against ours, the same model, images and batch, turn by turn in one run."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from helpers import data, models, pieces, training
from helpers.experiments.plan import AMP_SGD, PIKACHU
from helpers.experiments.runner import peak_memory
from helpers.runtime import UserError, autocast_dtype, choose_device, environment

MODELS = {  # batch and image size of the comparison; the reports' own, but for the batches of photographs
    "resnext29_32x4d": (64, 32),
    "resnext29_under5m": (64, 32),
    "resnext50_32x4d": (8, 224),
    "resnet18": (8, 224),
}
IMAGES = {32: ("cifar10", 5120), 224: ("pikachu", 64)}  # CIFAR in memory, photographs as JPEG files of 500×375 pixels
PHASES = ("input", "forward", "backward", "step")
ROUNDS = 5
ROUND_SECONDS = 3
WORKERS = 2


class Files(Dataset):
    """The textbook's images: opened from a file, or made from an array of pixels, one by one when they are asked for."""

    def __init__(self, images: list, labels: list[int], transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        image = Image.open(image).convert("RGB") if isinstance(image, Path) else Image.fromarray(image)
        return self.transform(image), self.labels[index]


def textbook_loader(split: data.Split, batch_size: int, image_size: int, folder: Path) -> DataLoader:
    """PIL transforms in a DataLoader of two workers, as most tutorials have it."""
    pixels, labels = split.images.permute(0, 2, 3, 1).numpy(), split.labels.tolist()
    finish = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    if image_size == 32:
        images, change = list(pixels), [transforms.RandomCrop(32, padding=4)]
    else:
        images, change = [], [transforms.Resize(256), transforms.CenterCrop(image_size)]
        for number, photograph in enumerate(pixels):
            images.append(folder / f"{number}.jpg")
            Image.fromarray(photograph).resize((500, 375)).save(images[-1], quality=85)
    files = Files(images, labels, transforms.Compose(change + finish))
    # A loop in a process of its own would start its workers afresh, imports and all; the textbook's are forked where they can.
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    return DataLoader(files, batch_size, shuffle=True, num_workers=WORKERS, multiprocessing_context=how)


class Textbook:
    """Plain fp32 in torch's default memory layout, and the loss read after every step."""

    def __init__(self, model: nn.Module, split: data.Split, batch_size: int, image_size: int, device, folder: Path):
        self.model, self.device = model.to(device).train(), device
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.loader = textbook_loader(split, batch_size, image_size, folder)
        self.losses = []

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch."""
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(images), labels)

    def backward(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.step()
        self.losses.append(loss.item())

    def train(self, batches) -> None:
        """Steps, as the textbook writes them."""
        for images, labels in batches:
            loss = self.forward(images, labels)
            self.backward(loss)
            self.step(loss)


class Ours:
    """What `training.fit` does, a step at a time."""

    compiled = False

    def __init__(self, model: nn.Module, split: data.Split, batch_size: int, image_size: int, device, folder: Path):
        base = AMP_SGD if image_size == 32 else replace(PIKACHU, augment="flip")
        self.recipe = replace(base, batch_size=batch_size, learning_rate=0.01, compiled=self.compiled)
        self.arrangement = training.choose_arrangement(model.to(device), split, self.recipe)
        self.model, self.device = training.prepare(model, self.recipe, self.arrangement).train(), device
        self.learner, self.split = training.Learner(model, self.recipe, called=self.model), split.to(device)
        self.optimizer = self.learner.optimizer
        self.generator = torch.Generator().manual_seed(0)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch."""
        return training.training_batches(self.split, self.recipe, self.generator)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with training.autocast(self.device, self.recipe):
            return F.cross_entropy(self.model(images), labels)

    def backward(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.learner.scaler.scale(loss).backward()

    def step(self, loss: torch.Tensor) -> None:
        self.learner.scaler.step(self.optimizer)
        self.learner.scaler.update()

    def train(self, batches) -> None:
        """Steps, by the very function that trains."""
        training.train_epoch(self.learner, batches)


class Compiled(Ours):
    """The same through `torch.compile`."""

    compiled = True


SIDES = {"textbook": Textbook, "ours": Ours}


def _forever(loop: Textbook | Ours) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loop.batches()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _train(loop, stream, steps: int) -> float:
    """Seconds of so many steps."""
    start = time.perf_counter()
    loop.train(islice(stream, steps))
    _wait(loop.device)
    return time.perf_counter() - start


def _input(loop, stream, steps: int) -> float:
    """Seconds that so many batches take when nothing else is done."""
    start = time.perf_counter()
    for _ in islice(stream, steps):
        _wait(loop.device)
    return time.perf_counter() - start


def _phases(loop, stream, steps: int) -> dict[str, float]:
    """Seconds of each part of so many steps, the device waited for after each part."""
    seconds, value = dict.fromkeys(PHASES, 0.0), None
    for _ in range(steps):
        for phase in PHASES:
            start = time.perf_counter()
            if phase == "input":
                value = next(stream)
            elif phase == "forward":
                value = loop.forward(*value)
            else:
                getattr(loop, phase)(value)
            _wait(loop.device)
            seconds[phase] += time.perf_counter() - start
    return seconds


TASKS = {
    "train": _train,
    "input": _input,
    "phases": _phases,
    "peak": lambda loop, stream, steps: peak_memory(loop.device),
    "arrangement": lambda loop, stream, steps: asdict(loop.arrangement),
}


def _serve(side: type[Textbook | Ours], name: str, batch_size: int, image_size: int, device: torch.device, connection) -> None:
    """One side in a process of its own, so that neither its memory nor its settings are the other's."""
    torch.manual_seed(0)
    dataset, count = IMAGES[image_size]
    split = data.sample(dataset, image_size=image_size, counts=(count, 10, 10)).train
    with tempfile.TemporaryDirectory() as folder:
        loop = side(models.build(name, 10), split, batch_size, image_size, device, Path(folder))
        stream = _forever(loop)
        connection.send(None)
        while (task := connection.recv()) != "end":
            what, steps = task
            connection.send(TASKS[what](loop, stream, steps))


def compare(name: str, device: torch.device, batch_size: int | None = None, compiled: bool = False) -> dict:
    """Both loops on one model, turn by turn: images a second (median and range), peak memory, and where the time goes.

    Args:
        compiled: ours takes a third turn, through `torch.compile`.

    Raises:
        UserError: the model is not one of `MODELS`, or the batch size is below 1.
    """
    if name not in MODELS:
        raise UserError(f"There is no benchmark of '{name}'; choose from {', '.join(MODELS)}.")
    batch_size, image_size = batch_size or MODELS[name][0], MODELS[name][1]
    context, sides = multiprocessing.get_context("spawn"), {}
    loops = SIDES | ({"compiled": Compiled} if compiled else {})
    try:
        for side, loop in loops.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(loop, name, batch_size, image_size, device, there), daemon=False)
            process.start()
            there.close()
            sides[side] = (process, here)
            here.recv()

        def ask(side: str, what: str, steps: int = 0):
            sides[side][1].send((what, steps))
            return sides[side][1].recv()

        steps, speeds = {}, {side: [] for side in sides}
        for side in sides:
            ask(side, "train", 3)
            steps[side] = max(2, round(ROUND_SECONDS * 2 / ask(side, "train", 2)))
        for _ in range(ROUNDS):
            for side in sides:
                speeds[side].append(steps[side] * batch_size / ask(side, "train", steps[side]))
        row = {"model": name, "device": str(device), "batch": batch_size, "image_size": image_size}
        row["arrangement"] = ask("ours", "arrangement")
        for side in sides:
            row[f"{side}_images_per_second"] = statistics.median(speeds[side])
            row[f"{side}_range"] = [min(speeds[side]), max(speeds[side])]
            row[f"{side}_peak_memory_bytes"] = ask(side, "peak")
            row[f"{side}_phases"] = ask(side, "phases", steps[side])
            batches = 4 * steps[side]
            row[f"{side}_input_images_per_second"] = batches * batch_size / ask(side, "input", batches)
        row["ratio"] = row["ours_images_per_second"] / row["textbook_images_per_second"]
        row["input_ratio"] = row["ours_input_images_per_second"] / row["textbook_input_images_per_second"]
        return row
    except EOFError as error:
        raise UserError(f"The benchmark of {name} did not end: its process was stopped; try a smaller --batch.") from error
    finally:
        for process, connection in sides.values():
            if process.is_alive():
                try:
                    connection.send("end")
                except BrokenPipeError:
                    process.terminate()
                process.join(30)


def _line(row: dict) -> str:
    speeds, memory = ([row[f"{side}_{what}"] for side in SIDES] for what in ("images_per_second", "peak_memory_bytes"))
    share = row["ours_phases"]["input"] / sum(row["ours_phases"].values())
    compiled = f"; compiled {row['compiled_images_per_second']:.1f}" if "compiled_images_per_second" in row else ""
    return (
        f"{row['model']:18} batch {row['batch']:3} at {row['image_size']:3}: {speeds[0]:.1f} and {speeds[1]:.1f} images/s, "
        f"{row['ratio']:.1f}×; input alone {row['input_ratio']:.1f}×, {share:.1%} of our step; "
        f"peak memory {memory[0] / 2**30:.1f} and {memory[1] / 2**30:.1f} GiB{compiled}"
    )


def run(
    names: list[str] | None = None, device: str | None = None, batch_size: int | None = None, compiled: bool = False
) -> dict:
    """The whole benchmark: `{environment, results, pieces}`, as `results/bench/` keeps it; a line for each as it comes.

    Raises:
        UserError: a model or the device is unknown, or the batch size is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; choose at least 1.")
    device = choose_device(device)
    around = environment(device) | {"mixed_precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch.")}
    print(f"{around['device']}, torch {around['torch']}, mixed precision {around['mixed_precision']}; textbook and ours:")
    rows = []
    for name in names or MODELS:
        row = compare(name, device, batch_size, compiled)
        rows.append(row)
        print(_line(row))
    parts = pieces.measure(device)
    for part in parts:
        print(f"{part['piece']:24} {part['variant']:48} {part['milliseconds']:9.2f} ms")
    return {"environment": around, "results": rows, "pieces": parts}
