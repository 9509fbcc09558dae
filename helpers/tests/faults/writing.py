"""Faults while files are written: kills, full and read-only disks, a mirror that vanishes, two processes at once."""

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from helpers import data, experiments
from helpers.experiments import queue, records, search
from helpers.runtime import ROOT
from helpers.tests.faults import child
from helpers.tests.faults.child import EXPERIMENT, Cases, Child, Effort, broken, command, complaint, strike_at
from helpers.training.checkpoints import load_checkpoint, save_checkpoint

START = "import sys; from helpers.tests.faults import child\nwith child.smallest(): sys.exit(child.main())"


def arguments(folder: Path, *first) -> tuple:
    """A command line for the smoke run, with all its files in one folder."""
    return (*first, "--profile", "smoke", "--results-dir", folder, "--checkpoint-dir", folder / "checkpoints")


def run_in(folder: Path, *more) -> Callable[[], int]:
    """Work for a child: the smoke run in this folder."""
    return command(*arguments(folder, "run", EXPERIMENT), *more)


def outcome(folder: Path) -> dict:
    """The results of a run, without times; reading its predictions checks them against its record."""
    (record,) = records.load_all(folder)
    history = [{name: value for name, value in row.items() if "seconds" not in name} for row in record["history"]]
    arrays = {name: array.tolist() for name, array in records.predictions(record, folder).items()}
    return {"test": record["test"], "history": history, "arrays": arrays}


def pairs_agree(folder: Path) -> bool:
    """Whether each record is intact and agrees with its predictions; reading them raises an error if not."""
    return all(records.predictions(record, folder) for record in records.load_all(folder))


def epoch_in(folder: Path) -> int:
    """The epoch of the checkpoint from which training would resume."""
    return load_checkpoint(folder / "seed0.ckpt")["epoch"]


def tables_in(folder: Path) -> dict[str, bytes]:
    """The tables and figures in a folder."""
    tables = [path for path in sorted(folder.rglob("*")) if path.suffix in (".csv", ".md", ".png")]
    return {path.name: path.read_bytes().replace(str(folder).encode(), b"") for path in tables}


def figures_whole(folder: Path) -> bool:
    """Whether each figure is an intact image (Pillow raises an error if not), and each record agrees with its predictions."""
    for path in folder.rglob("*.png"):
        with Image.open(path) as figure:
            figure.load()
    return pairs_agree(folder)


def search_in(folder: Path) -> list:
    """The losses of an exhaustive search over two trials; it only reads them if the search is done."""
    recipe = replace(experiments.recipe_for(experiments.EXPERIMENTS[EXPERIMENT], "smoke"), epochs=1)
    dataset = data.sample("cifar10", image_size=recipe.image_size)
    grid = {"learning_rate": (0.01, 0.02)}
    found = search.exhaustive(search.Search("smallest", dataset, recipe, folder / "search", grid))
    return [[row["val_loss"] for row in record["history"]] for record in found]


def missing_in(folder: Path) -> int:
    """`run --missing`, with the smoke run as the only experiment in the plan."""
    queue.EXPERIMENTS = {EXPERIMENT: experiments.EXPERIMENTS[EXPERIMENT]}
    return command(*arguments(folder, "run", "--missing"))()


class Subject(NamedTuple):
    """Something that writes files: the work, its outcome, the files it starts from, and what must be true at any time."""

    name: str
    work: Callable[[Path], Callable[[], int | None]]
    outcome: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    always: Callable[[Path], bool] = pairs_agree


def subjects(whole: Path) -> list[Subject]:
    """Everything that writes files; `whole` holds an undisturbed run, its model and an image."""

    def copied(folder: Path) -> None:
        shutil.copytree(whole, folder, dirs_exist_ok=True)

    def searching(folder: Path) -> Callable[[], int]:
        return lambda: bool(search_in(folder)) - 1

    def third(folder: Path) -> Callable[[], None]:
        return lambda: save_checkpoint({"epoch": 3}, folder / "seed0.ckpt")

    def two(folder: Path, damaged: bool = False) -> None:
        for epoch in (1, 2):
            save_checkpoint({"epoch": epoch}, folder / "seed0.ckpt")
        if damaged:
            (folder / "seed0.ckpt").write_bytes((folder / "seed0.ckpt").read_bytes()[:-9])

    return [
        Subject("run", run_in, outcome),
        Subject("run --missing", lambda folder: lambda: missing_in(folder), outcome),
        Subject("search", searching, search_in, always=lambda folder: pairs_agree(folder / "search")),
        Subject("run --fresh", lambda folder: run_in(folder, "--fresh"), outcome, copied),
        Subject("table", lambda folder: command("table", "--results-dir", folder), tables_in, copied, figures_whole),
        Subject("checkpoint", third, epoch_in, two, lambda folder: epoch_in(folder) in (2, 3)),
        Subject("damaged", third, epoch_in, lambda folder: two(folder, True), lambda folder: epoch_in(folder) in (1, 3)),
    ]


