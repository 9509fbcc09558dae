"""Faults while something is written: kills, full and read-only disks, a mirror that vanishes, two at once."""

import itertools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import data, demo, experiments
from helpers.experiments import queue, records, search
from helpers.runtime import ROOT, UserError
from helpers.tests.faults.child import Child, Effort, command, complaint, limit_file_size, strike_at
from helpers.training.checkpoints import load_checkpoint, save_checkpoint

EXPERIMENT = "cifar100/zoo_resnext1"
RUN = ("run", EXPERIMENT, "--profile", "smoke")
Cases = Iterator[tuple[str, str | None]]


def run_in(folder: Path, *more) -> Callable[[], int]:
    """The smoke run, with all its files in one folder."""
    return command(*RUN, "--results-dir", folder, "--checkpoint-dir", folder / "checkpoints", *more)


def outcome(folder: Path) -> dict:
    """What a run has left, without times; its predictions agree with its record."""
    (record,) = records.load_all(folder)
    history = [{name: value for name, value in row.items() if "seconds" not in name} for row in record["history"]]
    arrays = {name: array.tolist() for name, array in records.predictions(record, folder).items()}
    return {"test": record["test"], "history": history, "arrays": arrays}


def pair_agrees(folder: Path) -> bool:
    """Whether each record agrees with the predictions beside it, or is refused by a sentence."""
    try:
        for record in records.load_all(folder):
            arrays = records.predictions(record, folder)
            if abs((arrays["true"] == arrays["predicted"]).mean() - record["test"]["accuracy"]) > 1e-9:
                return False
    except UserError:
        pass
    return True


@dataclass(frozen=True)
class Subject:
    """Something that is written: from what, how, what must be true at any time, and what there is in the end."""

    name: str
    work: Callable[[Path], Callable[[], int | None]]
    outcome: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    always: Callable[[Path], bool] = pair_agrees
    least: int = 1


def checkpoints_in(folder: Path, damaged: bool = False) -> None:
    """Checkpoints of epochs 1 and 2, of which the second may be damaged."""
    for epoch in (1, 2):
        save_checkpoint({"epoch": epoch}, folder / "seed0.ckpt")
    if damaged:
        (folder / "seed0.ckpt").write_bytes((folder / "seed0.ckpt").read_bytes()[:-9])


def epoch_in(folder: Path) -> int:
    """The epoch of the checkpoint that would be gone on from."""
    return load_checkpoint(folder / "seed0.ckpt")["epoch"]


def texts_in(folder: Path) -> dict[str, str]:
    """The tables in a folder."""
    return {
        path.name: path.read_text().replace(str(folder), "")
        for kind in ("*.csv", "*.md")
        for path in sorted(folder.rglob(kind))
    }


def search_in(folder: Path) -> list:
    """What an exhaustive search over two trials finds, without times; it is only read where it was done."""
    recipe = experiments.recipe_for(experiments.EXPERIMENTS[EXPERIMENT], "smoke")
    dataset = data.sample("cifar100", image_size=recipe.image_size, counts=(100, 100, 2))
    grid, places = {"learning_rate": (0.01, 0.02)}, {"checkpoint_dir": folder / "checkpoints"}
    found = search.exhaustive(search.Search("zoo_resnext1", dataset, recipe, folder / "search", grid, **places))
    return [[row["val_loss"] for row in record["history"]] for record in found]


def subjects(whole: Path) -> list[Subject]:
    """Everything that is written; `whole` holds an undisturbed run, its model and an image."""

    def copied(folder: Path) -> None:
        shutil.copytree(whole, folder, dirs_exist_ok=True)

    def save(folder: Path):
        return lambda: save_checkpoint({"epoch": 3}, folder / "seed0.ckpt")

    def labelled(folder: Path):
        arguments = (folder / "image.png", "--model", folder / "model", "--csv", folder / "labels.csv")
        return command("classify", *arguments)

    def missing(folder: Path):
        def work() -> int:
            queue.EXPERIMENTS = {EXPERIMENT: replace(experiments.EXPERIMENTS[EXPERIMENT], seeds=1)}
            options = ("--results-dir", folder, "--checkpoint-dir", folder / "checkpoints")
            return command("run", "--missing", "--profile", "smoke", *options)()

        return work

    return [
        Subject("checkpoint", save, epoch_in, checkpoints_in, lambda folder: epoch_in(folder) in (2, 3), 9),
        Subject(
            "checkpoint over a damaged one",
            save,
            epoch_in,
            lambda folder: checkpoints_in(folder, damaged=True),
            lambda folder: epoch_in(folder) in (1, 3),
            least=9,
        ),
        Subject("run", run_in, outcome),
        Subject("run --missing", missing, outcome),
        Subject("search", lambda folder: lambda: bool(search_in(folder)) - 1, search_in),
        Subject("run --fresh", lambda folder: run_in(folder, "--fresh"), outcome, copied),
        Subject("table", lambda folder: command("table", "--results-dir", folder), texts_in, copied),
        Subject("classify --csv", labelled, texts_in, copied),
        Subject(
            "save",
            lambda folder: command(
                *("save", EXPERIMENT, folder / "model", "--profile", "smoke"),
                *("--results-dir", folder, "--checkpoint-dir", folder / "checkpoints"),
            ),
            lambda folder: demo.load_model(folder / "model").about,
            copied,
        ),
    ]


