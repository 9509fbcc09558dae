"""The runs: `run` turns a row of the plan and a seed into a run record."""

import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from helpers import data, models, training
from helpers.experiments.plan import EXPERIMENTS, Experiment
from helpers.runtime import PROFILES, ROOT, UserError, choose_device, environment, seed_epoch
from helpers.training.recipe import Recipe


def find(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        UserError: there is none; the sentence lists those there are.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"There is no experiment '{name}'; choose one of {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def recipe_for(experiment: Experiment, profile: str) -> Recipe:
    """The experiment's recipe at a profile: `full` as declared, `quick` shortened, `smoke` two tiny epochs.

    Raises:
        UserError: the profile is unknown.
    """
    if profile not in PROFILES:
        raise UserError(f"There is no profile '{profile}'; choose one of {', '.join(PROFILES)}.")
    if profile == "smoke":
        size = max(16, experiment.recipe.image_size // 7)  # 32 pixels for photographs, 16 for CIFAR
        return replace(experiment.recipe, epochs=2, image_size=size, learning_rate=0.02, warmup_epochs=0)
    return replace(experiment.recipe, **experiment.quick) if profile == "quick" else experiment.recipe


def load_data(experiment: Experiment, profile: str, data_dir: str | Path | None = None) -> data.Dataset:
    """The experiment's data at a profile: generated sample data for `smoke`, else the real thing."""
    size = recipe_for(experiment, profile).image_size
    if profile == "smoke":
        return data.sample(experiment.dataset, image_size=size)
    return data.load(experiment.dataset, data_dir, image_size=size)


def load_data_or_sample(
    experiment: Experiment, profile: str, data_dir: str | Path | None = None
) -> tuple[data.Dataset, str]:
    """As `load_data`, but where the real data cannot be had: a sentence that says why, sample data, profile `smoke`."""
    try:
        return load_data(experiment, profile, data_dir), profile
    except UserError as error:
        print(f"{error}\nGoing on with generated sample data, profile 'smoke'.")
        return load_data(experiment, "smoke"), "smoke"


def run(
    name: str,
    seed: int = 0,
    profile: str = "full",
    *,
    epochs: int | None = None,
    data_dir: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    device: str | None = None,
    time_budget: float | None = None,
    patience: int | None = None,
    compiled: bool = False,
    resume: bool = True,
    mirror: Path | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Train and test one experiment; returns its run record and its predictions on the test split.

    The record's form is that of design section 5. The predictions hold `true`, `predicted` (N,) int16 and `confidence`
    (N,) float32, the probability of the predicted class, in the order of the test split. Beyond that form, `limits` and
    `arrangement` are those of `training.Fit`, and where there are more than five classes `test` has the `accuracy_at_5` too.

    Args:
        epochs: train for this many epochs instead of the recipe's.
        time_budget, patience: in place of the recipe's: seconds, and epochs without a better validation accuracy.
        compiled: train through `torch.compile`, on a GPU with CUDA graphs.

    Raises:
        UserError: any of the arguments, the data or the checkpoint is not usable; nothing is half written.
    """
    experiment = find(name)
    if seed < 0:
        raise UserError(f"The seed is {seed}; it must be 0 or greater.")
    recipe = recipe_for(experiment, profile)
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs, compiled=compiled or recipe.compiled)
    device = choose_device(device)
    around = environment(device)  # before the run: the commit whose code is running
    dataset = load_data(experiment, profile, data_dir)
    seed_epoch(seed)
    model = models.build(experiment.model, len(dataset.classes), pretrained=experiment.pretrained).to(device)
    macs = models.count_macs(model, (1, 3, recipe.image_size, recipe.image_size))  # now: merged groups would count more
    fitted = training.fit(
        model,
        dataset.train,
        dataset.validation,
        recipe,
        seed=seed,
        about={"experiment": name, "images": dataset.fingerprint},
        checkpoint=checkpoint_path(name, profile, seed, checkpoint_dir),
        resume=resume,
        mirror=mirror,
        time_budget=time_budget,
        patience=patience,
    )
    logits = training.predict(model, dataset.test, recipe)
    confidence, predicted = logits.softmax(1).max(1)
    loss, accuracy = training.score(logits, dataset.test.labels)
    predictions = {
        "true": dataset.test.labels.numpy().astype(np.int16),
        "predicted": predicted.numpy().astype(np.int16),
        "confidence": confidence.numpy(),
    }
    counts = confusion_matrix(predictions["true"], predictions["predicted"], labels=range(len(dataset.classes)))
    test = {"loss": loss, "accuracy": accuracy, "n": len(dataset.test), "confusion": counts.tolist()}
    if len(dataset.classes) > 5:  # of fewer, the label is always among the five highest scores
        test["accuracy_at_5"] = training.accuracy_at(5, logits, dataset.test.labels)
    history, shown = fitted.history, data.images_shown(dataset.train, recipe.augment)
    record = {
        "experiment": name,
        "report": experiment.report,
        "seed": seed,
        "profile": profile,
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "classes": dataset.classes,
            "num_classes": len(dataset.classes),
            "n_train": len(dataset.train),
            "n_val": len(dataset.validation),
            "n_test": len(dataset.test),
        },
        "model": {
            "name": experiment.model,
            "pretrained": experiment.pretrained,
            "params": models.count_parameters(model),
            "macs": macs,
        },
        "recipe": asdict(recipe),
        "history": history,
        "stopped_early": fitted.stopped,
        "limits": fitted.limits,
        "arrangement": asdict(fitted.arrangement),
        "test": test,
        "predictions": f"seed{seed}.predictions.npz",
        "best": fitted.best,
        "seconds": sum(row["seconds"] for row in history),
        "images_per_second": shown * len(history) / sum(row["train_seconds"] for row in history),
        "peak_memory_bytes": peak_memory(device),
        "environment": around,
    }
    return record, predictions


def checkpoint_path(name: str, profile: str, seed: int, folder: str | Path | None = None) -> Path:
    """Where a run's checkpoint lies: under the folder given, else under `data/checkpoints`, which git ignores."""
    return Path(folder or ROOT / "data" / "checkpoints").expanduser() / name / profile / f"seed{seed}.ckpt"


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: on a GPU by torch's allocator, on a CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
