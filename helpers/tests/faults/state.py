"""Damaged state: checkpoints, records, predictions and models that are cut, altered, foreign or old; and wrong numbers."""

import copy
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from helpers import demo, experiments, training
from helpers.experiments import records
from helpers.runtime import UserError
from helpers.tests.faults.child import Child, Effort, command, complaint
from helpers.tests.faults.writing import EXPERIMENT, Cases, outcome, run_in
from helpers.training.checkpoints import load_checkpoint, previous, save_checkpoint

JUNK = (None, -1, 1e400, "x", [], {}, True, {"a": {"b": []}}, "../../../evil", 10**400)


def damages(content: bytes, effort: Effort, flips: int = 100) -> Iterator[tuple[str, bytes]]:
    """A file cut at every percent, and with single bits flipped."""
    for percent in effort.some(list(range(100)), least=10):
        yield f"cut at {percent} %", content[: len(content) * percent // 100]
    for _ in range(max(10, round(flips * effort.share))):
        place, bit = effort.random.randrange(len(content)), effort.random.randrange(8)
        yield f"bit {bit} of byte {place} flipped", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def refusal(read: Callable[[], object], allowed: Callable[[object], bool]) -> str | None:
    """What is wrong with reading damaged state: it must give what is allowed, or one sentence."""
    try:
        found = read()
    except UserError as error:
        return None if str(error).endswith(".") and "\n" not in str(error) else f"not a sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if allowed(found) else "damage was taken for what was written"


class Code:
    """A pickle that would write a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def sealed(state: object) -> bytes:
    """A checkpoint file whose checksum holds, whatever is in it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest().encode() + buffer.getvalue()


def bomb() -> bytes:
    """A small zip file of a gigabyte of zeros, under its checksum."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("archive/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(256):
            entry.write(bytes(2**22))
    return hashlib.sha256(buffer.getvalue()).hexdigest().encode() + buffer.getvalue()


def damaged_checkpoints(effort: Effort, whole: Path) -> Cases:
    """Every damage, beside a whole checkpoint of the epoch before and without one; then foreign, old and hostile ones."""
    folder = effort.fresh()
    path = folder / "seed0.ckpt"
    for epoch in (1, 2):
        save_checkpoint({"epoch": epoch, "weights": torch.arange(1000.0)}, path)
    content, before = path.read_bytes(), previous(path).read_bytes()
    for name, damaged in damages(content, effort):
        path.write_bytes(damaged)
        previous(path).write_bytes(before)
        wrong = refusal(lambda: load_checkpoint(path)["epoch"], lambda epoch: epoch == 1)
        previous(path).unlink()
        yield f"checkpoint {name}", wrong or refusal(lambda: load_checkpoint(path), lambda state: False)
    for name, foreign in effort.some(foreign_checkpoints(whole, folder / "marker"), least=2):
        for beside in (False, True):
            yield f"checkpoint {name}{', one beside it' * beside}", _gone_on_from(foreign, beside, effort, whole)
    yield "no code of a checkpoint was run", "its code was run" if (folder / "marker").exists() else None


def _gone_on_from(content: bytes | None, beside: bool, effort: Effort, whole: Path) -> str | None:
    """The complaint about a run that finds such a checkpoint (None: a folder), with or without a good one beside it."""
    folder = effort.fresh()
    shutil.copytree(whole / "checkpoints", folder / "checkpoints")
    (path,) = (folder / "checkpoints").rglob("seed0.ckpt")
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    if not beside:
        previous(path).unlink()
    wrong = complaint(ended := Child(run_in(folder), memory=2**30).wait())
    if not wrong and ended.status == 0 and outcome(folder) != outcome(whole):
        wrong = "it ends otherwise"
    shutil.rmtree(folder)
    return wrong


def foreign_checkpoints(whole: Path, marker: Path) -> list[tuple[str, bytes | None]]:
    """Checkpoints that are whole and do not fit: (name, content), None for a folder."""
    (path,) = (whole / "checkpoints").rglob("seed0.ckpt")
    state = load_checkpoint(path)
    cases = [("is a folder", None), ("is empty", b""), ("is text", b"hello"), ("is a bomb", bomb())]
    cases.append(("is code", hashlib.sha256(code := pickle.dumps(Code(marker))).hexdigest().encode() + code))
    cases += [(f"without {key}", sealed({name: value for name, value in state.items() if name != key})) for key in state]
    cases += [(f"with {key} of another kind", sealed({**state, key: 7})) for key in state]
    cases += [("is a list", sealed([1, 2])), ("is a number", sealed(1)), ("is a module's code", sealed(Code(marker)))]
    weights = {name: value[:1] for name, value in state["model"].items() if value.ndim}
    cases += [("of another network", sealed({**state, "model": weights}))]
    old = {name: value for name, value in state["identity"].items() if name in ("seed", "epochs", "batch_size")}
    return [*cases, ("of an older program", sealed({**state, "identity": old}))]


def damaged_records(effort: Effort, whole: Path) -> Cases:
    """Records and predictions cut, altered, or with entries missing or of another kind: a sentence, or what was written."""
    folder = effort.fresh()
    shutil.copytree(whole / "runs", folder / "runs")
    (path,) = folder.rglob("seed0.json")
    content, record = path.read_bytes(), records.load(path)
    for name, damaged in damages(content, effort):
        path.write_bytes(damaged)
        yield f"record {name}", refusal(lambda: records.load_all(folder), lambda found: True)
    path.write_bytes(content)
    beside = path.with_name(record["predictions"])
    arrays, good = records.predictions(record, folder), beside.read_bytes()
    for name, damaged in [*damages(good, effort), ("is empty", b""), ("is text", b"hello")]:
        beside.write_bytes(damaged)
        same = refusal(
            lambda: records.predictions(record, folder),
            lambda found: all((found[key] == arrays[key]).all() for key in arrays),
        )
        yield f"predictions {name}", same
    beside.unlink()
    yield "predictions are missing", refusal(lambda: records.predictions(record, folder), lambda found: False)
    beside.write_bytes(good)
    yield from _altered_records(path, record, effort)
    yield "nothing was written outside the folder", "evil" if list(effort.folder.parent.glob("evil*")) else None


def _altered_records(path: Path, record: dict, effort: Effort) -> Cases:
    """Entries of a record taken away or replaced, under the two commands that read it."""
    places = [(key,) for key in record] + [
        (key, inner) for key in record if isinstance(record[key], dict) for inner in record[key]
    ]
    cases = [(place, None, True) for place in places] + [(place, junk, False) for place in places for junk in JUNK]
    chosen = effort.some(cases, least=20)
    for number, (place, junk, gone) in enumerate(chosen):
        altered = copy.deepcopy(record)
        entry = altered[place[0]] if len(place) > 1 else altered
        entry.pop(place[-1]) if gone else entry.__setitem__(place[-1], junk)
        path.write_text(json.dumps(altered))
        results_dir = ("--results-dir", path.parents[4])
        what = f"record: {'.'.join(place)} {'is gone' if gone else f'is {junk!r:.20}'}"
        yield what, refusal(lambda folder=path.parents[4]: records.load_all(folder), lambda found: True)
        if number % 10 == 0:  # the tables take a second
            yield f"table of a {what}", complaint(Child(command("table", *results_dir)).wait())


def damaged_models(effort: Effort, whole: Path) -> Cases:
    """Saved models cut, altered, and with hostile metadata or weights."""
    path = effort.fresh() / "model"
    content = (whole / "model").read_bytes()
    model = demo.load_model(whole / "model")
    for name, damaged in damages(content, effort, flips=30):
        path.write_bytes(damaged)
        yield f"model {name}", refusal(lambda: demo.load_model(path), lambda found: True)
    about, length = model.about.__dict__, int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = [(key, junk) for key in about for junk in JUNK]
    metadata += [("stored_size", 20_000), ("classes", ["<img src=x onerror=alert(1)>"] * 2), ("std", [math.nan] * 3)]
    texts = [(f"{key} {junk!r:.20}", json.dumps({**about, key: junk})) for key, junk in metadata]
    texts += [("nested deep", "[" * 100_000), ("an integer of 5,000 digits", "1" * 5_000), ("no text", "")]
    for name, text in effort.some(texts, least=6):
        head = json.dumps({**header, "__metadata__": {"about": text}}).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
        work = command("classify", whole / "image.png", "--model", path)
        yield f"model with metadata: {name}", complaint(Child(work, memory=2**30).wait())
    for value in (math.nan, math.inf):
        save_poisoned(path, content, length, value)
        ended = Child(command("classify", whole / "image.png", "--model", path)).wait()
        labelled = "a label was given" if ended.status == 0 else None
        yield f"model with weights that are {value}", complaint(ended) or labelled


def save_poisoned(path: Path, content: bytes, length: int, value: float) -> None:
    """The model with every float of its weights replaced."""
    header = json.loads(content[8 : 8 + length])
    body = bytearray(content[8 + length :])
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            body[start:end] = np.full((end - start) // 4, value, "<f4").tobytes()
    path.write_bytes(content[: 8 + length] + bytes(body))


def wrong_numbers(effort: Effort, whole: Path) -> Cases:
    """NaN, infinities and absurd sizes in recipes and options; a loss that is not finite keeps what there was."""
    base = experiments.EXPERIMENTS[EXPERIMENT].recipe
    for setting in fields(training.Recipe):
        if isinstance(getattr(base, setting.name), int | float) and not isinstance(getattr(base, setting.name), bool):
            for value in (math.nan, math.inf, -math.inf):
                yield f"recipe: {setting.name} {value}", _recipe_refused(base, setting.name, value)
    lines = [("--time-budget", value) for value in ("nan", "inf", "-inf", "1e308", "0", "-1")]
    lines += [("--epochs", value) for value in ("0", "-1", "x")] + [("--seed", value) for value in ("-1", "1" + "0" * 30)]
    for option, value in lines:
        folder = effort.fresh()
        ended = Child(run_in(folder, option, value)).wait()
        accepted = "it was accepted" if ended.status == 0 and not (option == "--seed" and value != "-1") else None
        late = "it was refused after the first epoch" if list(folder.rglob("*.ckpt")) and ended.status else None
        yield f"run {option} {value}", complaint(ended) or accepted or late
    yield "a loss that is not finite", _diverges(effort)


def _recipe_refused(base, name: str, value: float) -> str | None:
    try:
        replace(base, **{name: value})
    except (UserError, ValueError):
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it was accepted"


def _diverges(effort: Effort) -> str | None:
    folder = effort.fresh()

    def work() -> int:
        recipe_for = experiments.runner.recipe_for
        experiments.runner.recipe_for = lambda *arguments: replace(recipe_for(*arguments), learning_rate=1e30)
        return run_in(folder)()

    ended = Child(work).wait()
    return complaint(ended) or (None if ended.status == 1 and "finite" in ended.err else f"it says: {ended.err or ended.out}")
