"""Claims: two programs never do the same run, and one that was killed holds nothing back."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

    On one machine the system's own lock decides, which goes when its process goes, however that ends. Where several machines
    share the folder and its file system keeps locks to itself, the host, process and time in the lock file do.

    Raises:
        Taken: another program holds it.
        UserError: the lock file cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, path)
    except OSError as error:
        raise UserError(f"The lock file {lock.name} cannot be written ({error.strerror}); choose another folder.") from error
    done = threading.Event()
    with file:
        _sign(file)
        beating = threading.Thread(target=_beat, args=(file, done), daemon=True)
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
        file = os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_there(file, lock):  # its last holder has removed it since it was opened
                file.close()
                continue
            holder = _holder(file)
            if holder.get("host", socket.gethostname()) != socket.gethostname() and time.time() - holder["time"] < STALE:
                raise BlockingIOError
        except BlockingIOError as error:
            holder = _holder(file)
            file.close()
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another program"
            raise Taken(f"{path.name} under {path.parent.name} is in use by {who}; wait for it, or stop it.") from error
        return file


def _is_there(file: TextIO, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except FileNotFoundError:
        return False


def _holder(file: TextIO) -> dict:
    """Who signed the lock file last: `host`, `pid` and `time` in seconds since 1970; empty where nobody did."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return {"host": str(holder["host"]), "pid": int(holder["pid"]), "time": float(holder["time"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _sign(file: TextIO) -> None:
    file.seek(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}))
    file.truncate()


def _beat(file: TextIO, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        try:
            _sign(file)
        except OSError:  # a full disk; the system's lock still holds
            continue
