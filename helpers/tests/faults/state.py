"""Damaged state: checkpoints, records, models and data that are truncated, altered, foreign or old; invalid numbers."""

import copy
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from helpers import data, demo, experiments
from helpers.data import cifar
from helpers.experiments import records
from helpers.tests.faults.child import EXPERIMENT, Cases, Child, Effort, command, complaint, refusal
from helpers.tests.faults.inputs import picture
from helpers.tests.faults.writing import outcome, run_in
from helpers.training.checkpoints import load_checkpoint, previous, save_checkpoint

JUNK = (None, -1, 1e400, "x", [], {}, True, {"a": {"b": []}}, "../../../evil", 10**400)


def damages(path: Path, effort: Effort, read: Callable, allowed: Callable[[object], bool], before=lambda: None) -> Cases:
    """Read a file after truncating it at every percent, flipping single bits, and replacing it by text or zeros."""
    good, name = path.read_bytes(), f"{path.parent.name}/{path.name}"
    cases = [(f"cut at {percent} %", good[: len(good) * percent // 100]) for percent in effort.some(range(100), least=5)]
    for _ in range(max(5, round(100 * effort.share))):
        place, bit = effort.random.randrange(len(good)), effort.random.randrange(8)
        flipped = good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :]
        cases.append((f"bit {bit} of byte {place} flipped", flipped))
    for damage, content in [*cases, ("is text", b"hello"), ("is zeros", bytes(len(good)))]:
        path.write_bytes(content)
        before()
        yield f"{name} {damage}", refusal(read, allowed)
    path.write_bytes(good)


class Code:
    """A pickle that creates a folder when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def sealed(content: object) -> bytes:
    """A checkpoint file with a valid checksum and any content: bytes, or an object saved by torch."""
    if not isinstance(content, bytes):
        torch.save(content, buffer := io.BytesIO())
        content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest().encode() + content


def bomb() -> bytes:
    """A small zip file that unpacks to a gigabyte of zeros."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("archive/data.pkl", "w", force_zip64=True) as part:
            for _ in range(256):
                part.write(bytes(2**22))
    return buffer.getvalue()


def without(table: dict, *names: str) -> dict:
    """A dict without some of its entries."""
    return {name: value for name, value in table.items() if name not in names}


def damaged_checkpoints(effort: Effort, whole: Path) -> Cases:
    """Every kind of damage, with and without an intact previous checkpoint; then foreign, hostile and old checkpoints."""
    path, marker = effort.fresh() / "seed0.ckpt", effort.fresh() / "marker"
    for epoch in (1, 2):
        save_checkpoint({"epoch": epoch, "weights": torch.arange(1000.0)}, path)
    yield from damages(path, effort, lambda: load_checkpoint(path)["epoch"], lambda epoch: epoch == 1)
    yield from damages(path, effort, lambda: load_checkpoint(path), lambda _: False, lambda: previous(path).unlink(True))
    state, last = (load_checkpoint(next((whole / "checkpoints").rglob(f"seed0{kind}.ckpt"))) for kind in (".previous", ""))
    foreign = {"a folder": None, "a bomb": bomb, "code": sealed(pickle.dumps(Code(marker))), "a list": sealed([1])}
    foreign |= {f"without {key}": sealed(without(last, key)) for key in last} | {"torch's code": sealed(Code(marker))}
    foreign |= {f"with {key} of another type": sealed({**last, key: 7}) for key in last}
    foreign["of another network"] = sealed(
        {**last, "model": {name: value.flatten()[:1] for name, value in last["model"].items()}}
    )
    for (name, content), beside in effort.some([(case, beside) for case in foreign.items() for beside in (False, True)]):
        content = sealed(content()) if content is bomb else content  # made only now, as it takes seconds
        yield f"checkpoint {name}{', with the previous one' * beside}", _resumed_from(content, beside, effort, whole)
    yield "no code of a checkpoint was run", "its code was run" if marker.exists() else None
    recipe = experiments.recipe_for(experiments.EXPERIMENTS[EXPERIMENT], "smoke")
    new = [one.name for one in fields(recipe) if one.default is not MISSING and getattr(recipe, one.name) == one.default]
    identities = [without(state["identity"], *some) for some in (new, *zip(new[::5]))]
    for number, old in enumerate([{**state, "identity": one} for one in identities] + [without(state, "arrangement")]):
        wrong = _resumed_from(sealed(old), False, effort, whole, "Resumed after epoch 1 of 2.")
        yield f"checkpoint of an older version {number}", wrong


def _resumed_from(content: bytes | None, beside: bool, effort: Effort, whole: Path, says: str = "") -> str | None:
    """The complaint about a run that finds this checkpoint (None: a folder), with or without the good previous one."""
    folder = effort.fresh()
    shutil.copytree(whole / "checkpoints", folder / "checkpoints")
    (path,) = folder.rglob("seed0.ckpt")
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    if not beside:
        previous(path).unlink()
    wrong = complaint(ended := Child(run_in(folder), memory=2**30).wait())
    if not wrong and ended.status == 0 and outcome(folder) != outcome(whole):
        wrong = "it ends differently"
    return wrong or (None if says in ended.out else f"it does not say {says!r}: {ended.err}")


def damaged_records(effort: Effort, whole: Path) -> Cases:
    """Records and predictions truncated, altered, or with missing or mistyped entries: refused, or read as written."""
    folder = effort.fresh()
    shutil.copytree(whole / "runs", folder / "runs")
    (path,) = folder.rglob("seed0.json")
    content, record, accepted = path.read_text(), records.load(path), []
    arrays = {name: array.tolist() for name, array in records.predictions(record, folder).items()}

    def as_written(found: dict) -> bool:
        return {name: array.tolist() for name, array in found.items()} == arrays

    yield from damages(path, effort, lambda: records.load_all(folder), lambda _: True)
    yield from damages(path.with_name(record["predictions"]), effort, lambda: records.predictions(record, folder), as_written)
    places = [(key,) for key in record] + [(key, inner) for key in record if type(record[key]) is dict for inner in record[key]]
    cases = [(place, "is gone") for place in places] + [(place, junk) for place in places for junk in JUNK]
    for place, junk in effort.some(cases, least=20):
        altered = copy.deepcopy(record)
        entry = altered[place[0]] if len(place) > 1 else altered
        entry.pop(place[-1]) if junk == "is gone" else entry.__setitem__(place[-1], junk)
        path.write_text(json.dumps(altered))
        accepted.clear()
        wrong = refusal(lambda: records.load_all(folder), lambda found: accepted.append(found) is None)
        if accepted:  # then the table command must cope with it
            wrong = complaint(Child(command("table", "--results-dir", folder)).wait())
        yield f"record: {'.'.join(place)}, {junk!r:.20}", wrong
    old = {name: without(part, "accuracy_at_5", "loss_mirrored") if name == "test" else part for name, part in record.items()}
    old["history"] = [{name: row[name] for name in records.EPOCH} for row in record["history"]]
    old["recipe"] = {name: record["recipe"][name] for name in ("epochs", "batch_size", "image_size", "mean", "std")}
    path.write_text(json.dumps(without(old, "limits", "arrangement", "peak_memory_bytes")))
    ended = Child(command("table", "--results-dir", folder)).wait()
    yield "the record of an older version", complaint(ended) or ended.err or None
    path.write_text(content)
    yield "nothing was written outside the folder", "evil" if list(effort.folder.parent.glob("evil*")) else None


def damaged_models(effort: Effort, whole: Path) -> Cases:
    """Saved models that are truncated, altered, or have hostile metadata or weights."""
    path = Path(shutil.copy(whole / "model", effort.fresh()))
    content, about = path.read_bytes(), demo.load_model(path).about.__dict__
    yield from damages(path, effort, lambda: demo.load_model(path), lambda _: True)
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    hostile = [(key, junk) for key in about for junk in JUNK] + [("stored_size", 20_000), ("std", [math.nan] * 3)]
    hostile += [("classes", [name] * 10) for name in ("<img src=x onerror=alert(1)>", "$x^$")]
    texts = [(f"{key} {junk!r:.20}", json.dumps({**about, key: junk})) for key, junk in hostile]
    texts += [("deeply nested", "[" * 100_000), ("an integer of 5,000 digits", "1" * 5_000), ("no text", "")]
    work = command("classify", whole / "image.png", "--model", path)
    for name, text in effort.some(texts, least=6):
        head = json.dumps({**header, "__metadata__": {"about": text}}).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + body)
        yield f"model with metadata: {name}", complaint(Child(work, memory=2**30).wait())
    for value in (math.nan, math.inf):
        poisoned = bytearray(content)
        for entry in header.values():
            if entry.get("dtype") == "F32":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                poisoned[start:end] = np.full((end - start) // 4, value, "<f4").tobytes()
        path.write_bytes(poisoned)
        ended = Child(work).wait()
        yield f"model with weights that are {value}", complaint(ended) or (None if ended.status else "a label was given")


def damaged_data(effort: Effort, whole: Path) -> Cases:
    """Parquet files that are truncated, altered or of another form, and damaged caches: refused, or read as written."""
    folder, counts = effort.fresh(), {"train": 20, "test": 10}
    path, cache = folder / "cifar10" / "train-0.parquet", folder / "cache" / "cifar10-32.npz"
    path.parent.mkdir()
    content = picture("PNG", (32, 32))
    cell = {"bytes": content, "path": None}
    digest = hashlib.sha256(cifar.decode_photograph(content, 32)[0].tobytes()).hexdigest()
    places = [f"{split}/{cifar.CIFAR10_CLASSES[number % 10]}" for split, count in counts.items() for number in range(count)]
    published = {"cifar10": cifar._fingerprint(places, [digest] * len(places))}
    for split, count in counts.items():
        table = pd.DataFrame({"img": [cell] * count, "label": [number % 10 for number in range(count)]})
        table.to_parquet(path.with_name(f"{split}-0.parquet"))
    table, labels = pd.read_parquet(path), (None, -1, "x", [], True, math.nan, 10.5)

    def read() -> torch.Tensor:
        return data.load("cifar10", folder).train.images

    with patch.object(cifar, "COUNTS", counts), patch.dict(cifar.FINGERPRINTS, published):
        wanted = read()
        yield from damages(cache, effort, read, lambda found: torch.equal(found, wanted))
        yield from damages(path, effort, read, lambda found: found.shape == wanted.shape)
        altered = {f"label {junk!r}": table.assign(label=[junk] * 20) for junk in labels}
        altered |= {f"img {junk!r}": table.assign(img=[junk] * 20) for junk in (None, -1, "x", b"x", [1], {"a": 1})}
        altered |= {f"without {column}": table.drop(columns=column) for column in table}
        for name, other in altered.items():
            other.to_parquet(path)
            yield f"Parquet with {name}", refusal(read, lambda _: False)


def wrong_numbers(effort: Effort, whole: Path) -> Cases:
    """NaN, infinities and absurd sizes in recipes and options, and a loss that is not finite: refused in one sentence."""
    base = experiments.EXPERIMENTS[EXPERIMENT].recipe
    for setting in fields(base):
        if type(getattr(base, setting.name)) in (int, float):
            for value in (math.nan, math.inf, -math.inf):
                wrong = refusal(lambda name=setting.name, value=value: replace(base, **{name: value}), lambda _: False)
                yield f"recipe: {setting.name} {value}", wrong
    lines = [("--time-budget", value) for value in ("nan", "inf", "-inf", "1e308", "0", "-1")]
    lines += [("--epochs", value) for value in ("0", "-1", "x")] + [("--seed", value) for value in ("-1", "x")]
    for option, value in lines:
        ended = Child(run_in(folder := effort.fresh(), option, value)).wait()
        late = "it was refused after the first epoch" if list(folder.rglob("*.ckpt")) else None
        yield f"run {option} {value}", complaint(ended) or late or (None if ended.status else "it was accepted")

    def diverging() -> int:
        recipe_for = experiments.runner.recipe_for
        experiments.runner.recipe_for = lambda *arguments: replace(recipe_for(*arguments), learning_rate=1e30)
        return run_in(effort.fresh())()

    ended = Child(diverging).wait()
    says = ended.status == 1 and "finite" in ended.err
    yield "a loss that is not finite", complaint(ended) or (None if says else f"it says: {ended.err or ended.out}")
