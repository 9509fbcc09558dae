"""Checkpoints: written atomically, with the previous one kept, and loaded only if intact."""

import hashlib
import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from helpers.runtime import UserError

DIGEST = 64  # hexadecimal digits of a SHA-256, in front of the data from `torch.save`
_written: dict[Path, tuple] = {}  # checkpoints written by this process, as it left them: no need to verify those
MISFITS = (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, pickle.UnpicklingError)


def previous(checkpoint: Path) -> Path:
    """The path at which the previous checkpoint is kept."""
    return checkpoint.with_name(f"{checkpoint.stem}.previous{checkpoint.suffix}")


def temporary(checkpoint: Path) -> Path:
    """The path at which a checkpoint is written before it is renamed."""
    return checkpoint.with_name(checkpoint.name + ".tmp")


def save_checkpoint(state: dict, checkpoint: Path) -> None:
    """Write a checkpoint atomically: temporary file, fsync, rename. The previous one is kept if it is intact.

    A UserError if the folder is not writable or the disk is full; the previous checkpoint is still there.
    """
    torch.save(state, buffer := io.BytesIO())
    new = temporary(checkpoint)  # always the same name, so that kills leave at most one such file
    try:
        with open(new, "wb") as file:
            file.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if _written.get(checkpoint) == stamp(checkpoint) or _read(checkpoint):
            os.replace(checkpoint, previous(checkpoint))
        os.replace(new, checkpoint)
        _written[checkpoint] = stamp(checkpoint)
    except OSError as error:
        with suppress(OSError):  # the folder is gone, or read-only
            new.unlink()
        failed = f"The checkpoint {checkpoint.name} could not be written ({error.strerror})"
        mend = "free some space or choose another folder with --checkpoint-dir, then rerun to continue."
        raise UserError(f"{failed}; {mend}") from error


def copy_checkpoint(checkpoint: Path, mirror: Path) -> str | None:
    """Copy a checkpoint into another folder, atomically; returns the reason if that failed, else None.

    At most five folders are created, so that an unmounted Drive is not replaced by a local folder of the same name.
    """
    copy = mirror / temporary(checkpoint).name
    try:
        if not any(parent.is_dir() for parent in list(mirror.parents)[:5]):
            return "its folder is gone"
        mirror.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, copy)
        os.replace(copy, mirror / checkpoint.name)
    except OSError as error:
        with suppress(OSError):  # the folder itself is gone
            copy.unlink(missing_ok=True)
        return error.strerror or type(error).__name__
    return None


def load_checkpoint(
    checkpoint: Path, mirror: Path | None = None, accept: Callable[[dict], None] = lambda state: None, locked: bool = False
) -> dict | None:
    """Load the first intact checkpoint that fits: the checkpoint, its temporary file, the previous one, the mirror's copy.

    None if none exists; a UserError if none of them is intact and fits. `accept` takes over the state, or raises one of
    `MISFITS`. Only the program that has `locked` the run puts a temporary file, or the mirror's copy, in its place.
    """
    found = [path for path in (checkpoint, temporary(checkpoint), previous(checkpoint)) if path.exists()]
    if mirror and os.path.isfile(mirror / checkpoint.name):  # False too if the Drive is gone, where a Path may raise
        found.append(mirror / checkpoint.name)
    for path in found:
        reason = "is damaged"
        if (payload := _read(path)) is not None:
            try:
                with warnings.catch_warnings(action="ignore"):  # torch warns of pickled code, which it refuses anyway
                    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
                accept(state)
                if locked and path == temporary(checkpoint):
                    os.replace(path, checkpoint)  # or the next save would overwrite the only intact one
                elif locked and path.parent == mirror:
                    copy_checkpoint(path, checkpoint.parent)
                return state
            except MISFITS as error:
                words = str(error).strip().partition("\n")[0]
                reason = f"does not fit this run ({type(error).__name__}: {words})"
        print(f"The checkpoint {path.name} {reason}; trying another one.")
    if found and found != [temporary(checkpoint)]:  # a temporary file alone means a kill during the run's first save
        raise UserError(f"No intact copy of {checkpoint.name} fits this run; start over with --fresh (resume=False).")
    return None


def stamp(path: Path) -> tuple[int, ...]:
    """A file's inode, size and time of change, which tell whether it was rewritten; empty if there is no file."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def _read(path: Path) -> memoryview | None:
    """The data from `torch.save` in a checkpoint; None if it is missing, damaged or not a file."""
    try:
        blob = memoryview(path.read_bytes())
    except OSError:
        return None
    return blob[DIGEST:] if hashlib.sha256(blob[DIGEST:]).hexdigest().encode() == blob[:DIGEST] else None
