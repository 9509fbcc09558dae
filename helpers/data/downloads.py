"""Download CIFAR from Hugging Face, else from the original server; a failed download leaves nothing behind."""

import errno
import os
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from importlib.util import find_spec
from pathlib import Path

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from helpers.data.pools import why
from helpers.runtime import UserError, progress

PARQUET = {  # the folders on Hugging Face, each at a fixed revision
    "cifar10": "uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text",
    "cifar100": "uoft-cs/cifar100/resolve/aadb3af77e9048adbea6b47c21a81e47dd092ae5/cifar100",
}
PATIENCE = 30  # seconds without a byte
BUSY, LATER = (429, 503), (5, 30)  # status codes of a busy server, and the seconds to wait before each retry
LONGEST_DOWNLOAD = 3 * 3600  # seconds; the original server needs 57 minutes at 50 kB a second


def fetch(name: str, published: type[CIFAR10], base: Path) -> None:
    """Download Parquet files into `base/name`, or else torchvision's pickle folder into `base`; a UserError if both fail."""
    before = "Hugging Face was not tried (it needs 'pip install pyarrow')"
    if find_spec("pyarrow"):
        try:
            return _fetch_parquet(name, base)
        except Exception as error:  # network or disk: either way, no data
            before = f"Hugging Face did not send uoft-cs/{name} ({type(error).__name__})"
    slow = "which has sent 50 to 80 kB a second since June 2026: it takes 36 to 57 minutes (pytorch/vision issue 9536)"
    print(f"{name}: {before}; trying the original server, {slow}.")
    try:
        _fetch_pickles(published, base)
    except Exception as error:  # network, disk, archive or checksums: in any case, no data
        failed = f"{before}, and the original server failed ({why(error).rstrip('.')}); try again with a network connection"
        instead = f"put {published.base_folder}/ or {name}/train/<class>/ and so on into the data folder yourself"
        raise UserError(f"{name} is not in the data folder, {failed}, or {instead}.") from error


def _fetch_parquet(name: str, base: Path) -> None:
    site = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as folder:
        part = Path(folder) / "parquet"
        part.mkdir()
        for file in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
            _copy(f"{site}/datasets/{PARQUET[name]}/{file}", part / file)
            if not (content := (part / file).read_bytes()).startswith(b"PAR1") or not content.endswith(b"PAR1"):
                raise OSError("what it sent is not a Parquet file")
        (base / name).mkdir(exist_ok=True)
        _move(part, base / name / part.name)


def _fetch_pickles(published: type[CIFAR10], base: Path) -> None:
    with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as folder, warnings.catch_warnings(action="ignore"):
        archive = Path(folder) / published.filename
        _copy(published.url, archive)
        if not check_integrity(archive, published.tgz_md5):
            raise OSError("the archive it sent is incomplete or damaged")
        published(folder, download=True)  # finds the archive and unpacks it
        _move(Path(folder) / published.base_folder, base / published.base_folder)


def _move(folder: Path, to: Path) -> None:
    """Rename a folder, unless another program has put the same download there in the meantime."""
    try:
        folder.rename(to)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _copy(url: str, path: Path) -> None:
    """Download a URL into a file; an OSError if the server is silent for `PATIENCE` or the download takes too long."""
    deadline = time.monotonic() + LONGEST_DOWNLOAD
    with _answer(url) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        for block in progress(iter(lambda: response.read(1024), b""), "downloading", size // 1024):  # in kB
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took longer than {LONGEST_DOWNLOAD / 3600:g} hours")
            file.write(block)
        if size and file.tell() != size:
            raise OSError("the download broke off")


def _answer(url: str):
    """Open a URL, retrying while the server is busy: Hugging Face limits requests from an address that many users share."""
    for pause in (*LATER, None):
        try:
            return urllib.request.urlopen(url, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            if error.code not in BUSY or pause is None:
                raise
        time.sleep(pause)