def undisturbed(subject: Subject, effort: Effort) -> tuple[object, int, int]:
    """The outcome without a fault, the number of calls that write in the folder, and the final size of the largest file."""
    if subject.name not in effort.known:
        folder = effort.fresh()
        subject.prepare(folder)

        def work() -> int:
            count = strike_at(0, folder, kill=False)
            status = subject.work(folder)() or 0
            print(f"\n{count()}")
            return status

        ended = Child(work).wait()
        assert ended.status == 0, ended
        largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        effort.known[subject.name] = subject.outcome(folder), int(ended.out.split()[-1]), largest
    return effort.known[subject.name]


def disturbed(subject: Subject, effort: Effort, fault: Callable[[Path], object]) -> str | None:
    """The complaint about a subject that meets a fault, is checked, and is done again without one."""
    folder = effort.fresh()
    subject.prepare(folder)
    ended = Child(lambda: (fault(folder), subject.work(folder)())[1]).wait()
    if wrong := complaint(ended, -signal.SIGKILL, -signal.SIGXFSZ) or broken(lambda: folder, subject.always):
        return wrong
    again = Child(subject.work(folder)).wait()
    left = [path.name for path in folder.rglob("tmp*")]
    same = broken(lambda: subject.outcome(folder), lambda found: found == undisturbed(subject, effort)[0])
    shutil.rmtree(folder)
    return f"it does not reach the same end: {again.err.strip()} {same} {left}" if again.status or same or left else None


def system_calls(effort: Effort, whole: Path) -> Cases:
    """A kill, and a full-disk error, at every call that writes."""
    for subject in subjects(whole):
        calls = range(1, undisturbed(subject, effort)[1] + 1)
        for number, kill in effort.some(itertools.product(calls, (True, False)), least=2):
            wrong = disturbed(subject, effort, lambda folder, at=number, kill=kill: strike_at(at, folder, kill))
            yield f"{subject.name}: {'a kill' if kill else 'an error'} at call {number}", wrong


