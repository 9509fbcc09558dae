"""The runs: `run` turns a row of the plan and a seed into a run record."""

import math
import re
import resource
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from helpers import data, models, training
from helpers.experiments.lock import lock
from helpers.experiments.plan import EXPERIMENTS, Experiment
from helpers.runtime import PROFILES, ROOT, UserError, choose_device, environment, require, require_writable, seed_epoch
from helpers.training import Recipe, loop, processes
from helpers.training.batchnorm import synchronise


def find(name: str) -> Experiment:
    """The experiment of this name; if there is none, a `UserError` that suggests similar names."""
    if name not in EXPERIMENTS:
        alike = ", ".join(get_close_matches(name, EXPERIMENTS, cutoff=0.0))
        raise UserError(f"There is no experiment '{name}'; choose one such as {alike}; python -m helpers list shows all.")
    return EXPERIMENTS[name]


def short_form(experiment: Experiment) -> Experiment | None:
    """The `…_fast` row of an experiment's network, whose recipe the `quick` profile uses; None if there is none."""
    bare = re.sub("_(ours|torchvision|strong|long)$", "", experiment.name)
    rows = [EXPERIMENTS.get(f"{name}_fast") for name in (experiment.name, bare)]
    short = next((row for row in rows if row and row.report == experiment.report), None)
    return experiment if experiment.name.endswith("_fast") else short


