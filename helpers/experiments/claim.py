"""Claims: two programs never do the same run, and one that was killed holds nothing back."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from helpers.runtime import UserError

HEARTBEAT = 30.0  # seconds between two signs of life
STALE = 600.0  # seconds without one after which a program on another machine is taken for dead


class Taken(UserError):
    """Another program is at it."""


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold a file, such as a checkpoint or a record, for as long as the block runs, by a lock file beside it.

    On one machine the system's own lock decides, which goes when its process goes. Where several machines share the folder,
    the host, process and time in the lock file do: another machine's claim holds until `STALE` seconds after its last sign.

    Raises:
        Taken: another program holds it.
        UserError: the lock file cannot be written.
    """
    lock, done = path.with_name(f"{path.name}.lock"), threading.Event()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, path)
        _sign(file)
    except OSError as error:
        raise UserError(f"The lock file {lock.name} cannot be written ({error.strerror}); choose another folder.") from error

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            with suppress(OSError):  # a full disk; the system's lock still holds
                _sign(file)

    with file:
        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
            lock.unlink(missing_ok=True)


def _locked(lock: Path, path: Path) -> TextIO:
    """The lock file, opened and held."""
    while True:
        file, here, holder = os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o644), "r+"), socket.gethostname(), {}
        with suppress(ValueError, KeyError, TypeError):  # nobody has signed yet, or is at it
            sign = json.loads(file.read())
            holder = {"host": str(sign["host"]), "pid": int(sign["pid"]), "time": float(sign["time"])}
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = holder.get("host", here) != here and time.time() - holder["time"] < STALE
        except BlockingIOError:
            taken = True
        if not taken and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
        if taken:
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another program"
            raise Taken(f"{path.name} under {path.parent.name} is in use by {who}; wait for it, or stop it.")
        # Its last holder has removed it since it was opened.


def _sign(file: TextIO) -> None:
    """Say who holds the lock file, and when: seconds since 1970."""
    file.seek(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}))
    file.truncate()