def full_disks(effort: Effort, whole: Path) -> Cases:
    """Room for only part of the largest file, at ten levels; the write fails, or kills the process halfway."""
    for subject in subjects(whole):
        for tenth, kill in effort.some(itertools.product(range(10), (False, True)), least=1):
            size = round(undisturbed(subject, effort)[2] * (tenth + 0.5) / 10)
            wrong = disturbed(subject, effort, lambda _, size=size, kill=kill: limit_file_size(size, kill))
            yield f"{subject.name}: files of at most {size} bytes", wrong
    need = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    for tenth in [*effort.some(range(10), least=1), "read-only"]:
        folder, size = effort.fresh(), "64m,ro" if tenth == "read-only" else f"{max(8, round(need * (tenth + 0.5) / 10))}k"
        if not mount(folder, f"size={size}"):
            return  # not root: the limits on file size must do
        wrong = complaint(ended := Child(run_in(folder)).wait())
        wrong = wrong or ("nothing was reported" if tenth == "read-only" and ended.status != 1 else None)
        mount(folder, "remount,rw,size=64m")
        wrong = wrong or complaint(Child(run_in(folder)).wait())
        yield f"run: a disk of size {size}", wrong or broken(lambda at=folder: outcome(at), lambda end: end == outcome(whole))
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def limit_file_size(size: int, kill: bool) -> None:
    """In a child: limit every file to `size` bytes; a write beyond that fails, or kills the process halfway."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def mount(folder: Path, options: str) -> bool:
    """Mount or remount a file system in memory; returns whether that worked."""
    line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(line, capture_output=True).returncode == 0


def random_kills(effort: Effort, whole: Path) -> Cases:
    """Kill the command at random instants and restart it until it finishes, with the outcome of an undisturbed run.

    It is forked from this process, which saves the seconds that imports take; every fiftieth start is a new process.
    """
    rounds, starts, lengths = 0, itertools.count(1), {}
    while rounds < effort.rounds:
        folder, status = effort.fresh(), -signal.SIGPROF
        while status == -signal.SIGPROF:
            is_new, before = next(starts) % 50 == 0, processor_time()
            limit = effort.random.uniform(0, 1.1) * lengths.get(is_new, 0) if rounds < effort.rounds else 0
            status, err = new_process(folder, limit) if is_new else Child(run_in(folder), cpu=limit).wait()[::2]
            if status == -signal.SIGPROF:
                rounds += 1
                yield f"kill {rounds}", broken(lambda at=folder: at, pairs_agree)
            elif limit == 0:
                lengths[is_new] = processor_time() - before
        yield "the end after kills", None if status == 0 and outcome(folder) == outcome(whole) else f"different end: {err}"
        shutil.rmtree(folder)


def new_process(folder: Path, limit: float) -> tuple[int, str]:
    """The smoke run in a process that is not a fork, killed after `limit` seconds of CPU time; returns status and errors."""
    line = [sys.executable, "-c", START, *map(str, arguments(folder, "run", EXPERIMENT))]
    around = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}  # as in the forks, or it would round differently
    done = subprocess.run(line, capture_output=True, text=True, **around, preexec_fn=lambda: child.kill_after(limit))
    return done.returncode, done.stderr


def processor_time() -> float:
    """CPU seconds that the children of this process have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def two_at_once(effort: Effort, whole: Path) -> Cases:
    """Two processes with the same files: each succeeds or ends with one sentence, and nothing is mixed up."""
    for subject, number in effort.some(itertools.product(subjects(whole)[:5], range(5)), least=2):
        folder = effort.fresh()
        subject.prepare(folder)
        pair = [Child(subject.work(folder)) for _ in range(2)]
        wrong = [complaint(one.wait()) for one in pair] + [complaint(Child(subject.work(folder)).wait(), -1)]
        wrong += [broken(lambda at=folder, one=subject: one.outcome(at) == undisturbed(one, effort)[0], bool)]
        yield f"{subject.name} twice, {number + 1}", next(filter(None, wrong), None)


def vanishing_mirrors(effort: Effort, whole: Path) -> Cases:
    """The folder that checkpoints are copied to is missing, not a folder, full or read-only: training continues."""
    faults = {
        "is not mounted": lambda mirror: shutil.rmtree(mirror.parents[5]),
        "is a file": lambda mirror: mirror.write_text("in the way"),
        "holds a folder with the checkpoint's name": lambda mirror: (mirror / "seed0.ckpt" / "full").mkdir(parents=True),
        "is a broken link": lambda mirror: mirror.symlink_to("nowhere"),
        "is a link to itself": lambda mirror: mirror.symlink_to(mirror),
        "is full": lambda mirror: (mirror.mkdir(), mount(mirror, "size=4k"), (mirror / "x").write_bytes(bytes(4096))),
        "is read-only": lambda mirror: (mirror.mkdir(), mount(mirror, "size=4k,ro") or mirror.chmod(0o500)),
        "vanishes after the first epoch": lambda mirror: mirror.mkdir(),
    }
    if not mount(probe := effort.fresh(), "size=4k"):
        del faults["is full"]  # without the right to mount
        if os.geteuid() == 0:  # who may write into any folder
            del faults["is read-only"]
    subprocess.run(["umount", "-l", str(probe)], capture_output=True)
    for name, make in effort.some(faults.items()):
        mirror = (folder := effort.fresh()) / "drive/MyDrive/project/checkpoints/report/network/full"
        mirror.parent.mkdir(parents=True)
        make(mirror)

        def work(folder=folder, mirror=mirror, name=name) -> None:
            if name.startswith("vanishes"):  # as Drive does: its files are gone when the second copy is made
                sys.addaudithook(lambda event, _: event == "shutil.copyfile" and shutil.rmtree(mirror.parent, True))
            places = {"checkpoint_dir": folder / "checkpoints", "mirror": mirror}
            records.save(*experiments.run(EXPERIMENT, 0, "smoke", **places), folder)

        wrong = complaint(ended := Child(work).wait())
        wrong = wrong or broken(lambda at=folder: outcome(at), lambda end: end == outcome(whole))
        yield f"the mirror {name}", wrong or (None if "cop" in ended.out + ended.err else "nothing was reported")
        subprocess.run(["umount", "-l", str(mirror)], capture_output=True)