def recipe_for(experiment: Experiment, profile: str) -> Recipe:
    """The experiment's recipe at a profile: `full` as declared, `quick` for ten minutes on a T4, `smoke` two tiny epochs.

    `quick` uses the recipe of the network's `…_fast` row (`short_form`), or else the row's own with fewer epochs and any
    time budget cut to ten minutes. Either way cuDNN picks its fastest algorithms: two GPU runs differ in their last bits.
    """
    require(profile in PROFILES, f"There is no profile '{profile}'; choose one of {', '.join(PROFILES)}.")
    recipe = experiment.recipe
    if profile == "full":
        return recipe
    if profile == "smoke":
        size = max(16, recipe.image_size // 7)  # 32 pixels for photographs, 16 for CIFAR
        sizes = tuple((share, min(pixels, size)) for share, pixels in recipe.sizes)
        return replace(recipe, epochs=2, image_size=size, sizes=sizes, learning_rate=0.02, warmup_epochs=0)
    if short := short_form(experiment):
        return replace(short.recipe, deterministic=False)
    epochs = min(experiment.quick, recipe.epochs)
    share = epochs / recipe.epochs
    changes = {"epochs": epochs, "warmup_epochs": math.ceil(recipe.warmup_epochs * share), "deterministic": False}
    if length := {"step": "step_epochs", "periodic_epochs": "period"}.get(recipe.schedule):
        changes[length] = math.ceil(getattr(recipe, length) * share)
    return replace(recipe, time_budget=recipe.time_budget and min(recipe.time_budget, 600.0), **changes)


def load_data(experiment: Experiment, profile: str, data_dir: str | Path | None = None) -> data.Dataset:
    """The experiment's data at a profile: generated sample data for `smoke`, else the real data."""
    recipe = recipe_for(experiment, profile)
    if profile == "smoke":
        return data.sample(experiment.dataset, image_size=recipe.image_size)
    return data.load(experiment.dataset, data_dir, image_size=recipe.image_size, resize=recipe.resize)


def load_data_or_sample(experiment: Experiment, profile: str, data_dir: str | Path | None = None) -> tuple[data.Dataset, str]:
    """Like `load_data`, but if the real data is unavailable, print why and return sample data and the profile `smoke`."""
    try:
        return load_data(experiment, profile, data_dir), profile
    except UserError as error:
        print(f"{error}\nContinuing with generated sample data, profile 'smoke'; to try again, rerun from the Choices cell.")
        return load_data(experiment, "smoke"), "smoke"


@dataclass(frozen=True)
class Options(loop.Options):
    """The options of a run beyond what its row declares: those of `training.fit`, and these."""

    epochs: int | None = None  # instead of the recipe's
    data_dir: str | Path | None = None
    checkpoint_dir: str | Path | None = None
    device: str | torch.device | None = None
    compiled: bool = False  # train through `torch.compile`; on a GPU, with CUDA graphs
    sync_batchnorm: bool = False  # with several processes, BatchNorm sees the whole batch, not just each process's share


class Unfinished(UserError):
    """A run was stopped between two epochs and can be resumed from its checkpoint."""


def run(name: str, seed: int = 0, profile: str = "full", **options) -> tuple[dict, dict[str, np.ndarray]]:
    """Train and test one experiment; returns its run record and its predictions on the test split.

    The predictions hold `true`, `predicted` (N,) int16 and `confidence` (N,) float32, the probability of the predicted
    class, in the order of the test split. The `options` are the fields of `Options`. A UserError if one of them, the data or
    the checkpoint is unusable or in use; `Unfinished` if the deadline, or the epoch to stop at, comes before the run's end.
    """
    options, experiment = Options(**options), find(name)
    require(seed >= 0, f"The seed is {seed}; it must be 0 or greater.")
    recipe = recipe_for(experiment, profile)
    epochs = recipe.epochs if options.epochs is None else options.epochs
    recipe = replace(recipe, epochs=epochs, compiled=options.compiled or recipe.compiled)
    options = replace(options, device=processes.join(options.device))
    with processes.first_on_each_machine():
        dataset = load_data(experiment, profile, options.data_dir)
    return run_row(replace(experiment, recipe=recipe), dataset, seed, profile, options)


def run_row(row: Experiment, dataset: data.Dataset, seed: int, profile: str, options: Options) -> tuple[dict, dict]:
    """Like `run`, for a row that need not be in the plan: its recipe is used as it is, and its data is already loaded."""
    recipe, device = row.recipe, choose_device(options.device)
    around = environment(device)  # read before the run, to get the commit whose code is running
    model = make_model(row, recipe, len(dataset.classes), seed).to(device)
    macs = models.count_macs(model, (1, 3, recipe.image_size, recipe.image_size))
    if options.sync_batchnorm:
        synchronise(model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    checkpoint = checkpoint_path(row.name, profile, seed, options.checkpoint_dir)
    require_writable(checkpoint.parent, "--checkpoint-dir")
    settings = {setting.name: getattr(options, setting.name) for setting in fields(loop.Options)}
    synchronised = options.sync_batchnorm or None  # as in older checkpoints, which do not have it
    about = {"experiment": row.name, "images": dataset.fingerprint, "sync_batchnorm": synchronised}
    settings |= {"seed": seed, "checkpoint": checkpoint, "about": about}
    with lock(checkpoint) if processes.rank() == 0 else nullcontext():
        fitted = training.fit(model, dataset.train, dataset.validation, recipe, **settings)
    history = fitted.history
    if fitted.stopped and (fitted.stopped == training.OUT_OF_TIME or len(history) >= (options.until or math.inf)):
        raise Unfinished(f"Stopped after epoch {len(history)} of {recipe.epochs}; rerun to continue.")
    test, predictions = measure(model, dataset.test, recipe, mirrored=row.is_ours)
    if not math.isfinite(test["loss"]):  # such as an fp16 overflow; a record of it would be refused
        raise training.Diverged("The loss is not finite on the test images; no record is written: lower the learning rate.")
    images = {name: getattr(dataset, name) for name in ("name", "source", "fingerprint", "classes")}
    images |= {"num_classes": len(dataset.classes), "n_train": len(dataset.train)}
    images |= {"n_val": len(dataset.validation), "n_test": len(dataset.test)}
    network = {"name": row.model, "pretrained": row.pretrained, "params": models.count_parameters(model), "macs": macs}
    record = {"experiment": row.name, "report": row.report, "seed": seed, "profile": profile, "dataset": images}
    record |= {"model": network, "recipe": asdict(recipe), "history": history, "stopped_early": fitted.stopped}
    record |= {"processes": processes.count(), "sync_batchnorm": options.sync_batchnorm}
    record |= {"limits": fitted.limits, "arrangement": {"channels_last": fitted.channels_last}, "best": fitted.best}
    shown = data.images_shown(dataset.train, recipe.augment) * len(history)
    record |= {"seconds": sum(epoch["seconds"] for epoch in history)}
    record |= {"images_per_second": shown / sum(epoch["train_seconds"] for epoch in history)}
    record |= {"test": test, "predictions": f"seed{seed}.predictions.npz"}
    return record | {"peak_memory_bytes": peak_memory(device), "environment": around}, predictions


def make_model(experiment: Experiment, recipe: Recipe, num_classes: int, seed: int) -> nn.Module:
    """The experiment's network with the initial weights of a seed."""
    seed_epoch(seed)
    model = models.build(experiment.model, num_classes, pretrained=experiment.pretrained, initialisation=recipe.initialisation)
    if recipe.zero_last_batchnorm:
        models.zero_last_batchnorm(model)
    return model


def measure(model: nn.Module, split: data.Split, recipe: Recipe, mirrored: bool) -> tuple[dict, dict[str, np.ndarray]]:
    """A record's `test` entry and the predictions behind it, on a split with at least one image of every class."""
    logits = training.predict(model, split, recipe)
    confidence, predicted = logits.softmax(1).max(1)
    loss, accuracy = training.score(logits, split.labels)
    true, predicted = split.labels.short().numpy(), predicted.short().numpy()
    counts = confusion_matrix(true, predicted, labels=range(logits.shape[1]))
    test = {"loss": loss, "accuracy": accuracy, "n": len(split), "confusion": counts.tolist()}
    if logits.shape[1] > 5:  # with five classes or fewer, the label is always among the five highest scores
        test["accuracy_at_5"] = (logits.topk(5, dim=1).indices == split.labels[:, None]).any(1).double().mean().item()
    if mirrored:
        test["accuracy_mirrored"] = training.score(training.predict(model, split, recipe, mirrored=True), split.labels)[1]
    return test, {"true": true, "predicted": predicted, "confidence": confidence.numpy()}


def checkpoint_path(name: str, profile: str, seed: int, folder: str | Path | None = None) -> Path:
    """The path of a run's checkpoint: in the given folder, or by default in `data/checkpoints`, which git ignores."""
    return Path(folder or ROOT / "data" / "checkpoints").expanduser() / name / profile / f"seed{seed}.ckpt"


def peak_memory(device: torch.device) -> int:
    """The peak memory so far, in bytes: on a GPU, of torch's allocator in this run; on a CPU, of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
