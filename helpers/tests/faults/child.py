"""A piece of work in a process of its own, faults injected into it, and what its end may look like."""

import errno
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from helpers.__main__ import main
from helpers.runtime import UserError

WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}


@dataclass(frozen=True)
class Effort:
    """How much is tried: random kills of the real command, and the share of the other cases."""

    rounds: int
    share: float
    folder: Path
    random: Random = field(default_factory=Random)
    known: dict = field(default_factory=dict)

    def some(self, cases: list, least: int = 3) -> list:
        """So many of the cases, in their order."""
        count = min(len(cases), max(least, round(self.share * len(cases))))
        return [cases[place] for place in sorted(self.random.sample(range(len(cases)), count))]

    def fresh(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status (negative: by that signal; None: it took too long), and what it printed."""

    status: int | None
    out: str
    err: str


class Child:
    """A forked process at some work, which may return an exit status."""

    def __init__(self, work: Callable[[], int | None], memory: int | None = None):
        self.files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self.pid = os.fork()
        if self.pid == 0:
            self._work(work, memory)

    def _work(self, work, memory) -> None:
        status = 99
        try:
            for number, file in enumerate(self.files, 1):
                os.dup2(file.fileno(), number)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")
            sys.dont_write_bytecode = True
            os.environ["CI"] = "true"
            torch.set_num_threads(1)  # the parent's pool of threads does not outlive a fork
            if memory:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
            status = work() or 0
        except SystemExit as error:
            status = error.code or 0
        except UserError as error:
            print(error, file=sys.stderr)
            status = 1
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def wait(self, seconds: float = 60.0) -> Ended:
        """Its end; after so many seconds it is killed."""
        end = time.monotonic() + seconds
        while (done := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Ended(None, *self._printed())
            time.sleep(0.002)
        return Ended(os.waitstatus_to_exitcode(done[1]), *self._printed())

    def _printed(self) -> list[str]:
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return texts


def command(*arguments) -> Callable[[], int]:
    """The work of a command line."""
    return lambda: main([*map(os.fsdecode, map(os.fspath, map(_text, arguments)))])


def _text(argument):
    return argument if isinstance(argument, str | bytes | Path) else str(argument)


def complaint(ended: Ended, *statuses: int) -> str | None:
    """What is wrong with an end, or None: status 0 (or one of those given), or status 1 with one sentence."""
    said = [line for line in ended.err.splitlines() if line.strip()]
    if ended.status is None:
        return "it hangs"
    if "Traceback" in ended.err or "MemoryError" in ended.err + ended.out:
        return f"a traceback: {said[-1]}"
    if ended.status not in (0, 1, *statuses):
        return f"it ends with status {ended.status}: {said[-1] if said else ''}"
    if ended.status == 1 and (len(said) != 1 or "No such file or directory; free" in said[0]):
        return f"not one clear sentence but {said}"
    return None


def strike_at(number: int, folder: Path, kill: bool) -> Callable[[], int]:
    """In a child: at the so-many-th call that writes under a folder, die, or fail once as on a full disk.

    Python announces opens, renames, removals and so on to its audit hooks before it makes them; fsync is wrapped.
    Returns what tells how many such calls there were.
    """
    calls, last = itertools.count(1), [0]

    def strike(removes: bool = False) -> None:
        last[0] = next(calls)
        if last[0] == number and kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if last[0] == number and not removes:  # a full disk lets files go
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hook(event: str, arguments: tuple) -> None:
        opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (opens or event in WRITING) and str(folder) in f"{arguments[0]}{arguments[1:2]}":
            strike(event in ("os.remove", "os.rmdir"))

    fsync = os.fsync
    os.fsync = lambda descriptor: (strike(), fsync(descriptor))[1]
    sys.addaudithook(hook)
    return lambda: last[0]


def limit_file_size(size: int, kill: bool = False) -> None:
    """In a child: no file grows over so many bytes; a write that would fails, or kills in its middle."""
    if kill:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
