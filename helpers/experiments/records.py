"""What came out: run records, where they lie, and how one is obtained."""

import atexit
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from helpers import experiments, runtime
from helpers.runtime import ROOT, UserError

RESULTS = ROOT / "results"


@cache
def _temporary_folder() -> Path:
    """One folder for all smoke runs of this process; it goes with the process, for its checkpoints fill a disk in time."""
    folder = Path(tempfile.mkdtemp(prefix="smoke-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def folder_for(profile: str, fingerprint: str | None = None, name: str | None = None) -> Path:
    """The results folder of a profile: the repository's, a temporary one for `smoke`, and `data/results` for other images.

    Args:
        fingerprint, name: those of the data set at hand. Where the repository's records of that name are of other images,
            as when somebody puts their own photographs in the place of ours, records must not mix.
    """
    if profile == "smoke":
        return _temporary_folder()
    known = {record["dataset"]["fingerprint"] for record in load_all() if record["dataset"]["name"] == name}
    return RESULTS if fingerprint is None or not known or fingerprint in known else ROOT / "data" / "results"


def checkpoint_folder(profile: str, results_dir: str | Path) -> Path | None:
    """Where `obtain` leaves checkpoints: a smoke run's beside its record, as none is resumed from an older program; None: the
    usual place.
    """
    return Path(results_dir) / "checkpoints" if profile == "smoke" else None


def record_path(name: str, profile: str, seed: int, results_dir: str | Path | None = None) -> Path:
    """Where the record of a run lies: `R/runs/<experiment>/<profile>/seed<k>.json`."""
    return Path(results_dir or RESULTS).expanduser() / "runs" / name / profile / f"seed{seed}.json"


def save(record: dict, predictions: dict[str, np.ndarray], results_dir: str | Path | None = None) -> Path:
    """Write a record and its predictions, each whole or not at all, the record last; returns the record's path.

    Raises:
        UserError: the folder cannot be written, or it holds the record of a run on other images, or of a whole run while
            this one stopped early.
    """
    path = record_path(record["experiment"], record["profile"], record["seed"], results_dir)
    if path.exists():
        there, where = load(path), f"{path.name} of {record['experiment']}"
        if there["dataset"]["fingerprint"] != record["dataset"]["fingerprint"]:
            raise UserError(f"{where} is a run on other images; it was not replaced, choose another --results-dir.")
        if record["stopped_early"] and not there["stopped_early"]:
            raise UserError(f"{where} is a whole run and this one stopped early; it was not replaced.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        runtime.save_arrays(path.with_name(record["predictions"]), **predictions)
        path.with_name(f"{path.stem}.landscape.npz").unlink(missing_ok=True)  # of the weights of the run that this one replaces
        runtime.save_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"The record {path.name} could not be written ({error.strerror}); choose another --results-dir."
        ) from error
    return path


def load(path: Path) -> dict:
    """One run record, checked against itself.

    Raises:
        UserError: the file is not a run record, or its confusion matrix does not give its own accuracy and test size.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, test = record["experiment"], record["test"]
        counts = np.array(test["confusion"])
        whole = counts.sum() == test["n"] and abs(np.trace(counts) / test["n"] - test["accuracy"]) < 1e-9
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path.name} under {path.parent.name} is not a run record; remove it and run it again.") from error
    if not whole:
        raise UserError(f"{path.name} of {name} contradicts itself: its confusion matrix gives another accuracy.")
    return record


def load_all(results_dir: str | Path | None = None, profile: str | None = None) -> list[dict]:
    """Every run record under a results folder, of one profile or of all, by experiment, profile and seed."""
    folder = Path(results_dir or RESULTS).expanduser() / "runs"
    records = [load(path) for path in sorted(folder.glob("*/*/*/seed*.json"))]
    return [record for record in records if profile in (None, record["profile"])]


def of_the_reports(records: Iterable[dict]) -> list[dict]:
    """Those of the four reports, without the short ones that compare the fast path with the plain one."""
    return [record for record in records if record["report"] != "speed"]


def predictions(record: dict, results_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """The predictions that lie beside a record: `true` and `predicted` (N,), and `confidence` (N,)."""
    path = record_path(record["experiment"], record["profile"], record["seed"], results_dir)
    with np.load(path.with_name(record["predictions"]), allow_pickle=False) as arrays:
        return dict(arrays)


def obtain(
    name: str,
    seed: int,
    profile: str,
    results_dir: str | Path | None = None,
    *,
    train: bool = True,
    retrain: bool = False,
    **arguments,
) -> dict | None:
    """The record of a run: loaded if it is there, else trained now and saved; None if it is not there and `train` is False.

    Args:
        results_dir: where the record lies or goes; `folder_for(profile)` by default.
        retrain: train even so; the record that is there is replaced when the new run has ended, and not before.
        arguments: passed on to `experiments.run`.
    """
    results_dir = results_dir or folder_for(profile)
    arguments.setdefault("checkpoint_dir", checkpoint_folder(profile, results_dir))
    path = record_path(name, profile, seed, results_dir)
    if path.exists() and not retrain:
        print(f"{name}, seed {seed}: loaded the record of a {profile} run.")
        return load(path)
    if not train:
        print(f"{name}, seed {seed}: not run yet; python -m helpers run {name} --seed {seed} --profile {profile}")
        return None
    save(*experiments.run(name, seed, profile, resume=not retrain, **arguments), results_dir)
    return load(path)


def obtain_all(
    names: Iterable[str],
    seeds: Iterable[int],
    profile: str,
    results_dir: str | Path | None = None,
    *,
    device: torch.device,
    drive: Path | None = None,
    train: bool | None = None,
    **arguments,
) -> list[dict]:
    """The records of several experiments at several seeds, as `obtain` gets them, without those that are not there.

    Args:
        drive: folder that the checkpoints are copied to.
        train: whether what is missing is trained, or only named. None: a `full` run is trained only where there is a GPU, as
            it takes hours elsewhere; any other always.
    """
    if train is None:
        train = profile != "full" or device.type == "cuda"
    found = [
        obtain(
            name,
            seed,
            profile,
            results_dir,
            train=train,
            mirror=drive / "checkpoints" / name / profile if drive else None,
            **arguments,
        )
        for name, seed in itertools.product(names, seeds)
    ]
    return [record for record in found if record is not None]
