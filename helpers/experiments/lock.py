"""Lock files that keep two programs from doing the same run, and that do not stay locked when a program is killed."""

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

HEARTBEAT = 30.0  # seconds between heartbeats
STALE = 600.0  # seconds without a heartbeat after which a program on another machine is presumed dead


class Taken(UserError):
    """Another program is working on it."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Lock a file, such as a checkpoint or a record, for as long as the block runs, with a lock file next to it.

    On one machine, the operating system's lock decides; it is released when its process ends. If several machines share the
    folder, the host and time in the lock file decide: a lock holds until `STALE` seconds after its last heartbeat.
    `Taken` if another program holds it; a UserError if the lock file cannot be written.
    """
    beside, done = path.with_name(f"{path.name}.lock"), threading.Event()
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(beside, path)
        _sign(file)
    except OSError as error:
        raise UserError(f"The lock file {beside.name} cannot be written ({error.strerror}); choose another folder.") from error

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
            with suppress(OSError):  # its folder is gone, which must not hide how the run ended
                beside.unlink()


def _locked(beside: Path, path: Path) -> TextIO:
    while True:
        file, here, holder = os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT, 0o644), "r+"), socket.gethostname(), {}
        with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):  # it is empty, or being written
            sign = json.loads(file.read())
            holder = {"host": str(sign["host"]), "pid": int(sign["pid"]), "time": float(sign["time"])}
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = holder.get("host", here) != here and abs(time.time() - holder["time"]) < STALE
        except BlockingIOError:
            taken = True
        if not taken and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
        if taken:
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another program"
            raise Taken(f"{path.name} under {path.parent.name} is in use by {who}; wait for it, or stop it.")
        # The last holder removed the file after it was opened here: try again.


def _sign(file: TextIO) -> None:
    """Write the holder's host and process, and the time in seconds since 1970, into the lock file."""
    sign = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}).encode()
    os.pwrite(file.fileno(), sign, 0)  # unbuffered: what a full disk refuses is not tried again when the file is closed
    os.ftruncate(file.fileno(), len(sign))
