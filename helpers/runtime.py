"""The environment: folders, profile, device, precision, seeds, progress bars, user errors, atomic file writes."""

import ctypes
import errno
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("smoke", "quick", "full")


class UserError(Exception):
    """An error that the user can fix. Its text is one sentence: what is wrong, which value, what to do."""

    def _render_traceback_(self) -> list[str]:  # IPython shows this instead of a traceback
        return [str(self)]


def require(holds: object, sentence: str) -> None:
    """Raise a `UserError` with this sentence unless the condition holds."""
    if not holds:
        raise UserError(sentence)


def in_colab() -> bool:
    """Whether this process runs in Google Colab, not on Kaggle, whose image is built on Colab's."""
    return "KAGGLE_KERNEL_RUN_TYPE" not in os.environ and ("google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ)


def install_missing() -> None:
    """Install the missing packages that a notebook needs, but never torch or numpy."""
    needed = {"sklearn": "scikit-learn"} | {name: name for name in "torchsummary seaborn pandas scipy kagglehub".split()}
    if missing := [package for name, package in needed.items() if find_spec(name) is None]:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def under_test() -> bool:
    """Whether this process runs under pytest or in CI, where no progress bar is drawn."""
    return bool(os.environ.get("CI") or os.environ.get("PYTEST_CURRENT_TEST"))


def is_later_process() -> bool:
    """Whether torchrun started this process, and not as the first one, which alone prints."""
    return os.environ.get("RANK", "0") not in ("", "0")


def progress(iterable: Iterable, description: str, total: int | None = None, images: int | None = None) -> Iterable:
    """The iterable with a `tqdm` bar on stderr, which counts the `images` in each item if their number is given.
    Silent in CI, without tqdm, and in all but torchrun's first process.
    """
    if find_spec("tqdm") is None or is_later_process():
        return iterable
    from tqdm import tqdm

    unit = {"unit": " images", "unit_scale": images} if images else {}
    return tqdm(iterable, desc=description, total=total, leave=False, file=sys.stderr, disable=under_test(), **unit)


def parse_seeds(text: str) -> list[int]:
    """The seeds in a notebook's form field, such as `0, 1`, without duplicates; a UserError if the text is anything else."""
    parts = text.replace(",", " ").split()
    require(parts and all(part.isdecimal() for part in parts), f"SEEDS is '{text}'; write whole numbers, such as 0, 1.")
    return list(dict.fromkeys(map(int, parts)))


def data_dir(folder: str | Path | None = None) -> Path:
    """The data folder: the argument, else `$DATA_DIR`, else `data/` of the repository."""
    return Path(os.path.expanduser(folder or os.environ.get("DATA_DIR") or ROOT / "data"))


def choose_profile(name: str | None = None) -> str:
    """The profile to run: the argument, else `$PROFILE`, else `quick` on a GPU, else `smoke`; a UserError if unknown."""
    asked = name or os.environ.get("PROFILE")
    require(not asked or asked in PROFILES, f"There is no profile '{asked}'; choose one of {', '.join(PROFILES)}.")
    if torch.cuda.is_available() or asked in ("smoke", "full"):
        return asked or "quick"
    meaning = "hours on a CPU" if asked else "generated images, a minute; 'quick' trains on real ones, for hours"
    print(f"No GPU here: profile '{asked or 'smoke'}' ({meaning}). In Colab, choose Runtime → Change runtime type → T4 GPU.")
    return asked or "smoke"


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device: the argument (a UserError if this machine has no such device), else the first GPU, else the CPU."""
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cannot = f"Device '{name}' cannot be used on this machine; choose cpu, or cuda if there is a GPU."
    try:
        device = torch.device(name)
        require(device.type in ("cpu", "cuda"), cannot)  # mps, for one, has no float64, in which losses are summed
        torch.empty(1, device=device).item()
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # the one whose bf16 `autocast_dtype` asks about
    except (RuntimeError, AssertionError, ImportError) as error:  # a NotImplementedError is a RuntimeError
        raise UserError(cannot) from error
    return device


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that this device multiplies faster than fp32; None if mixed precision would only cost accuracy.

    A GPU gets bf16 if it is native (a T4 emulates it slowly), else fp16; a CPU gets bf16 only with AVX-512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = getattr(torch.cpu, "get_capabilities", dict)().get  # torch before 2.11 cannot tell: fp32
    return torch.bfloat16 if device.type == "cpu" and (has("avx512_bf16") or has("amx_bf16")) else None


def keep_freed_memory_in_process() -> bool:
    """Have the C library keep all memory that this process frees for its next step; returns whether that worked.

    By default glibc returns every large tensor's memory to the system, which must zero it page by page when the next step
    allocates it again: up to a third of a CPU training step. The three settings are those of `mallopt(3)`.
    """
    maximum_mappings, trim_threshold, top_pad = -4, -1, -2
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc: Windows, macOS, musl
        return False
    return all([mallopt(maximum_mappings, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 256 * 2**20)])


def seed_epoch(seed: int, epoch: int = 0) -> torch.Generator:
    """Seed Python, numpy and torch from (seed, epoch), and return a CPU generator seeded with the same pair.

    All randomness in an epoch comes from here, so an epoch rerun after a kill gives the same result.
    """
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def require_writable(folder: Path, option: str) -> None:
    """Create the folder if it is missing; a UserError if it is not writable: before hours of work, not after."""
    with writing(f"A file in {folder}", f"folder with {option}"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def environment(device: torch.device) -> dict:
    """A run's environment, for its record: device, versions, commit, whether `helpers` has changed since, and the UTC date."""
    changed = _git("status", "--porcelain", "--", "helpers")
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _git(*arguments: str) -> str | None:
    """Git's answer, asked for once: a process goes on running the code that it has loaded. None without git or a clone."""
    try:
        return subprocess.check_output(["git", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """The device in words, such as `NVIDIA T4` or `CPU, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()}, {threads} thread{'s' * (threads > 1)}"


def mount_drive(wanted: bool) -> Path | None:
    """Mount Google Drive and return this project's folder there; None if it is not wanted, or outside Colab."""
    if wanted and not in_colab():
        print("Not in Colab: nothing is copied to Google Drive.")
    if not (wanted and in_colab()):
        return None
    from google.colab import drive

    folder = Path("/content/drive/MyDrive/resnext-notebooks")
    if not folder.parent.is_dir():  # mounting twice would ask for permission twice
        drive.mount("/content/drive")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def writing(what: str, instead: str = "--results-dir") -> Iterator[None]:
    """Turn an OSError in the block into a UserError: what could not be written, and which option to change."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} could not be written ({error.strerror}); choose another {instead}.") from error


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only once everything has been written."""
    path = Path(os.path.realpath(path))  # follow a symbolic link instead of replacing it
    if path.exists() and not path.is_file():  # such as /dev/null, which root could replace
        raise OSError(errno.EINVAL, "it is not a file")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):  # a network drive may refuse it
                os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)  # it still exists only if something went wrong


def save_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with whole(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # JSON's escape of a name that is not UTF-8


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays atomically, as one compressed `.npz` file."""
    with whole(path) as file:
        np.savez_compressed(file, **arrays)
