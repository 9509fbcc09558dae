"""Hostile input: images, a server that misbehaves, command lines."""

import io
import os
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from helpers.demo import images as demo_images
from helpers.runtime import ROOT
from helpers.tests.faults.child import Child, Effort, command, complaint
from helpers.tests.faults.writing import EXPERIMENT, Cases

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options) -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 0) -> bytes:
    """A PNG from its chunks, whatever they say."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (head, *chunks)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def hostile_files() -> list[tuple[str, bytes]]:
    """Contents that are no image, a broken one, or one of an unusual kind."""
    files = [(f"{kind}, {tenth} tenths", data[: len(data) * tenth // 10]) for kind in FORMATS for tenth in (1, 4, 7, 9)
             for data in [picture(kind)]]  # fmt: skip
    files += [(f"{kind}, bytes altered", data[:60] + bytes(20) + data[80:]) for kind in FORMATS for data in [picture(kind)]]
    files += [(f"PNG in mode {mode}", picture("PNG", mode=mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    files += [("JPEG in CMYK", picture("JPEG", mode="CMYK")), ("TIFF of floats", picture("TIFF", mode="F"))]
    files += [(f"PNG of {size[0]}×{size[1]}", picture("PNG", size)) for size in ((1, 1), (1, 9000), (9000, 1), (2, 3))]
    rows = zlib.compress(bytes(9401 * 9400), 9)
    files += [("a small file of 9400×9400", png(9400, 9400, (b"IDAT", rows)))]
    files += [(f"PNG that says {side}", png(side, side, (b"IDAT", b""))) for side in (0, 2**16, 2**31 - 1)]
    text = b"a\0\0\0\0\0" + zlib.compress(bytes(2**28), 9)
    files += [
        (f"bomb in {name.decode()}", png(8, 8, (name, text), (b"IDAT", zlib.compress(bytes(72)))))
        for name in (b"iTXt", b"zTXt")
    ]
    files += [
        ("bomb in iCCP", png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 9)), (b"IDAT", zlib.compress(bytes(72)))))
    ]
    for orientation in (0, 5, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append((f"JPEG of orientation {orientation}", picture("JPEG", exif=exif)))
    files += [("JPEG with broken EXIF", picture("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))]
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:] * 50)
    files += [("GIF of many frames", buffer.getvalue()), ("GIF of many frames, cut", buffer.getvalue()[:300])]
    texts = (
        "",
        " ",
        "hello",
        "<svg xmlns='http://www.w3.org/2000/svg'/>",
        "<!DOCTYPE html>",
        "%PDF-1.4",
        "%!PS-Adobe-3.0 EPSF-3.0\n",
    )
    files += [(f"text {text[:12]!r}", text.encode()) for text in texts]
    starts = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"II*\0",
        b"\0" * 99,
        b"PK\3\4",
        b"\x7fELF",
    )
    return files + [(f"nothing after {start!r:.20}", start) for start in starts]


def hostile_paths(folder: Path) -> list[tuple[str, bytes | str]]:
    """Names of what is no file, not there, or cannot be a name."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "broken").symlink_to("nowhere")
    (folder / "tty").symlink_to("/dev/tty")
    (folder / "dir").mkdir()
    names = [str(folder / name) for name in ("fifo", "loop", "broken", "tty", "dir", "missing", "x" * 300, "dir/" * 2000)]
    names += ["/dev/zero", "/dev/null", "/dev/random", "~nouser/x", "~/nothing", "", ".", "/", "*", "\udcff", "a\nb", "é" * 200]
    names += [
        "file:///etc/passwd",
        "ftp://localhost/x",
        "http://",
        "https:///x",
        "http://[",
        "http://\n",
        "HTTP://256.1.1.1/",
        "data:,",
    ]
    return [(f"name {name[-20:]!r}", name) for name in names]


