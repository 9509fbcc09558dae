"""The exhaustive search: every trial of a grid, chosen on validation; and successive halving, the cheaper way."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
from sklearn.model_selection import ParameterGrid

from helpers import data, models, runtime, training
from helpers.runtime import ROOT, UserError, choose_device, environment, require_writable, seed_epoch
from helpers.training import checkpoints
from helpers.training.recipe import Recipe

GRID = {"learning_rate": (0.1, 0.05, 0.005), "weight_decay": (5e-4, 1e-4), "batch_size": (128, 256)}  # report `slim`'s


@dataclass(frozen=True)
class Search:
    """What is searched: a model on a data set, and a recipe of which the grid varies some settings.

    Attributes:
        folder: where each trial's record lies, `<trial>.json`. Another search needs another folder.
        checkpoint_dir: where a trial that is not finished lies; by default under `data/checkpoints`, which git ignores.
    """

    model: str
    dataset: data.Dataset
    base: Recipe
    folder: Path
    grid: Mapping[str, Iterable] = field(default_factory=lambda: GRID)
    seed: int = 0
    device: str | None = None
    checkpoint_dir: Path | None = None

    @property
    def trials(self) -> dict[str, Recipe]:
        """The recipe of each trial by its name, such as `batch_size=128,learning_rate=0.1,weight_decay=0.0005`."""
        points = ParameterGrid({name: list(values) for name, values in self.grid.items()})
        return {",".join(f"{key}={point[key]}" for key in sorted(point)): replace(self.base, **point) for point in points}


def advance(search: Search, trial: str, until: int | None = None) -> dict:
    """Train a trial up to the epoch `until` (the recipe's last by default), if that was not done; returns its record.

    A trial goes on where it was stopped or killed, and ends as one that never was: its schedule is that of the whole run.
    The record is written when the epoch is reached, whole or not at all, and may hold later epochs. A loss that is not
    finite ends the trial, not the search: the record's `diverged` says where.

    Raises:
        UserError: the record or the checkpoint belongs to another search, or cannot be written.
    """
    recipe = search.trials[trial]
    until = min(until or recipe.epochs, recipe.epochs)
    path = search.folder / f"{trial}.json"
    record = load(search, trial)
    if record and (len(record["history"]) >= until or record["diverged"]):
        return record
    require_writable(search.folder, "Search.folder")
    checkpoint = (search.checkpoint_dir or ROOT / "data" / "checkpoints" / "search" / search.folder.name) / f"{trial}.ckpt"
    device = choose_device(search.device)
    around = environment(device)
    seed_epoch(search.seed)
    model = models.build(search.model, len(search.dataset.classes)).to(device)
    print(f"Trial {trial}:")
    diverged = None
    try:
        history = training.fit(
            model,
            search.dataset.train,
            search.dataset.validation,
            recipe,
            seed=search.seed,
            about={"images": search.dataset.fingerprint, "model": search.model},
            checkpoint=checkpoint,
            until=until,
        ).history
    except training.Diverged as error:
        diverged = str(error)
        history = (checkpoints.load_checkpoint(checkpoint) or {"history": []})["history"]
    record = {**_identity(search, trial), "diverged": diverged, "history": history, "environment": around}
    try:
        runtime.save_text(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"The trial {path.name} could not be written ({error.strerror}); free some space.") from error
    if diverged or len(history) == recipe.epochs:
        for file in (checkpoint, checkpoints.previous(checkpoint)):
            file.unlink(missing_ok=True)
    return load(search, trial)


def load(search: Search, trial: str) -> dict | None:
    """A trial's record, or None where there is none.

    Raises:
        UserError: the file is not a record of this search.
    """
    path = search.folder / f"{trial}.json"
    if not path.exists():
        return None
    wanted = json.loads(json.dumps(_identity(search, trial)))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = {name: record[name] for name in wanted} | {"recipe": training.completed(record["recipe"])}
        whole = isinstance(record["history"], list) and "diverged" in record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} is not a trial's record; remove it and search again.") from error
    if found != wanted or not whole:
        raise UserError(f"{path.name} belongs to another search; choose another folder, or remove it.")
    return record


def _identity(search: Search, trial: str) -> dict:
    dataset = {"name": search.dataset.name, "source": search.dataset.source, "fingerprint": search.dataset.fingerprint}
    recipe = asdict(search.trials[trial])
    return {"trial": trial, "model": search.model, "dataset": dataset, "seed": search.seed, "recipe": recipe}


def exhaustive(search: Search, *, minutes: float | None = None, clock: Callable[[], float] = time.monotonic) -> list[dict]:
    """Every trial of the grid, trained to its end; returns the records of those that are.

    Stop it as you like: what is finished stays, and the trial at hand goes on from its last whole epoch.

    Args:
        minutes: no trial starts once this call has taken so long; what is left is printed.
    """
    if minutes is not None and minutes <= 0:
        raise UserError(f"The budget is {minutes} minutes; it must be greater than 0.")
    start, records, left = clock(), [], []
    for trial, recipe in search.trials.items():
        record = load(search, trial)
        finished = record and (record["diverged"] or len(record["history"]) == recipe.epochs)
        if not finished and minutes is not None and clock() - start >= 60 * minutes:
            left.append(trial)
        else:
            records.append(advance(search, trial))
    if left:
        print(f"The budget of {minutes:g} minutes is spent; search again to train the {len(left)} left: {', '.join(left)}.")
    return records


def best_epoch(record: dict, until: int | None = None) -> dict | None:
    """The row of a trial's best epoch by validation accuracy up to an epoch (its last by default), the first of equals.

    None where the trial did not get so far, because it diverged.
    """
    if len(record["history"]) < (until or record["recipe"]["epochs"]):
        return None
    return max(record["history"][:until], key=lambda row: row["val_accuracy"])


def ranked(records: list[dict], until: int | None = None) -> list[dict]:
    """The records, the best first, by the validation accuracy of their best epoch up to an epoch, then by its loss."""

    def rank(record: dict) -> tuple[float, float]:
        best = best_epoch(record, until)
        return (-best["val_accuracy"], best["val_loss"]) if best else (1.0, 0.0)

    return sorted(records, key=rank)


def table(records: list[dict]) -> pd.DataFrame:
    """A row a trial, the best first; a trial that diverged has no accuracy."""
    rows = []
    for record in ranked(records):
        recipe, best = record["recipe"], best_epoch(record) or {}
        rows.append(
            {
                "learning rate": recipe["learning_rate"],
                "weight decay": recipe["weight_decay"],
                "batch size": recipe["batch_size"],
                "epochs": len(record["history"]),
                "best epoch": best.get("epoch"),
                "val accuracy": best.get("val_accuracy"),
                "val loss": best.get("val_loss"),
                "minutes": sum(row["seconds"] for row in record["history"]) / 60,
            }
        )
    return pd.DataFrame(rows)


def rungs(trials: int, epochs: int, factor: int = 2) -> list[tuple[int, int]]:
    """How many trials are trained up to which epoch, rung by rung: each rung keeps one in `factor`, for `factor` times as long.

    Source: Jamieson and Talwalkar 2016, algorithm 1, as Li et al. 2018 write it, rounded down and up.
    """
    if factor < 2:
        raise UserError(f"The factor of successive halving is {factor}; choose 2 or more.")
    last = 0
    while factor ** (last + 1) <= min(trials, epochs):
        last += 1
    return [(trials // factor**rung, -(-epochs // factor ** (last - rung))) for rung in range(last + 1)]


def halving(search: Search, factor: int = 2) -> dict:
    """Successive halving over the same trials; again after a kill, it goes on.

    No epoch is trained twice: a survivor goes on from its checkpoint, on the schedule of the whole run. Over a finished
    exhaustive search it trains nothing, and tells what it would have chosen.

    Returns:
        `chosen`, the last survivor's name; `epochs`, how many it takes in all; `rungs`, each with its `epochs` and its
        `trials`, the best first.
    """
    alive, told, spent, before = list(search.trials), [], 0, 0
    for count, epochs in rungs(len(alive), search.base.epochs, factor):
        alive = alive[:count]
        spent, before = spent + count * (epochs - before), epochs
        alive = [record["trial"] for record in ranked([advance(search, trial, epochs) for trial in alive], epochs)]
        told.append({"epochs": epochs, "trials": alive})
    return {"factor": factor, "chosen": alive[0], "epochs": spent, "rungs": told}


def comparison(records: list[dict], halvings: list[dict]) -> pd.DataFrame:
    """The exhaustive search beside successive halvings over its trials: what each chose, and for how many epochs.

    `val accuracy` is that of the chosen trial, and `rank` its place among all, both at the end of the whole run.

    Args:
        records: of the exhaustive search, finished.
    """
    order = ranked(records)
    places = {record["trial"]: place for place, record in enumerate(order, 1)}
    whole = sum(record["recipe"]["epochs"] for record in records)
    chosen = [("exhaustive", order[0]["trial"], whole)]
    chosen += [(f"halving by {run['factor']}", run["chosen"], run["epochs"]) for run in halvings]
    return pd.DataFrame(
        {
            "search": search,
            "chosen": trial,
            "val accuracy": (best_epoch(order[places[trial] - 1]) or {}).get("val_accuracy"),
            "rank": places[trial],
            "epochs": epochs,
            "share of epochs": epochs / whole,
        }
        for search, trial, epochs in chosen
    )
