"""How fast: a textbook training loop against ours, turn by turn in one run; and how long to an accuracy."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from helpers import data, experiments, models, pieces, training
from helpers.experiments.queue import passes
from helpers.experiments.recipes import AMP_SGD, PIKACHU
from helpers.experiments.runner import make_model, peak_memory
from helpers.runtime import UserError, autocast_dtype, choose_device, environment, keep_freed_memory_in_process

MODELS = {  # batch and image size of the comparison; the reports' own, but for the batches of photographs
    "resnext29_32x4d": (64, 32),
    "resnext29_under5m": (64, 32),
    "resnext50_32x4d": (8, 224),
    "resnet18": (8, 224),
}
IMAGES = {32: ("cifar10", 5120), 224: ("pikachu", 64)}  # CIFAR in memory, photographs as JPEG files of 500×375 pixels
ROUNDS = 5
ROUND_SECONDS = 3
WORKERS = 2


class Files(Dataset):
    """The textbook's images: opened from a file, or made from an array of pixels, one by one when they are asked for."""

    def __init__(self, images: list, labels: list[int], transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        image = Image.open(image).convert("RGB") if isinstance(image, Path) else Image.fromarray(image)
        return self.transform(image), self.labels[index]


def textbook_loader(split: data.Split, batch_size: int, image_size: int, folder: Path) -> DataLoader:
    """PIL transforms in a DataLoader of two workers, as most tutorials have it; photographs lie as files in the folder."""
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
        self.model, self.device, self.losses = model.to(device).train(), device, []
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.loader = textbook_loader(split, batch_size, image_size, folder)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)

    def train(self, batches) -> None:
        """Steps, as the textbook writes them."""
        for images, labels in batches:
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())


class Ours:
    """What `training.fit` does."""

    compiled = False

    def __init__(self, model: nn.Module, split: data.Split, batch_size: int, image_size: int, device, folder: Path):
        base = AMP_SGD if image_size == 32 else replace(PIKACHU, augment="flip")
        recipe = replace(base, batch_size=batch_size, learning_rate=0.01, compiled=self.compiled)
        if device.type == "cpu":
            keep_freed_memory_in_process()
        self.arrangement = training.choose_arrangement(model.to(device), split, recipe)
        self.learner = training.Learner(model, recipe, called=training.prepare(model, recipe, self.arrangement))
        self.model, self.device, self.optimizer = model, device, self.learner.optimizer
        self.split, self.generator = split.to(device), torch.Generator().manual_seed(0)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        return training.training_batches(self.split, self.learner.recipe, self.generator)

    def train(self, batches) -> None:
        """Steps, by the very function that trains."""
        training.train_epoch(self.learner, batches)


class Compiled(Ours):
    """The same through `torch.compile`."""

    compiled = True


SIDES = {"textbook": Textbook, "ours": Ours}


