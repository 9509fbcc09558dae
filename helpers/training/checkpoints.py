"""What survives a kill: checkpoints, each written whole or not at all, the one before it kept, read only if undamaged."""

import hashlib
import io
import os
import shutil
from pathlib import Path

import torch

from helpers.runtime import UserError


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return checkpoint.with_name(f"{checkpoint.stem}.previous{checkpoint.suffix}")


def save_checkpoint(state: dict, checkpoint: Path, mirror: Path | None = None) -> None:
    """Write a checkpoint whole or not at all: temporary file, fsync, rename. The one before it is kept.

    The file is the SHA-256 of what follows, as 64 hexadecimal digits, then what `torch.save` writes.

    Raises:
        UserError: the folder cannot be written or the disk is full; the earlier checkpoint is still there.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    temporary = checkpoint.with_name(checkpoint.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(payload).hexdigest().encode())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if checkpoint.exists():
            os.replace(checkpoint, previous(checkpoint))
        os.replace(temporary, checkpoint)
        if mirror:
            mirror.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint, mirror / temporary.name)
            os.replace(mirror / temporary.name, mirror / checkpoint.name)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"The checkpoint {checkpoint.name} could not be written ({error.strerror}); "
            "free some space or choose another folder with --checkpoint-dir, then run the same again to go on."
        ) from error


def load_checkpoint(checkpoint: Path, mirror: Path | None = None) -> dict | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Raises:
        UserError: there are checkpoints, and none of them is whole.
    """
    candidates = [checkpoint, previous(checkpoint)] + ([mirror / checkpoint.name] if mirror else [])
    found = [path for path in candidates if path.exists()]
    for path in found:
        blob = path.read_bytes()
        if hashlib.sha256(blob[64:]).hexdigest().encode() == blob[:64]:
            return torch.load(io.BytesIO(blob[64:]), map_location="cpu", weights_only=True)
        print(f"The checkpoint {path.name} is damaged; trying the one before it.")
    if found:
        raise UserError(f"No checkpoint beside {checkpoint.name} is whole; start over with --fresh (resume=False).")
    return None
