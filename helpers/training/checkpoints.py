"""What survives a kill: checkpoints, each written whole or not at all, the one before it kept, read only if undamaged."""

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

DIGEST = 64  # hexadecimal digits of a SHA-256, in front of what `torch.save` writes
_written: dict[Path, tuple] = {}  # the checkpoints of this process, as it left them: no need to read those again
MISFITS = (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, pickle.UnpicklingError)


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return checkpoint.with_name(f"{checkpoint.stem}.previous{checkpoint.suffix}")


def temporary(checkpoint: Path) -> Path:
    """Where a checkpoint is written before it takes its name."""
    return checkpoint.with_name(checkpoint.name + ".tmp")


def save_checkpoint(state: dict, checkpoint: Path) -> None:
    """Write a checkpoint whole or not at all: temporary file, fsync, rename. The one before it is kept if it is whole.

    Raises:
        UserError: the folder cannot be written or the disk is full; the earlier checkpoint is still there.
    """
    torch.save(state, buffer := io.BytesIO())
    new = temporary(checkpoint)  # always the same, so that kills leave one such file at most
    try:
        with open(new, "wb") as file:
            file.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if _written.get(checkpoint) == _stamp(checkpoint) or _read(checkpoint):
            os.replace(checkpoint, previous(checkpoint))
        os.replace(new, checkpoint)
        _written[checkpoint] = _stamp(checkpoint)
    except OSError as error:
        new.unlink(missing_ok=True)
        failed = f"The checkpoint {checkpoint.name} could not be written ({error.strerror})"
        mend = "free some space or choose another folder with --checkpoint-dir, then run the same again to go on."
        raise UserError(f"{failed}; {mend}") from error


def copy_checkpoint(checkpoint: Path, mirror: Path) -> str | None:
    """Copy a checkpoint into another folder, whole or not at all; returns why it could not be, or None.

    Five folders are made at most: a Drive that is no longer mounted is not replaced by a folder of its name.
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
    checkpoint: Path, mirror: Path | None = None, accept: Callable[[dict], None] = lambda state: None
) -> dict | None:
    """The first that is whole and fits: checkpoint, temporary file, the one before, the mirror's copy; None where none exists.

    `accept` takes the state over, and raises one of `MISFITS` where it does not fit.

    Raises:
        UserError: there are checkpoints, and none of them is whole and fits.
    """
    found = [path for path in (checkpoint, temporary(checkpoint), previous(checkpoint)) if path.exists()]
    if mirror and (mirror / checkpoint.name).is_file():
        found.append(mirror / checkpoint.name)
    for path in found:
        reason = "is damaged"
        if (payload := _read(path)) is not None:
            try:
                with warnings.catch_warnings(action="ignore"):  # torch remarks on pickled code, which it refuses anyway
                    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
                accept(state)
                if path == temporary(checkpoint):
                    os.replace(path, checkpoint)  # or the next one would be written over the only whole one
                return state
            except MISFITS as error:
                words = str(error).strip().partition("\n")[0]
                reason = f"does not fit this run ({type(error).__name__}: {words})"
        print(f"The checkpoint {path.name} {reason}; trying another one.")
    if found and found != [temporary(checkpoint)]:  # the first one of a run was being written when it was killed
        raise UserError(f"No checkpoint beside {checkpoint.name} is whole and fits; start over with --fresh (resume=False).")
    return None


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written again; empty where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def _read(path: Path) -> memoryview | None:
    """What `torch.save` wrote into a checkpoint, or None where it is not there, damaged or no file."""
    try:
        blob = memoryview(path.read_bytes())
    except OSError:
        return None
    return blob[DIGEST:] if hashlib.sha256(blob[DIGEST:]).hexdigest().encode() == blob[:DIGEST] else None