def images(effort: Effort, whole: Path) -> Cases:
    """Each in a batch with a good image, which must be labelled whatever the other one is, in a gigabyte and 20 seconds."""
    folder, good = effort.fresh(), whole / "image.png"
    cases = hostile_paths(folder)
    for number, (name, content) in enumerate(hostile_files()):
        (folder / f"{number}.bin").write_bytes(content)
        cases.append((name, str(folder / f"{number}.bin")))
    for number, (name, source) in enumerate(effort.some(cases, least=25)):
        table = folder / f"{number}.csv"
        work = command("classify", source, good, "--model", whole / "model", "--csv", table)
        wrong = complaint(Child(work, memory=2**30).wait(20))
        if not wrong and (
            not table.exists() or not any("good.png" in row or "image.png" in row for row in table.read_text().splitlines())
        ):
            wrong = "the good image was not labelled"
        yield name, wrong


def respond(body: bytes = b"", head: str = "HTTP/1.1 200 OK\r\n", more: str = "") -> Callable[[socket.socket], None]:
    """A behaviour that answers at once."""
    return lambda client: client.sendall(f"{head}{more}\r\n".encode() + body)


def drip(client: socket.socket, start: bytes, piece: bytes, pause: float) -> None:
    """Send a start, then pieces without an end."""
    client.sendall(start)
    while not threading.Event().wait(pause):
        client.sendall(piece)


def behaviours(port: int) -> dict[str, Callable[[socket.socket], None]]:
    """The ways in which the server misbehaves."""
    image, ok = picture(), b"HTTP/1.1 200 OK\r\n\r\n"
    moved = "HTTP/1.1 302 Found\r\n"
    return {
        "hangs up": lambda client: None,
        "says nothing": lambda client: threading.Event().wait(60),
        "one byte a second": lambda client: drip(client, ok, b"x", 0.2),
        "headers one byte a second": lambda client: drip(client, b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.2),
        "headers without end": lambda client: drip(client, b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 999, 0),
        "a body without end": lambda client: drip(client, ok, bytes(2**16), 0),
        "no HTTP": respond(b"", "SSH-2.0\r\n"),
        "a status of letters": respond(image, "HTTP/1.1 abc\r\n"),
        "404": respond(image, "HTTP/1.1 404 Not Found\r\n"),
        "500": respond(image, "HTTP/1.1 500 No\r\n"),
        "204": respond(b"", "HTTP/1.1 204 No Content\r\n"),
        "a page": respond(b"<html>"),
        "an empty body": respond(b"", more="Content-Length: 0\r\n"),
        "less than it says": respond(image[:99], more=f"Content-Length: {len(image)}\r\n"),
        "a length of letters": respond(image, more="Content-Length: abc\r\n"),
        "a negative length": respond(image, more="Content-Length: -5\r\n"),
        "a length of petabytes": respond(image, more=f"Content-Length: {10**15}\r\n"),
        "broken chunks": respond(b"zz\r\nhello", more="Transfer-Encoding: chunked\r\n"),
        "a circle": respond(
            more=f"Location: http://example.org:{port}/a circle\r\n".replace(" circle", "%20circle"), head=moved
        ),
        "to a file": respond(more="Location: file:///etc/passwd\r\n", head=moved),
        "to nowhere": respond(more="Location: http://[\r\n", head=moved),
    }


