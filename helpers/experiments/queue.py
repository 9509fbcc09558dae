"""The queue: planned runs that have no record, how long they would take here, and the loop that runs them."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from helpers import data, models
from helpers.data.pools import listed
from helpers.experiments import recipes, records, runner
from helpers.experiments.lock import Taken, lock
from helpers.experiments.plan import EXPERIMENTS, Experiment
from helpers.runtime import UserError, require
from helpers.training import Learner, Recipe, checkpoints, prepare, train_epoch
from helpers.training.recipe import pixels_at

# The numbers of training and validation images.
SIZES = {"pikachu": (774, 258), "cifar10": (45_000, 5_000), "cifar100": (45_000, 5_000)}
SIZES |= dict.fromkeys(("cifar10_5k", "cifar10_tenth"), (4_500, 500))
MEASURED_SECONDS = 0.2  # at least, for each network and batch size


@dataclass(frozen=True)
class Queue:
    """A selection of runs, and the folders of their records and checkpoints; a UserError if the plan has no such runs."""

    results_dir: str | Path | None = None
    checkpoint_dir: str | Path | None = None
    profile: str = "full"
    report: str | None = None
    dataset: str | None = None

    def __post_init__(self):
        for name in ("report", "dataset"):
            chosen, known = getattr(self, name), sorted({getattr(row, name) for row in EXPERIMENTS.values()})
            require(chosen in (None, *known), f"There is no {name} '{chosen}'; choose one of {', '.join(known)}.")
        require(self.rows, f"There is no experiment of report '{self.report}' on '{self.dataset}'; leave out one of the two.")
        runner.recipe_for(self.rows[0], self.profile)  # refuses an unknown profile
        require(self.profile != "smoke" or self.results_dir, "Smoke runs are recorded only in a --results-dir; name one.")

    @property
    def rows(self) -> list[Experiment]:
        """The selected rows of the plan, in its order."""
        rows = EXPERIMENTS.values()
        return [row for row in rows if self.report in (None, row.report) and self.dataset in (None, row.dataset)]

    def record(self, row: Experiment, seed: int) -> Path:
        return records.record_path(row.name, self.profile, seed, self.results_dir)

    def missing(self) -> list[tuple[Experiment, int]]:
        """The (row, seed) of every planned run that has no record."""
        return [(row, seed) for row in self.rows for seed in range(row.seeds) if not self.record(row, seed).exists()]

    def table(self, device: torch.device) -> Iterator[dict]:
        """One row per experiment: its settings, the recorded seeds, and the minutes each missing one would take."""
        for row in self.rows:
            have = [seed for seed in range(row.seeds) if self.record(row, seed).exists()]
            lack = {seed: self.minutes(row, seed, device) for seed in range(row.seeds) if seed not in have}
            about = {name: getattr(row, name) for name in ("report", "dataset", "model", "seeds")}
            yield {"experiment": row.name, **about, "epochs": row.recipe.epochs, "have": have, "minutes": lack}

    def minutes(self, row: Experiment, seed: int, device: torch.device) -> float:
        """The minutes that the rest of a run would take on a device, from its network's pace, which is measured once."""
        recipe = runner.recipe_for(row, self.profile)
        checkpoint = runner.checkpoint_path(row.name, self.profile, seed, self.checkpoint_dir)
        history = []
        with redirect_stdout(sys.stderr):  # --json is on stdout
            with suppress(UserError):  # an unusable checkpoint is no progress
                history = (checkpoints.load_checkpoint(checkpoint) or {"history": []})["history"]
            per_image, per_step = pace(device, row.model, recipe.image_size)
        train, validation = SIZES[row.dataset]
        shown, seconds = data.images_shown(range(train), recipe.augment), 0.0
        for epoch in range(len(history), recipe.epochs):
            gradients, share = passes(recipe, epoch)
            seconds += gradients * (share * shown * per_image + -(-shown // recipe.batch_size) * per_step)
            seconds += validation * per_image / 3  # the forward pass alone
        if recipe.time_budget is not None:
            seconds = min(seconds, max(0, recipe.time_budget - sum(epoch["seconds"] for epoch in history)))
        return seconds / 60


def lines(table: Iterable[dict]) -> Iterator[str]:
    """A `Queue.table` as text: one line per experiment, as soon as its row is ready."""
    yield f"{'experiment':48} {'report':8} {'dataset':13} {'model':28} epochs  full runs"
    for row in table:
        have = ", ".join(map(str, row["have"]))
        most = "" if EXPERIMENTS[row["experiment"]].recipe.patience is None else "at most "  # it may stop early
        need = ", ".join(f"{seed} ({most}{minutes:,.0f} min)" for seed, minutes in row["minutes"].items())
        seeds = [f"{verb} seed {which}" for verb, which in (("have", have), ("need", need)) if which]
        columns = f"{row['experiment']:48} {row['report']:8} {row['dataset']:13} {row['model']:28} {row['epochs']:6}"
        yield f"{columns}  {'; '.join(seeds)}"


def passes(recipe: Recipe, epoch: int) -> tuple[float, float]:
    """The gradients per step in an epoch (counted from 0), and the pixels of its images as a fraction of the full size's."""
    share = (epoch + 0.5) / recipe.epochs
    perturbed = recipe.perturbation is not None and share >= recipe.perturbation_start
    gradients = 1 + recipe.inner_steps / recipe.perturbation_every if perturbed else 1
    return gradients, (pixels_at(recipe, share) / recipe.image_size) ** 2


@cache
def pace(device: torch.device, model: str, pixels: int) -> tuple[float, float]:
    """A network's training time on a device, in seconds: per image, and per step regardless of its batch size.

    Both are measured, from steps with a small and a larger batch. A single rate of multiply–adds would not do: on one core
    with bf16, a network with a few narrow groups reaches a fifth of the rate of a wide one.
    """
    paces = []
    for channels_last in (True, False) if device.type == "cuda" else (True,):  # of which a run takes the faster
        with suppress(UserError):  # cuDNN may have no engine for one of the two
            paces.append(_pace(device, model, pixels, channels_last))
    require(paces, f"{model} cannot be trained on this device, not even on one image; choose another with --device.")
    return min(paces)


def _pace(device: torch.device, model: str, pixels: int, channels_last: bool) -> tuple[float, float]:
    batches = (64, 256) if device.type == "cuda" and pixels == 32 else (2, 8) if pixels > 32 else (4, 16)
    network = models.build(model, 10).to(device)
    learner, seconds = Learner(network, recipes.STRONG, called=prepare(network, recipes.STRONG, channels_last)), []
    for batch in batches:
        images = torch.rand(batch, 3, pixels, pixels).to(device, memory_format=torch.channels_last)
        labels, times = torch.zeros(batch, dtype=torch.int64, device=device), [time.perf_counter()]
        while len(times) < 5 or times[-1] - times[0] < MEASURED_SECONDS:
            train_epoch(learner, [(images, labels)])  # a batch that does not fit in memory is processed in parts
            times.append(time.perf_counter())
        seconds.append(min(end - start for start, end in pairwise(times)))  # the first steps wait for new memory
    per_image = max((seconds[1] - seconds[0]) / (batches[1] - batches[0]), 0.1 * seconds[1] / batches[1])
    return per_image, max(0.0, seconds[0] - batches[0] * per_image)


def run_missing(queue: Queue, minutes: float | None = None, **options) -> None:
    """Run what is missing, in the plan's order, until all of it is done or the time is up.

    Stopped runs resume from their checkpoints. Runs locked by another program are skipped; failed runs are skipped too and
    reported at the end. The time limit takes effect between epochs. The `options` are fields of `runner.Options`.
    A UserError if `minutes` is not greater than 0; or, at the end, if some runs failed.
    """
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError(f"--minutes is {minutes:g}; it must be greater than 0.")
    deadline = None if minutes is None else time.perf_counter() + 60 * minutes
    options |= {"checkpoint_dir": queue.checkpoint_dir, "deadline": deadline}
    failed, todo = [], queue.missing()
    print(f"{len(todo)} runs are missing.")
    for row, seed in todo:
        if deadline is not None and time.perf_counter() >= deadline:
            break
        path, label = queue.record(row, seed), f"{row.name}, seed {seed}"
        try:
            with lock(path):
                if path.exists():  # another program has finished it in the meantime
                    continue
                print(f"{label}:")
                written = records.save(*runner.run(row.name, seed, queue.profile, **options), queue.results_dir)
                if written != path:
                    print(f"{label} was a run on other images: its record is {written}, and it stays missing here.")
        except runner.Unfinished as stopped:
            print(stopped)
        except UserError as error:
            print(f"{label}: {error}")
            if not isinstance(error, Taken):
                failed.append(label)
    left = [f"{row.name}, seed {seed}" for row, seed in queue.missing()]
    print("\n".join([f"{len(left)} runs are left:", *left]) if left else "Nothing is missing.")
    require(not failed, f"{len(failed)} runs failed: {listed(failed)}; see the reasons above, then run it again.")
