"""Read images from files and the web safely, whatever is wrong with them."""

import os
import socket
import ssl
import stat
import threading
import warnings
from concurrent.futures import Future
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from ipaddress import IPv4Address, IPv6Network, ip_address
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import torch
from torch import Tensor

from helpers.data.photographs import decode_photograph
from helpers.data.pools import printable, why
from helpers.runtime import require

LARGEST_DOWNLOAD = 32 * 2**20  # bytes
LARGEST_FILE = 256 * 2**20  # bytes
LONGEST_DOWNLOAD = 20.0  # seconds in all: name lookups, connections, redirects, headers and content
REDIRECTS = 5
SAFE = "/%:@!$&'()*+,;=~?"  # characters of a path and a query that need no escape
LOCAL = IPv6Network("fec0::/10"), IPv6Network("64:ff9b:1::/48")  # not public, but global to some versions of Python
TRANSLATED = IPv6Network("64:ff9b::/96")  # IPv4 addresses embedded in IPv6, for IPv6-only networks (RFC 6052)


def is_address(source: str) -> bool:
    """Whether a source is an http:// or https:// address rather than a file."""
    return source.lower().startswith(("http://", "https://"))


def read_image(source: str | Path, size: int, name: str | None = None, *, resize: str = "crop") -> Tensor:
    """Read an image from a file or address as in training: uint8 (3, size, size), upright and in colour.

    Raises UserError, calling the image `name`, if it does not exist, cannot be reached or is not an image.
    """
    image, reason = try_image(str(source), size, resize)
    require(not reason, f"{name or printable(str(source))} cannot be classified: {reason}.")
    return image


def try_image(source: str, size: int, resize: str = "crop") -> tuple[Tensor | None, str]:
    """Like `read_image`, but return (image, "") or (None, the reason) instead of raising."""
    try:
        content = download(source) if is_address(source) else _read_file(source)
        with warnings.catch_warnings(action="ignore"):
            pixels, _ = decode_photograph(content, size, resize)
        return torch.from_numpy(pixels.copy()), ""
    except Exception as error:  # a broken file can make Pillow raise almost anything, and must not stop the other images
        return None, printable(" ".join(why(error).split()))


def _read_file(name: str) -> bytes:
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves ~name alone if there is no such user
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(f"it is larger than {LARGEST_FILE // 2**20} MiB")
    return path.read_bytes()


class Refused(OSError):
    """A download that failed or was refused; the message says why."""


def download(url: str) -> bytes:
    """Download a public address, following redirects; raises Refused, within `LONGEST_DOWNLOAD` seconds, if that fails."""
    answer, sockets = Future(), []

    def work() -> None:
        try:
            answer.set_result(_follow(url, sockets))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(LONGEST_DOWNLOAD)
    except Refused:
        raise
    except TimeoutError as error:
        raise Refused(f"it took longer than {LONGEST_DOWNLOAD:g} seconds") from error
    except Exception as error:
        raise Refused(f"it could not be reached ({error})") from error
    finally:
        for connection in sockets:  # unblocks the thread if it is still waiting
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _follow(url: str, sockets: list[socket.socket]) -> bytes:
    for _ in range(REDIRECTS + 1):
        response = _ask(url, sockets)
        if response.status in (301, 302, 303, 307, 308):  # http.client reads headers as ISO-8859-1
            url = urljoin(url, quote(response.headers.get("Location", ""), f"{SAFE}#[]", "iso-8859-1"))
            continue
        if response.status != 200:
            raise Refused(f"it could not be reached (HTTP Error {response.status}: {response.reason})")
        content = response.read(LARGEST_DOWNLOAD + 1)
        if len(content) > LARGEST_DOWNLOAD:
            raise Refused(f"it is larger than {LARGEST_DOWNLOAD // 2**20} MiB")
        return content
    raise Refused(f"it could not be reached (more than {REDIRECTS} redirects)")


def _ask(url: str, sockets: list[socket.socket]):
    """Send a GET request once the host's addresses are known to be public; returns the response."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"it could not be reached ('{url[:80]}' is not an http:// or https:// address)")
    is_https = parts.scheme == "https"
    port = parts.port or (443 if is_https else 80)
    found = [place[4][0] for place in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    if not all(map(is_public, found)):  # all of them, so that the reply reveals nothing about the private network
        raise Refused("its address is not a public one")
    connection = (HTTPSConnection if is_https else HTTPConnection)(parts.hostname, port)
    # Connect to the address that was checked: another lookup of the name could return a different one.
    connection.sock = socket.create_connection((found[0], port), timeout=LONGEST_DOWNLOAD)
    sockets.append(connection.sock)
    if is_https:
        host = {"server_hostname": parts.hostname, "do_handshake_on_connect": False}
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, **host)
        sockets.append(connection.sock)  # first, so that `download` can end a handshake that hangs
        connection.sock.do_handshake()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # Some servers refuse Python's default User-Agent.
    connection.request("GET", quote(target, SAFE), headers={"User-Agent": "Mozilla/5.0"})
    return connection.getresponse()


def is_public(address: str) -> bool:
    """Whether an IP address, in any notation, belongs to the public internet."""
    number = ip_address(address.partition("%")[0])
    if number.version == 6:
        translated = IPv4Address(int(number) & 0xFFFFFFFF) if number in TRANSLATED else None
        number = number.ipv4_mapped or number.sixtofour or translated or number
    return number.is_global and not number.is_multicast and not any(number in network for network in LOCAL)