class Server:
    """A server on loopback that answers each path with its behaviour, and notes what was asked of it."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.asked = self.listener.getsockname()[1], []
        self.behaviours = behaviours(self.port)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            try:
                path = client.recv(4096).decode(errors="replace").split()[1].strip("/")
                self.asked.append(path)
                self.behaviours.get(unquote(path), respond(picture()))(client)
            except (OSError, IndexError):
                pass


LOOPBACK = (
    "127.0.0.1",
    "localhost",
    "0",
    "0.0.0.0",
    "2130706433",
    "127.1",
    "0x7f000001",
    "0177.0.0.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
)


def servers(effort: Effort, whole: Path) -> Cases:
    """No address of this machine is asked; and where a server that may be asked misbehaves: an image, or why not, in time."""
    server = Server()
    for host in LOOPBACK:
        ended = Child(command("classify", f"http://{host}:{server.port}/secret", "--model", whole / "model")).wait(25)
        yield f"{host} is not asked", complaint(ended) or ("it was asked" if server.asked or ended.status == 0 else None)
        server.asked.clear()
    for name in server.behaviours:

        def work(name=name) -> int:
            demo_images.LONGEST_DOWNLOAD = 1.0
            image, reason = demo_images.try_image(f"http://127.0.0.1:{server.port}/{quote(name)}", 64, private=True)
            return int((image is None) != bool(reason)) * 3

        yield name, complaint(Child(work).wait(10))
    server.listener.close()


def lines() -> Iterator[tuple]:
    """Command lines that are wrong in some way, or ask for little."""
    smoke = ("run", EXPERIMENT, "--profile", "smoke", "--checkpoint-dir", "c")
    commands = ("list", "run", "table", "bench", "save", "classify", "colab")
    yield from [(), ("--help",), ("nonsense",), ("",), ("--version",), ("-x",), ("list", "list"), ("LIST",), ("\udcff",)]
    yield from [(name, option) for name in commands for option in ("--help", "--nonsense", "--results-dir", "-", "é" * 300)]
    for name in (
        "nonsense",
        "",
        "../..",
        "cifar100",
        "cifar100/",
        "/cifar100/zoo_resnext1",
        "pikachu/*",
        "x" * 5000,
        "\udcff",
        "a\nb",
    ):
        yield from [("run", name, "--profile", "smoke"), ("save", name, "file"), ("bench", name), ("colab", name)]
    for option in ("--seed", "--epochs", "--time-budget", "--profile", "--device", "--results-dir", "--checkpoint-dir"):
        for value in ("nonsense", "/dev/null/x", "\udcff", "-", "1" * 400):
            yield (*smoke, option, value)
    for device in ("hpu", "meta", "cuda:99", "mps", "xla", "tpu", "-1", "vulkan"):
        yield from [(*smoke, "--device", device), ("bench", "--device", device)]
    for folder in ("/dev/null", "/nowhere/at/all", "~nouser/x", "/proc", "x" * 300):
        yield from [("table", "--results-dir", folder), ("list", "--report", folder), ("run", "--missing", "--dataset", folder)]
    for file in ("/dev/null/x", "/", "/nowhere/x.json", "/dev/full"):
        yield from [("bench", "nonsense", "--json", file), ("bench", "--batch", "0", "--json", file)]
    for batch in ("0", "-1", "x", "1" + "0" * 20):
        yield ("bench", "resnext29_32x4d", "nonsense", "--batch", batch)
    for minutes in ("0", "-1", "nan", "inf", "x"):
        yield ("run", "--missing", "--report", "speed", "--profile", "smoke", "--minutes", minutes)
    for model in ("/dev/null", "/", "", "missing", "/dev/zero", "/etc/passwd", "~nouser/x"):
        yield ("classify", "image.png", "--model", model)


def command_lines(effort: Effort, whole: Path) -> Cases:
    """Each ends with status 0, or 1 and a sentence, soon, and writes nothing into the repository."""
    for line in effort.some(list(lines()), least=40):
        folder = effort.fresh()

        def work(line=line, folder=folder) -> int:
            os.chdir(folder)
            os.environ |= {"HOME": str(folder), "DATA_DIR": str(folder)}

            def guard(event: str, arguments: tuple) -> None:
                if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(str(ROOT)):
                    raise RuntimeError(f"it writes {arguments[0]}")

            sys.addaudithook(guard)
            return command(*line)()

        yield f"{line!r:.90}", complaint(Child(work, memory=2**31).wait(30))
