"""Images from files and from the web, whatever is wrong with them."""

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
from helpers.data.pools import why
from helpers.runtime import require

LARGEST_DOWNLOAD = 32 * 2**20  # bytes
LARGEST_FILE = 256 * 2**20  # bytes
LONGEST_DOWNLOAD = 20.0  # seconds, for names, connections, redirects, headers and content together
REDIRECTS = 5
TRANSLATED = IPv6Network("64:ff9b::/96")  # IPv4 addresses as IPv6-only networks write them (RFC 6052)


def is_address(source: str) -> bool:
    """Whether a source is an http:// or https:// address, and not a file."""
    return source.lower().startswith(("http://", "https://"))


def read_image(source: str | Path, size: int, name: str | None = None, *, resize: str = "crop") -> Tensor:
    """An image file or address as in training: uint8 (3, size, size), upright and in colour.

    A UserError, which calls it `name`, where it is not there, cannot be reached, or is no image.
    """
    image, reason = try_image(str(source), size, resize)
    require(not reason, f"{name or printable(str(source))} cannot be classified: {reason}.")
    return image


def try_image(source: str, size: int, resize: str = "crop") -> tuple[Tensor | None, str]:
    """(image, "") or (None, why not), as `read_image`."""
    try:
        content = download(source) if is_address(source) else _read_file(source)
        with warnings.catch_warnings(action="ignore"):
            pixels, _ = decode_photograph(content, size, resize)
        return torch.from_numpy(pixels.copy()), ""
    except Exception as error:  # a broken file can make Pillow raise nearly anything, and the other images must go on
        return None, printable(" ".join(why(error).split()))


def printable(text: str) -> str:
    """The text in one line, with escapes for what cannot be printed, such as odd bytes in the name of a file."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _read_file(name: str) -> bytes:
    path = Path(os.path.expanduser(name))  # which leaves the home folder of nobody as it is
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(f"it is larger than {LARGEST_FILE // 2**20} MiB")
    return path.read_bytes()


class Refused(OSError):
    """What a server does not give; its text says why."""


def download(url: str) -> bytes:
    """The content at a public address, through every redirect; else Refused, after `LONGEST_DOWNLOAD` at the latest."""
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
        for connection in sockets:  # ends the work, should it still wait
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _follow(url: str, sockets: list[socket.socket]) -> bytes:
    for _ in range(REDIRECTS + 1):
        response = _ask(url, sockets)
        if response.status in (301, 302, 303, 307, 308):
            url = urljoin(url, response.headers.get("Location", ""))
            continue
        if response.status != 200:
            raise Refused(f"it could not be reached (HTTP Error {response.status}: {response.reason})")
        content = response.read(LARGEST_DOWNLOAD + 1)
        if len(content) > LARGEST_DOWNLOAD:
            raise Refused(f"it is larger than {LARGEST_DOWNLOAD // 2**20} MiB")
        return content
    raise Refused(f"it could not be reached (more than {REDIRECTS} redirects)")


def _ask(url: str, sockets: list[socket.socket]):
    """The response of the server at an address, once the address is known to be public."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"it could not be reached ('{url[:80]}' is no http:// or https:// address)")
    is_https = parts.scheme == "https"
    port = parts.port or (443 if is_https else 80)
    found = [place[4][0] for place in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    if not all(map(is_public, found)):  # all of them, so that no answer tells what is inside
        raise Refused("its address is not a public one")
    connection = (HTTPSConnection if is_https else HTTPConnection)(parts.hostname, port)
    # The address that was checked is the one that is used: a name could mean another one the next time.
    connection.sock = socket.create_connection((found[0], port), timeout=LONGEST_DOWNLOAD)
    sockets.append(connection.sock)
    if is_https:
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=parts.hostname)
        sockets.append(connection.sock)
    target = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
    # Some servers refuse Python's own name.
    connection.request("GET", quote(target, safe="/%:@!$&'()*+,;=~?"), headers={"User-Agent": "Mozilla/5.0"})
    return connection.getresponse()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, whichever way it is written."""
    number = ip_address(address.partition("%")[0])
    if number.version == 6:
        translated = IPv4Address(int(number) & 0xFFFFFFFF) if number in TRANSLATED else None
        number = number.ipv4_mapped or number.sixtofour or translated or number
    return number.is_global and not number.is_multicast