def _seconds(loop, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if loop.device.type == "cuda":
        torch.cuda.synchronize(loop.device)
    return time.perf_counter() - start


TASKS = {
    "train": lambda loop, stream, steps: _seconds(loop, lambda: loop.train(islice(stream, steps))),
    "input": lambda loop, stream, steps: _seconds(loop, lambda: list(map(len, islice(stream, steps)))),
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
        stream = (batch for _ in iter(int, 1) for batch in loop.batches())
        connection.send(None)
        while (task := connection.recv()) != "end":
            what, steps = task
            connection.send(TASKS[what](loop, stream, steps))


@contextmanager
def _processes(loops: dict[str, type], name: str, *arguments) -> Iterator[Callable]:
    """Both sides, started; gives a function that asks one of them for a task's result, and ends them afterwards."""
    context, sides = multiprocessing.get_context("spawn"), {}

    def ask(side: str, what: str, steps: int = 0):
        sides[side][1].send((what, steps))
        return sides[side][1].recv()

    try:
        for side, loop in loops.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(loop, name, *arguments, there), daemon=False)
            process.start()
            there.close()
            sides[side] = (process, here)
            here.recv()
        yield ask
    except (EOFError, BrokenPipeError) as error:
        raise UserError(f"The benchmark of {name} did not end: its process was stopped; try a smaller --batch.") from error
    finally:
        for process, connection in sides.values():
            with suppress(OSError):
                connection.send("end")
            process.join(30)
            process.kill()


def compare(name: str, device: torch.device, batch_size: int | None = None, compiled: bool = False) -> dict:
    """Both loops on one model, turn by turn: images a second (median and range), peak memory, GFLOP/s of ours.

    Args:
        compiled: ours takes a third turn, through `torch.compile`.
    """
    batch_size, image_size = batch_size or MODELS[name][0], MODELS[name][1]
    row = {"model": name, "device": str(device), "batch": batch_size, "image_size": image_size}
    loops = SIDES | ({"compiled": Compiled} if compiled else {})
    with _processes(loops, name, batch_size, image_size, device) as ask:
        row["arrangement"] = ask("ours", "arrangement")
        steps, speeds = {}, {side: [] for side in loops}
        for side in loops:
            ask(side, "train", 3)
            steps[side] = max(2, round(ROUND_SECONDS * 2 / ask(side, "train", 2)))
        for _ in range(ROUNDS):
            for side in loops:
                speeds[side].append(steps[side] * batch_size / ask(side, "train", steps[side]))
        for side in loops:
            row[f"{side}_images_per_second"] = statistics.median(speeds[side])
            row[f"{side}_range"] = [min(speeds[side]), max(speeds[side])]
            row[f"{side}_peak_memory_bytes"] = ask(side, "peak")
            batches = 4 * steps[side]
            row[f"{side}_input_images_per_second"] = batches * batch_size / ask(side, "input", batches)
    row["ratio"] = row["ours_images_per_second"] / row["textbook_images_per_second"]
    row["input_ratio"] = row["ours_input_images_per_second"] / row["textbook_input_images_per_second"]
    macs = models.count_macs(models.inspect.network(name, 10), (1, 3, image_size, image_size))
    row["ours_gflops"] = 6 * macs * row["ours_images_per_second"] / 1e9  # the backward pass computes twice the forward's
    return row


def _line(row: dict) -> str:
    speeds, memory = ([row[f"{side}_{what}"] for side in SIDES] for what in ("images_per_second", "peak_memory_bytes"))
    share = row["ours_images_per_second"] / row["ours_input_images_per_second"]
    compiled = f"; compiled {row['compiled_images_per_second']:.1f}" if "compiled_images_per_second" in row else ""
    return (
        f"{row['model']:18} batch {row['batch']:3} at {row['image_size']:3}: {speeds[0]:.1f} and {speeds[1]:.1f} images/s, "
        f"{row['ratio']:.1f}×; input alone {row['input_ratio']:.1f}×, {share:.1%} of our step; "
        f"{row['part_of_ceiling']:.2f} of the ceiling; "
        f"peak memory {memory[0] / 2**30:.1f} and {memory[1] / 2**30:.1f} GiB{compiled}"
    )


def run(
    names: list[str] | None = None, device: str | None = None, batch_size: int | None = None, compiled: bool = False
) -> dict:
    """The whole benchmark: `{environment, ceiling, results, pieces}`, as `results/bench/` keeps it; a line for each.

    `ceiling` is in GFLOP/s; a row's `part_of_ceiling` is its `ours_gflops` by that of the convolution.

    Raises:
        UserError: a model or the device is unknown, or the batch size is below 1. Nothing is measured then.
    """
    for name in names or ():
        if name not in MODELS:
            raise UserError(f"There is no benchmark of '{name}'; choose from {', '.join(MODELS)}.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; choose at least 1.")
    if unknown := sorted({*(names or ())} - {*MODELS}):
        raise UserError(f"There is no benchmark of '{unknown[0]}'; choose from {', '.join(MODELS)}.")
    device = choose_device(device)
    around = environment(device) | {"mixed_precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch.")}
    ceiling = pieces.ceiling(device)
    around |= pieces.hardware(device)
    print(f"{around['device']}, torch {around['torch']}, mixed precision {around['mixed_precision']}; textbook and ours:")
    print("; ".join(f"{name}: {speed:,.0f} GFLOP/s" for name, speed in ceiling.items()))
    rows = []
    for name in names or MODELS:
        row = compare(name, device, batch_size, compiled)
        row["part_of_ceiling"] = row["ours_gflops"] / ceiling["dense 3×3 convolution"]
        rows.append(row)
        print(_line(row))
    parts = pieces.grouped_forms(device)
    for part in parts:
        print(f"{part['piece']:24} {part['variant']:48} {part['milliseconds']:9.2f} ms")
    return {"environment": around, "ceiling": ceiling, "results": rows, "pieces": parts}


def time_to(accuracy: float, names: list[str], data_dir: str | Path | None = None, device: str | None = None) -> dict:
    """Train an experiment, seed 0, until its validation accuracy is first this high: seconds, epochs, images, operations.

    Raises:
        UserError: the accuracy is no fraction, or not exactly one experiment is named.
    """
    if not 0 < accuracy <= 1:
        raise UserError(f"The accuracy after --to is {accuracy}; it is a fraction, such as 0.90.")
    if len(names) != 1:
        raise UserError(f"--to takes one experiment, and {len(names)} are named; choose one of those that list shows.")
    experiment, device = experiments.find(names[0]), choose_device(device)
    recipe, around = experiments.recipe_for(experiment, "full"), environment(device) | pieces.hardware(device)
    dataset = experiments.load_data(experiment, "full", data_dir)
    model = make_model(experiment, recipe, len(dataset.classes), seed=0).to(device)
    macs = models.count_macs(model, (1, 3, recipe.image_size, recipe.image_size))
    fitted = training.fit(model, dataset.train, dataset.validation, recipe, target=accuracy)
    epochs, images, best = len(fitted.history), data.images_shown(dataset.train, recipe.augment), fitted.best["val_accuracy"]
    row = {"experiment": experiment.name, "target": accuracy, "reached": best >= accuracy, "best": best, "epochs": epochs}
    row |= {"seconds": sum(epoch["seconds"] for epoch in fitted.history), "images": epochs * images}
    row["flops"] = sum(6 * macs * images * passes(recipe, epoch) for epoch in range(epochs))
    print(
        f"{experiment.name}: a validation accuracy of {accuracy:.2%} was {'' if row['reached'] else 'not '}reached in "
        f"{row['seconds']:.0f} s, {epochs} epochs, {row['images']:,} images, {row['flops']:.3g} operations; best {best:.2%}."
    )
    return {"environment": around, "results": [], "time_to": row}
