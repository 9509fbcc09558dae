"""Run records: what they hold, where they are stored, and how missing ones are obtained."""

import itertools
import json
import math
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from helpers import experiments, runtime
from helpers.runtime import PROFILES, ROOT, UserError, require
from helpers.training import Diverged

RESULTS, OWN = ROOT / "results", ROOT / "data" / "results"
NAMED = 5  # missing experiments that a notebook names one by one


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    """One folder for all smoke runs of this process, deleted when it exits."""
    return tempfile.TemporaryDirectory(prefix="resnext-smoke-", ignore_cleanup_errors=True)


def folder_for(profile: str, fingerprint: str = "", name: str = "") -> Path:
    """The results folder of a profile: the repository's, a temporary one for `smoke`, or a separate one for other images.

    Images count as other if the repository has records of their data set's name, and none has their fingerprint.
    """
    if profile == "smoke":
        return Path(_temporary_folder().name)
    known = {record["dataset"]["fingerprint"] for record in load_all() if record["dataset"]["name"] == name}
    return OWN / fingerprint if known and fingerprint not in known else RESULTS


def checkpoint_folder(profile: str, results_dir: Path) -> Path | None:
    """Where `obtain_all` keeps checkpoints: next to the records for smoke runs and other images, else None, the default."""
    return results_dir / "checkpoints" if profile == "smoke" or results_dir.parent == OWN else None


def record_path(name: str, profile: str, seed: int, results_dir: str | Path | None = None) -> Path:
    """The path of a run's record: `<results_dir>/runs/<experiment>/<profile>/seed<k>.json`."""
    return Path(results_dir or RESULTS).expanduser() / "runs" / name / profile / f"seed{seed}.json"


