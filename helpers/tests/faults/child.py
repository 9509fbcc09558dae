"""Work in a child process, the faults injected into it, and the ways in which it may end."""

import errno
import itertools
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest.mock import patch

import torch
from tqdm import tqdm

from helpers import models
from helpers.__main__ import main
from helpers.data import samples
from helpers.experiments.plan import EXPERIMENTS
from helpers.models import Description, Stage, Stem
from helpers.report.claims import findings, table
from helpers.runtime import UserError

EXPERIMENT = "cifar10/resnext29_under5m_sgd"
SMALLEST = Description(Stem(8, 3, 2), (Stage(1, 8),)).build  # a network of one block
SECONDS = 300  # after this, work counts as hanging; on an idle machine nothing here takes more than a few seconds
WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
Cases = Iterator[tuple[str, str | None]]


@contextmanager
def smallest() -> Iterator[None]:
    """Use a one-block network and forty images for the experiment, and only claims about trained networks: 0.1 s per run."""
    row = replace(EXPERIMENTS[EXPERIMENT], model="smallest", seeds=1)
    statements = [one for one in table.statements() if one.kind in findings.TRAINED]
    with (
        patch.dict(models.MODELS, smallest=SMALLEST),
        patch.dict(EXPERIMENTS, {EXPERIMENT: row}),
        patch.object(models, "count_macs", lambda *_: 1),
        patch.dict(samples.SAMPLE_COUNTS, {10: (20, 10, 10)}),
        patch.object(table, "statements", lambda: statements),
    ):
        yield


@dataclass(frozen=True)
class Effort:
    """How much to try: the number of random kills of the real command, and the share of the other cases."""

    rounds: int
    share: float
    folder: Path
    random: Random = field(default_factory=Random)
    known: dict = field(default_factory=dict)

    def some(self, cases, least: int = 3) -> list:
        """A random share of the cases, at least `least` of them, in their original order."""
        cases = list(cases)
        count = min(len(cases), max(least, round(self.share * len(cases))))
        return [cases[place] for place in sorted(self.random.sample(range(len(cases)), count))]

    def fresh(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))


class Ended(NamedTuple):
    """How a child ended: its exit status (negative: killed by that signal), and what it printed."""

    status: int
    out: str
    err: str


class Child:
    """A forked process that does some work, limited to `memory` bytes more than it starts with and to `cpu` CPU seconds."""

    def __init__(self, work: Callable[[], int | None], memory: int | None = None, cpu: float = 0):
        self.files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self.pid = os.fork()
        if self.pid == 0:
            self._work(work, memory, cpu)

    def _work(self, work, memory, cpu) -> None:
        status = 99
        try:
            for number, file in enumerate(self.files, 1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, errors="backslashreplace")
            torch.set_num_threads(1)  # the parent's thread pool does not survive a fork
            tqdm.set_lock(threading.RLock())  # the default one is shared by all children, and one may die holding it
            if memory:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
            signal.alarm(SECONDS)
            kill_after(cpu)
            status = work() or 0
        except SystemExit as error:
            status = error.code or 0
        except UserError as error:
            status = print(error, file=sys.stderr) or 1
        except BaseException:
            traceback.print_exc()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> Ended:
        """Wait until it ends; returns how it ended."""
        status, texts = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(status, *texts)


def kill_after(cpu: float) -> None:
    """Have this process killed after `cpu` seconds of CPU time, however busy the machine is; 0 means never."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu)


def command(*arguments) -> Callable[[], int]:
    """Work for a child: running this command line."""
    return lambda: main([str(argument) for argument in arguments])


def complaint(ended: Ended, *statuses: int) -> str | None:
    """What is wrong with how a child ended; None if its status is 0, one of those given, or 1 with one sentence."""
    said = [line for line in ended.err.splitlines() if line.strip()]
    if ended.status == -signal.SIGALRM:
        return "it hangs"
    if "Traceback" in ended.err or "MemoryError" in ended.err + ended.out:
        return f"a traceback: {said[-1]}"
    if ended.status not in (0, 1, *statuses):
        return f"it ends with status {ended.status}: {said[-1] if said else ''}"
    if ended.status == 1 and (len(said) != 1 or "No such file or directory; free" in said[0]):
        return f"not one clear sentence but {said}"
    return None


def broken(read: Callable[[], object], allowed: Callable[[object], bool]) -> str | None:
    """What is wrong with reading something that must be intact, or None; a refusal is wrong too."""
    try:
        return None if allowed(read()) else "it is not as it should be"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refusal(read: Callable[[], object], allowed: Callable[[object], bool]) -> str | None:
    """What is wrong with reading damaged state; None if the result is allowed or it is refused in one sentence."""
    try:
        return None if allowed(read()) else "damaged content was accepted"
    except UserError as error:
        return None if str(error).endswith(".") and "\n" not in str(error) else f"not a sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def strike_at(number: int, folder: Path, kill: bool) -> Callable[[], int]:
    """In a child: at call `number` of those that write in a folder, die, or fail once as on a full disk.

    Python tells its audit hooks about opens, renames, removals and so on before it does them; fsync is wrapped.
    Returns a function that returns the number of such calls so far.
    """
    calls, last = itertools.count(1), [0]

    def strike(removes: bool = False) -> None:
        last[0] = next(calls)
        if last[0] == number and kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if last[0] == number and not removes:  # removing files works on a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hook(event: str, arguments: tuple) -> None:
        opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (opens or event in WRITING) and str(folder) in f"{arguments[0]}{arguments[1:2]}":
            strike(event in ("os.remove", "os.rmdir"))

    fsync = os.fsync
    os.fsync = lambda descriptor: (strike(), fsync(descriptor))[1]
    sys.addaudithook(hook)
    return lambda: last[0]