def undisturbed(subject: Subject, effort: Effort) -> tuple[object, int, int]:
    """Its outcome, how many calls write under its folder, and the size of the largest file in the end."""
    if subject.name in effort.known:
        return effort.known[subject.name]
    folder = effort.fresh()
    subject.prepare(folder)

    def work() -> int:
        count = strike_at(0, folder, kill=False)
        status = subject.work(folder)() or 0
        print(f"\n{count()}")
        return status

    ended = Child(work).wait()
    assert ended.status == 0, ended.err
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    effort.known[subject.name] = subject.outcome(folder), int(ended.out.split()[-1]), max(sizes)
    return effort.known[subject.name]


def disturbed(subject: Subject, effort: Effort, fault: Callable[[Path], object], wanted: object, kill: bool) -> str | None:
    """The complaint about a subject that meets a fault, is looked at, and is done again without one."""
    folder = effort.fresh()
    subject.prepare(folder)
    ended = Child(lambda: (fault(folder), subject.work(folder)())[1]).wait()
    if wrong := complaint(ended, *((-signal.SIGKILL, -signal.SIGXFSZ) if kill else ())):
        return wrong
    try:
        if not subject.always(folder):
            return "what lies there is neither the old nor the new"
        again = Child(subject.work(folder)).wait()
        if again.status:
            return f"it does not go on: {again.err.strip()}"
        left = [path.name for path in folder.rglob("*") if path.name.startswith("tmp")]
        return None if subject.outcome(folder) == wanted and not left else f"it ends otherwise ({left or 'another outcome'})"
    except Exception as error:
        return f"what lies there cannot be read ({type(error).__name__}: {error})"
    finally:
        shutil.rmtree(folder)


def system_calls(effort: Effort, whole: Path) -> Cases:
    """A kill, and an error of a full disk, at every call that writes."""
    for subject in subjects(whole):
        wanted, calls, _ = undisturbed(subject, effort)
        for number, kill in effort.some(list(itertools.product(range(1, calls + 1), (True, False))), subject.least):

            def fault(folder: Path, number=number, kill=kill) -> None:
                strike_at(number, folder, kill)

            what = "a kill" if kill else "an error"
            yield f"{subject.name}: {what} at call {number}", disturbed(subject, effort, fault, wanted, kill)


def full_disks(effort: Effort, whole: Path) -> Cases:
    """No room for more than a part of the largest file, at ten levels; the write fails, or kills in its middle."""
    for subject in subjects(whole):
        wanted, _, largest = undisturbed(subject, effort)
        for tenth, kill in effort.some(list(itertools.product(range(10), (False, True))), subject.least):
            size = round(largest * (tenth + 0.5) / 10)

            def fault(folder: Path, size=size, kill=kill) -> None:
                limit_file_size(size, kill)

            yield f"{subject.name}: files of at most {size} bytes", disturbed(subject, effort, fault, wanted, kill)
    yield from small_disks(effort, whole)


def mount(folder: Path, options: str) -> bool:
    """Mount, or mount again, a file system in memory; whether that is allowed here."""
    arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(arguments, capture_output=True).returncode == 0