def save(record: dict, predictions: dict[str, np.ndarray], results_dir: str | Path | None = None) -> Path:
    """Write a record and its predictions, both or neither: the record is written last and names them. Returns its path.

    Without `results_dir`, `folder_for` chooses one: other images are kept apart. A UserError if it cannot be written, or would
    replace a run on other images, or a complete run by one that stopped early.
    """
    images = record["dataset"]
    results_dir = results_dir or folder_for(record["profile"], images["fingerprint"], images["name"])
    path = record_path(record["experiment"], record["profile"], record["seed"], results_dir)
    old = load(path) if path.exists() else None
    if old:
        where = f"{path.name} of {record['experiment']}"
        if old["dataset"]["fingerprint"] != images["fingerprint"]:
            mend = "remove it and repeat the run, which resumes from the checkpoint, or choose another --results-dir"
            raise UserError(f"{where} is a run on other images; it was not replaced: {mend}.")
        if record["stopped_early"] and not old["stopped_early"]:
            raise UserError(f"{where} is complete, and this run stopped early; it was not replaced: use another --results-dir.")
    first, second = f"{path.stem}.predictions.npz", f"{path.stem}.predictions.2.npz"
    record = record | {"predictions": second if old and old["predictions"] == first else first}
    with runtime.writing(f"The record {path.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        runtime.save_arrays(path.with_name(record["predictions"]), **predictions)
        runtime.save_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for name in {first, second, f"{path.stem}.landscape.npz"} - {record["predictions"]}:  # of a run that this one replaces
        path.with_name(name).unlink(missing_ok=True)
    return path


# The fields that a record must have, as far as tables and figures read them, with the types of their values.
FORM = {
    "": {"experiment": str, "report": str, "seed": int, "profile": str, "predictions": str, "history": list}
    | {"seconds": float, "stopped_early": str | None},
    "dataset": {"name": str, "source": str, "fingerprint": str, "classes": list, "n_train": int, "n_val": int, "n_test": int},
    "model": {"name": str, "params": int, "macs": int},
    "test": {"loss": float, "accuracy": float, "n": int, "confusion": list},
    "best": {"epoch": int, "val_accuracy": float, "val_loss": float},
    "recipe": {"epochs": int},
    "environment": {"device": str},
}
EPOCH = {"epoch": int} | dict.fromkeys("train_loss train_accuracy val_loss val_accuracy seconds train_seconds".split(), float)


def _fits(part: dict, form: dict) -> bool:
    """Whether a part of a record has the fields and types of a form, and finite numbers."""
    return all(
        isinstance(part[name], float | int) and math.isfinite(part[name]) if kind is float else isinstance(part[name], kind)
        for name, kind in form.items()
    )


def load(path: Path) -> dict:
    """Load a run record; a `UserError` if it is not one, or if its confusion matrix contradicts its accuracy or test size."""
    no_record = UserError(f"{path.name} under {path.parent.name} is not a run record; remove it and run it again.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        parts = [(record[name] if name else record, form) for name, form in FORM.items()]
        parts += [(epoch, EPOCH) for epoch in record["history"]]
        formed = all(_fits(part, form) for part, form in parts)
        named = re.fullmatch(r"\w+", record["report"]) and record["profile"] in PROFILES and record["seed"] >= 0
        named = named and all(re.fullmatch(r"\w[\w.,=-]*", name) for name in record["experiment"].split("/"))
        named = named and re.fullmatch(r"seed\d+\.predictions(\.2)?\.npz", record["predictions"])
        named = named and path.match(f"{record['experiment']}/{record['profile']}/seed{record['seed']}.json")  # not a copy
        counts, test = np.array(record["test"]["confusion"]), record["test"]
        agrees = counts.sum() == test["n"] and abs(np.trace(counts) / test["n"] - test["accuracy"]) < 1e-9
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise no_record from error
    if not (formed and named):
        raise no_record
    where = f"{path.name} of {record['experiment']}"
    require(agrees, f"{where} contradicts itself: its confusion matrix gives another result; remove it and run it again.")
    record["environment"]["device"] = record["environment"]["device"].replace(" 1 threads", " 1 thread")  # as older ones say
    return record


def load_all(results_dir: str | Path | None = None, profile: str | None = None) -> list[dict]:
    """A folder's records, of one profile or all, sorted by experiment, profile and seed; a UserError if one is damaged."""
    folder = Path(results_dir or RESULTS).expanduser() / "runs"
    paths = sorted(folder.glob("*/*/*/seed*.json"), key=lambda path: (path.parent, len(path.name), path.name))
    records = [load(path) for path in paths if re.fullmatch(r"seed\d+\.json", path.name)]  # not `seed0 (1).json`
    return [record for record in records if profile in (None, record["profile"])]


def predictions(record: dict, results_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """The predictions stored next to a record: `true` and `predicted` (N,), and `confidence` (N,).

    A UserError if the file is missing, damaged or from another run: it does not give the record's confusion matrix.
    """
    path = record_path(record["experiment"], record["profile"], record["seed"], results_dir).with_name(record["predictions"])
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("true", "predicted", "confidence")}
        counts = np.zeros_like(record["test"]["confusion"])
        np.add.at(counts, (arrays["true"], arrays["predicted"]), 1)
        same = (counts == record["test"]["confusion"]).all() and len(arrays["confidence"]) == record["test"]["n"]
    except Exception as error:  # a damaged .npz file raises errors of almost any kind
        raise UserError(f"{path.name} of {record['experiment']} is missing or damaged; run it again.") from error
    require(same, f"{path.name} of {record['experiment']} does not match its record; run it again.")
    return arrays


def obtain_all(
    names: Iterable[str],
    seeds: Iterable[int],
    profile: str,
    results_dir: Path,
    *,
    device: torch.device,
    drive: Path | None = None,
    minutes: float = 0,
    **arguments,
) -> list[dict]:
    """The records of several experiments at several seeds; missing ones are trained, or listed with the minutes they need.

    `full` runs are trained only on a GPU, since they take hours elsewhere, and only if the plan wants them. A run cut short
    by a smaller time budget resumes from its checkpoint; one whose loss is no longer finite is reported and left out.

    Checkpoints are copied to `drive`, a folder from `mount_drive`. `minutes` is each run's budget; 0 means the recipe's own.
    """
    from helpers.experiments.queue import Queue  # here, because queue imports this module

    checkpoint_dir = arguments.setdefault("checkpoint_dir", checkpoint_folder(profile, results_dir))
    arguments |= {"device": device, "time_budget": minutes * 60 or None}
    own = results_dir.name if results_dir.parent == OWN else ""
    trains, queue = profile != "full" or device.type == "cuda", Queue(results_dir, checkpoint_dir, profile)
    found, missing = {}, {}
    for name, seed in dict.fromkeys(itertools.product(names, seeds)):
        path = record_path(name, profile, seed, results_dir)
        checkpoint = experiments.checkpoint_path(name, profile, seed, checkpoint_dir)
        found[name, seed] = load(path) if path.exists() else None
        if not found[name, seed] or (trains and checkpoint.exists() and is_cut(found[name, seed], minutes * 60)):
            if profile != "full" or seed < experiments.find(name).seeds:
                missing.setdefault(name, []).append(seed)
    todo = [(name, seed) for name, lacking in missing.items() for seed in lacking] if trains else []
    if todo and profile == "full":
        expected = sum(min(queue.minutes(experiments.find(name), seed, device), minutes or math.inf) for name, seed in todo)
        print(f"Training the missing runs now, for about {expected:,.0f} minutes; interrupt to stop.")
    for name, seed in todo:
        mirror = drive / "checkpoints" / own / name / profile if drive else None
        try:
            path = save(*experiments.run(name, seed, profile, mirror=mirror, **arguments), results_dir)
            found[name, seed] = load(path)
        except Diverged as error:  # go on with the other runs
            print(f"{name}, seed {seed}: {error}")
    obtained = [record for record in found.values() if record]
    count = sum(map(len, missing.values()))
    lacking = f"; {count} not run yet, with the minutes each takes here:" if missing and not trains else "."
    print(f"{len(obtained)} {profile} run{'s' * (len(obtained) != 1)} recorded{lacking}")
    if not trains:
        given = {
            "--data-dir": arguments.get("data_dir"),
            "--results-dir": None if results_dir == RESULTS else results_dir,
            "--checkpoint-dir": checkpoint_dir,
        }
        _name_missing(missing, queue, device, "".join(f" {option} '{value}'" for option, value in given.items() if value))
    return obtained


def is_cut(record: dict, seconds: float | None = None) -> bool:
    """Whether a run was stopped by a shorter time budget than `seconds`; 0 or None means the recipe's own budget, if any."""
    wanted = seconds or record["recipe"].get("time_budget") or math.inf
    return "time budget" in (record["stopped_early"] or "") and record["limits"]["time_budget"] < wanted


def _name_missing(missing: dict[str, list[int]], queue, device: torch.device, more: str) -> None:
    """Print a line for each of the first missing experiments: its minutes here, and the command that runs it."""
    for name, seeds in itertools.islice(missing.items(), NAMED):
        expected = queue.minutes(experiments.find(name), seeds[0], device)
        print(f"{expected:,.0f} min: python -m helpers run {name} --seed {seeds[0]}{more}", end="")
        print(*(f" (and {seed})" for seed in seeds[1:]), sep="")
    if len(missing) > NAMED:
        print("And more; python -m helpers list shows all of them.")
