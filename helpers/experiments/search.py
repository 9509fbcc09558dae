"""Hyperparameter search: every trial of a grid, chosen on validation, and successive halving as the cheaper way."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sklearn.model_selection import ParameterGrid

from helpers import data, training
from helpers.experiments import records, runner
from helpers.experiments.plan import Experiment
from helpers.runtime import UserError, require
from helpers.training import Recipe, checkpoints

GRID = {"learning_rate": (0.1, 0.05, 0.005), "weight_decay": (5e-4, 1e-4), "batch_size": (128, 256)}  # report `slim`'s


@dataclass(frozen=True)
class Search:
    """What to search. A trial is a run like any other, with its record in `runs/search_<model>/<trial>`."""

    model: str
    dataset: data.Dataset
    base: Recipe
    folder: Path  # of the results; each data set and each base recipe needs its own
    grid: dict[str, Sequence] = field(default_factory=lambda: GRID)
    seed: int = 0

    @property
    def trials(self) -> dict[str, Recipe]:
        """The recipe of each trial, keyed by its name, such as `batch_size=128,learning_rate=0.1,weight_decay=0.0005`."""
        points = ParameterGrid(self.grid)
        return {",".join(f"{key}={point[key]}" for key in sorted(point)): replace(self.base, **point) for point in points}

    def run_of(self, trial: str) -> tuple[Experiment, str, int]:
        """A trial as a row of the plan, its profile and its seed."""
        name = f"search_{self.model.replace('/', '_')}/{trial}"
        row = Experiment(name, "search", self.trials[trial], self.model, self.dataset.name)
        return row, "smoke" if self.dataset.is_sample else "full", self.seed


def advance(search: Search, trial: str, until: int | None = None) -> dict:
    """Train a trial up to epoch `until` (by default the recipe's last), if not done already; returns its record.

    A trial that was stopped or killed ends like one that never was. If it does not reach its end, because of `until` or
    because its loss is no longer finite, the record has only `experiment`, `recipe` and `history`, and is not written. A
    UserError if the record or the checkpoint belongs to another search, or cannot be written.
    """
    if record := finished(search, trial):
        return record
    row, profile, seed = search.run_of(trial)
    print(f"Trial {trial}:")
    folder = records.checkpoint_folder(profile, search.folder)
    checkpoint = runner.checkpoint_path(row.name, profile, seed, folder)
    options = runner.Options(checkpoint_dir=folder, until=until)
    try:
        records.save(*runner.run_row(row, search.dataset, seed, profile, options), search.folder)
    except (runner.Unfinished, training.Diverged):
        state = checkpoints.load_checkpoint(checkpoint) or {"history": []}
        return {"experiment": row.name, "recipe": asdict(row.recipe), "history": state["history"]}
    for file in (checkpoint, checkpoints.previous(checkpoint)):
        file.unlink(missing_ok=True)
    return finished(search, trial)


def finished(search: Search, trial: str) -> dict | None:
    """The record of a finished trial, or None; a `UserError` if the file is not a record, or belongs to another search."""
    row, profile, seed = search.run_of(trial)
    path = records.record_path(row.name, profile, seed, search.folder)
    if not path.exists():
        return None
    record = records.load(path)
    kept = json.dumps(training.completed(record["recipe"]), sort_keys=True, default=str)  # JSON turns tuples into lists
    wanted = json.dumps(asdict(row.recipe), sort_keys=True)
    if kept != wanted or record["dataset"]["fingerprint"] != search.dataset.fingerprint:
        raise UserError(f"The record of {trial} belongs to another search; choose another folder, or remove it.")
    return record


def exhaustive(search: Search) -> list[dict]:
    """Train every trial of the grid to its end; returns their records. If it is stopped, the next call resumes."""
    return [advance(search, trial) for trial in search.trials]


def trial_of(record: dict) -> str:
    """The name of a record's trial."""
    return record["experiment"].partition("/")[2]


def best_epoch(record: dict, until: int | None = None) -> dict | None:
    """The first epoch with the best validation accuracy up to `until` (default: the last); None if it diverged before."""
    if "test" not in record and len(record["history"]) < (until or record["recipe"]["epochs"]):
        return None
    return max(record["history"][:until], key=lambda row: row["val_accuracy"])


def ranked(found: list[dict], until: int | None = None) -> list[dict]:
    """The records, best first, by the validation accuracy of their best epoch up to `until`, then by its loss."""

    def rank(record: dict) -> tuple[float, float]:
        best = best_epoch(record, until)
        return (-best["val_accuracy"], best["val_loss"]) if best else (1.0, 0.0)

    return sorted(found, key=rank)


def rungs(trials: int, epochs: int, factor: int = 2) -> list[tuple[int, int]]:
    """(trials, last epoch) of each rung: a rung keeps one trial in `factor` and trains it for `factor` times as long.

    Source: Jamieson and Talwalkar 2016, algorithm 1, in the form of Li et al. 2018; trials are rounded down, epochs up.
    """
    require(factor >= 2, f"The factor of successive halving is {factor}; choose 2 or more.")
    last = 0
    while factor ** (last + 1) <= min(trials, epochs):
        last += 1
    return [(trials // factor**rung, -(-epochs // factor ** (last - rung))) for rung in range(last + 1)]


def halving(search: Search, factor: int = 2) -> dict:
    """Successive halving over the same trials, on the learning-rate schedule of the whole run; it resumes after a kill.

    No epoch is trained twice. After a finished exhaustive search it trains nothing and returns what it would have chosen.

    Returns `factor`; `chosen`, the last survivor; `epochs`, how many it takes in all; `rungs`, with `epochs` and `trials`.
    """
    alive, done, spent, before = list(search.trials), [], 0, 0
    for count, epochs in rungs(len(alive), search.base.epochs, factor):
        alive = alive[:count]
        spent, before = spent + count * (epochs - before), epochs
        alive = [trial_of(record) for record in ranked([advance(search, trial, epochs) for trial in alive], epochs)]
        done.append({"epochs": epochs, "trials": alive})
    return {"factor": factor, "chosen": alive[0], "epochs": spent, "rungs": done}
