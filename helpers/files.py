"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when everything was written."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)  # still there only where something went wrong


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with _whole(path) as file:
        file.write(content)


def save_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    save_bytes(path, text.encode())


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as one compressed `.npz` file, whole or not at all."""
    with _whole(path) as file:
        np.savez_compressed(file, **arrays)