def small_disks(effort: Effort, whole: Path) -> Cases:
    """A run on a disk that fills up at ten levels, is then made larger; and on one that cannot be written at all."""
    need = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    for tenth in [*effort.some(list(range(10)), least=1), "read-only"]:
        folder, readonly = effort.fresh(), tenth == "read-only"
        size = 1024 if readonly else max(8, round(need * (tenth + 0.5) / 10))
        if not mount(folder, "size=64m,ro" if readonly else f"size={size}k"):
            return  # not root: the files of limited size must do
        try:
            wrong = complaint(ended := Child(run_in(folder)).wait())
            wrong = wrong or ("nothing was said" if readonly and ended.status != 1 else None)
            mount(folder, "remount,rw,size=64m")
            again = Child(run_in(folder)).wait()
            if not wrong and (again.status or outcome(folder) != outcome(whole)):
                wrong = f"it does not go on to the same end: {again.err.strip()}"
            yield f"run: a disk of {size} KiB{', read-only' * readonly}", wrong
        finally:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def random_kills(effort: Effort, whole: Path) -> Cases:
    """The real command killed at random instants and started again, until it ends as one that was let be."""
    wanted, length, rounds = outcome(whole), None, 0
    while rounds < effort.rounds:
        folder, err = effort.fresh(), b""
        options = ["--results-dir", str(folder), "--checkpoint-dir", str(folder / "checkpoints")]
        while True:
            start, kill = time.monotonic(), length is not None and rounds < effort.rounds
            process = subprocess.Popen([sys.executable, "-m", "helpers", *RUN, *options], cwd=ROOT, stderr=subprocess.PIPE)
            try:
                err = process.communicate(timeout=effort.random.uniform(0.3, 1.1) * length if kill else 300)[1]
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                rounds += 1
                yield f"kill {rounds}", None if pair_agrees(folder) else "record and predictions disagree"
        length = length or time.monotonic() - start
        found = err.decode() if process.returncode else outcome(folder)
        yield "the end after kills", None if found == wanted else f"it ends otherwise: {str(found)[-200:]}"
        shutil.rmtree(folder)


def forked_kills(effort: Effort, whole: Path) -> Cases:
    """The same in forks of this process, which spare it the seconds of a start."""
    start = time.monotonic()
    Child(run_in(effort.fresh())).wait()
    length, wanted = time.monotonic() - start, outcome(whole)
    for _ in effort.some(list(range(50)), least=2):
        folder = effort.fresh()
        for _ in range(2):
            child = Child(run_in(folder))
            killed = child.wait(effort.random.uniform(0, 1.1) * length)
            if killed.status is not None:
                break
        wrong = complaint(again := Child(run_in(folder)).wait())
        wrong = wrong or (again.err if again.status else None if outcome(folder) == wanted else "it ends otherwise")
        yield "two kills", wrong if pair_agrees(folder) else "record and predictions disagree"


def two_at_once(effort: Effort, whole: Path) -> Cases:
    """Two processes at the same files: each ends well or with a sentence, and nothing is mixed."""
    for subject in effort.some(subjects(whole)[2:], least=2):
        wanted, _, _ = undisturbed(subject, effort)
        for number in range(1 if effort.share < 1 else 5):
            folder = effort.fresh()
            subject.prepare(folder)
            pair = [Child(subject.work(folder)) for _ in range(2)]
            wrong = [complaint(child.wait()) for child in pair]
            if not any(wrong) and Child(subject.work(folder)).wait().status:
                wrong.append("it cannot be done again afterwards")
            if not any(wrong) and subject.outcome(folder) != wanted:
                wrong.append("it ends otherwise")
            yield f"{subject.name} twice, {number + 1}", next(filter(None, wrong), None)


def vanishing_mirrors(effort: Effort, whole: Path) -> Cases:
    """The folder that checkpoints are copied to is not there, is no folder, is full, cannot be written: training goes on."""
    faults = {
        "is not mounted": lambda mirror: mirror.parent.rmdir(),
        "is a file": lambda mirror: mirror.write_text("in the way"),
        "holds a folder of the file's name": lambda mirror: (mirror / "seed0.ckpt" / "full").mkdir(parents=True),
        "is a broken link": lambda mirror: mirror.symlink_to("nowhere"),
        "is a link to itself": lambda mirror: mirror.symlink_to(mirror),
        "is full": lambda mirror: (mirror.mkdir(), mount(mirror, "size=4k"), (mirror / "x").write_bytes(bytes(4096))),
        "is read-only": lambda mirror: (mirror.mkdir(), mount(mirror, "size=4k,ro") or mirror.chmod(0o500)),
        "goes after the first epoch": lambda mirror: mirror.mkdir(),
    }
    for name, make in effort.some(list(faults.items())):
        folder = effort.fresh()
        mirror = folder / "drive" / "mirror"
        mirror.parent.mkdir()
        make(mirror)

        def work(folder=folder, mirror=mirror, name=name) -> None:
            if name.startswith("goes"):  # as Drive does: what lay there is not there any more when the second copy is made
                sys.addaudithook(lambda event, _: event == "shutil.copyfile" and shutil.rmtree(mirror.parent, True))
            places = {"checkpoint_dir": folder / "checkpoints", "mirror": mirror}
            records.save(*experiments.run(EXPERIMENT, 0, "smoke", **places), folder)

        wrong = complaint(ended := Child(work).wait())
        if not wrong and (ended.status or outcome(folder) != outcome(whole)):
            wrong = f"the local checkpoint is not enough: {ended.err.strip()}"
        said = (ended.out + ended.err).count("cop")
        yield f"the mirror {name}", wrong or (None if said else "nothing was said")
        subprocess.run(["umount", "-l", str(mirror)], capture_output=True)
