"""Hostile input: images, a server that misbehaves, command lines."""

import io
import os
import socket
import socketserver
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from helpers.demo import images as demo_images
from helpers.runtime import ROOT
from helpers.tests.faults.child import EXPERIMENT, Cases, Child, Effort, command, complaint

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0", b"PK\3\4", b"\x7fELF", b"")
TEXTS = ("hello", "<svg xmlns='http://www.w3.org/2000/svg'/>", "<!DOCTYPE html>", "%PDF-1.4", "%!PS-Adobe-3.0 EPSF-3.0\n")
NAMES = ["/dev/zero", "/dev/null", "/dev/random", "~nouser/x", "~/nothing", "", ".", "/", "*", "\udcff", "a\nb", "é" * 200]
ADDRESSES = "file:///etc/passwd ftp://localhost/x http:// https:///x http://[ HTTP://256.1.1.1/ data:,".split()
LOOPBACK = "127.0.0.1 localhost 0 0.0.0.0 2130706433 127.1 0x7f000001 0177.0.0.1 [::1] [::ffff:127.0.0.1]".split()


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options) -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def png(side: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A greyscale PNG made of these chunks, whether or not they are valid."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, text in ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), *chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
    return content


def tiff(tags: int, size: int) -> bytes:
    """A grey TIFF of 8×8 pixels with so many more tags, all of which share the same `size` bytes."""
    fields = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1)]
    fields += [(278, 4, 1, 8), (279, 4, 1, 64), *((1000 + number, 7, size, 8) for number in range(tags))]
    written = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", len(fields)) + written + bytes(4)


def hostile_files() -> list[tuple[str, bytes]]:
    """File contents that are not an image, or are a broken or unusual one."""
    whole = {kind: picture(kind) for kind in FORMATS}
    files = [(f"{kind}, bytes altered", data[:60] + bytes(20) + data[80:]) for kind, data in whole.items()]
    for tenth in (1, 4, 7, 9):
        files += [(f"{kind}, cut to {tenth} tenths", data[: len(data) * tenth // 10]) for kind, data in whole.items()]
    files += [(f"PNG in mode {mode}", picture(mode=mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    files += [("JPEG in CMYK", picture("JPEG", mode="CMYK")), ("TIFF of floats", picture("TIFF", mode="F"))]
    files += [(f"PNG of {size[0]}×{size[1]}", picture(size=size)) for size in ((1, 1), (1, 9000), (9000, 1), (2, 3))]
    files += [("a small file that decodes to 9400×9400", png(9400, (b"IDAT", zlib.compress(bytes(9401 * 9400), 9))))]
    files += [(f"PNG that claims to be {side} pixels wide", png(side, (b"IDAT", b""))) for side in (0, 2**16, 2**31 - 1)]
    zeros, rows = zlib.compress(bytes(2**28), 1), (b"IDAT", zlib.compress(bytes(72)))
    starts = {b"iTXt": b"a\0\1\0\0\0", b"zTXt": b"a\0\0", b"iCCP": b"a\0\0"}
    files += [(f"bomb in {name.decode()}", png(8, (name, start + zeros), rows)) for name, start in starts.items()]
    shared = tiff(60_000, 2**20)
    files += [("TIFF whose 60,000 tags share 1 MiB", shared), ("the same as EXIF of a PNG", png(8, rows, (b"eXIf", shared)))]
    for orientation in (0, 5, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append((f"JPEG of orientation {orientation}", picture("JPEG", exif=exif)))
    files += [("JPEG with broken EXIF", picture("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))]
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:] * 50)
    files += [("GIF of many frames", buffer.getvalue()), ("GIF of many frames, cut", buffer.getvalue()[:300])]
    files += [(f"text {text[:12]!r}", text.encode()) for text in TEXTS]
    return files + [(f"nothing after {start!r}", start) for start in STARTS]


def hostile_paths(folder: Path) -> list[tuple[str, str]]:
    """Paths that are not files, do not exist, or cannot be names."""
    os.mkfifo(folder / "fifo")
    for link, target in (("loop", folder / "loop"), ("broken", "nowhere"), ("tty", "/dev/tty")):
        (folder / link).symlink_to(target)
    (folder / "dir").mkdir()
    names = [str(folder / name) for name in ("fifo", "loop", "broken", "tty", "dir", "missing", "x" * 300, "dir/" * 2000)]
    return [(f"name {name[-20:]!r}", name) for name in (*names, *NAMES, *ADDRESSES, "http://\n")]


def images(effort: Effort, whole: Path) -> Cases:
    """Classify each beside a good image, which must be labelled whatever the other is, within 1 GiB and 20 CPU seconds."""
    folder = effort.fresh()
    cases = hostile_paths(folder)
    for number, (name, content) in enumerate(hostile_files()):
        (folder / f"{number}.bin").write_bytes(content)
        cases.append((name, str(folder / f"{number}.bin")))
    for name, source in effort.some(cases, least=25):
        table = folder / "table.csv"
        table.unlink(missing_ok=True)
        work = command("classify", source, whole / "image.png", "--model", whole / "model", "--csv", table)
        wrong = complaint(Child(work, memory=2**30, cpu=20).wait())
        labelled = table.exists() and any("image.png" in row for row in table.read_text().splitlines())
        yield name, wrong or (None if labelled else "the good image was not labelled")


def respond(body: bytes = b"", head: str = "HTTP/1.1 200 OK", more: str = "") -> Callable[[socket.socket], None]:
    """A behaviour that answers at once."""
    return lambda client: client.sendall(f"{head}\r\n{more}\r\n".encode() + body)


def drip(start: bytes, piece: bytes, pause: float) -> Callable[[socket.socket], None]:
    """A behaviour that sends a start, then pieces for ever."""

    def behave(client: socket.socket) -> None:
        client.sendall(start)
        while not threading.Event().wait(pause):
            client.sendall(piece)

    return behave


def behaviours() -> dict[str, Callable[[socket.socket], None]]:
    """The ways in which the server misbehaves."""
    image, line = picture(), b"HTTP/1.1 200 OK\r\n"
    moves = {"loop": "/redirect%20loop", "to a file": "file:///etc/passwd", "to nowhere": "http://[", "to no address": ""}
    lengths = {"less than it promised": len(image), "a length of letters": "abc", "a negative length": -5, "petabytes": 10**15}
    statuses = ("abc", "404 Not Found", "500 No", "204 No Content", "-1 No")
    return {
        "hangs up": lambda client: None,
        "says nothing": lambda client: threading.Event().wait(60),
        "a slow body": drip(line + b"\r\n", b"x", 0.2),
        "slow headers": drip(line + b"X: ", b"x", 0.2),
        "endless headers": drip(line, b"X: y\r\n" * 999, 0),
        "an endless body": drip(line + b"\r\n", bytes(2**16), 0),
        "not HTTP": respond(b"", "SSH-2.0"),
        "a page": respond(b"<html>"),
        "an empty body": respond(b"", more="Content-Length: 0\r\n"),
        "broken chunks": respond(b"zz\r\nhello", more="Transfer-Encoding: chunked\r\n"),
        **{f"status {status}": respond(image, f"HTTP/1.1 {status}") for status in statuses},
        **{name: respond(image[:99], more=f"Content-Length: {length}\r\n") for name, length in lengths.items()},
        **{f"redirect {name}": respond(b"", "HTTP/1.1 302 Found", f"Location: {place}\r\n") for name, place in moves.items()},
    }


class Server(socketserver.ThreadingTCPServer):
    """A server on loopback that answers each path with its behaviour, and records the paths requested."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), None)
        self.port, self.asked, self.behaviours = self.server_address[1], [], behaviours()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, client: socket.socket, _) -> None:
        with suppress(OSError, IndexError):
            path = unquote(client.recv(4096).decode(errors="replace").split()[1].strip("/"))
            self.asked.append(path)
            self.behaviours.get(path, respond(picture()))(client)


def servers(effort: Effort, whole: Path) -> Cases:
    """No address of this machine is requested; from a misbehaving server comes an image or a reason why not, in time."""
    server = Server()
    for host in LOOPBACK:
        ended = Child(command("classify", f"http://{host}:{server.port}/secret", "--model", whole / "model")).wait()
        yield f"{host} gets no request", complaint(ended) or ("it got one" if server.asked or ended.status == 0 else None)
        server.asked.clear()
    for name in server.behaviours:

        def work(name=name) -> int:
            demo_images.LONGEST_DOWNLOAD = 0.3
            demo_images.is_public = lambda address: True
            image, reason = demo_images.try_image(f"http://127.0.0.1:{server.port}/{quote(name)}", 64)
            return int((image is None) != bool(reason)) * 3

        yield f"a server: {name}", complaint(Child(work).wait())
    server.shutdown()


def lines() -> Iterator[tuple]:
    """Command lines that are wrong in some way, or that do little."""
    smoke = ("run", EXPERIMENT, "--profile", "smoke", "--checkpoint-dir", "c")
    yield from [(), ("--help",), ("nonsense",), ("",), ("--version",), ("-x",), ("list", "list"), ("LIST",), ("\udcff",)]
    for name in ("list", "run", "table", "bench", "save", "classify", "evaluate", "colab"):
        yield from [(name, option) for option in ("--help", "--nonsense", "--results-dir", "-", "é" * 300)]
    for name in ("nonsense", "", "../..", "cifar100", "/cifar100/zoo_resnext1", "pikachu/*", "x" * 5000, "\udcff", "a\nb"):
        yield from [
            ("run", name, "--profile", "smoke"),
            ("save", name, "file"),
            ("bench", name),
            ("colab", name),
            ("evaluate", name),
        ]
    for option in ("--seed", "--epochs", "--time-budget", "--profile", "--device", "--results-dir", "--checkpoint-dir"):
        yield from [(*smoke, option, value) for value in ("nonsense", "/dev/null/x", "\udcff", "-", "1" * 400)]
    for device in ("hpu", "meta", "cuda:99", "mps", "xla", "tpu", "-1", "vulkan"):
        yield from [(*smoke, "--device", device), ("bench", "--device", device)]
    for folder in ("/dev/null", "/nowhere/at/all", "~nouser/x", "/proc", "x" * 300):
        yield from [("table", "--results-dir", folder), ("list", "--report", folder), ("run", "--missing", "--dataset", folder)]
    for file in ("/dev/null/x", "/", "/nowhere/x.json", "/dev/full"):
        yield from [("bench", "nonsense", "--json", file), ("bench", "--batch", "0", "--json", file)]
    yield from [("bench", "resnext29_32x4d", "nonsense", "--batch", batch) for batch in ("0", "-1", "x", "1" + "0" * 20)]
    for minutes in ("0", "-1", "nan", "inf", "x"):
        yield ("run", "--missing", "--report", "speed", "--profile", "smoke", "--minutes", minutes)
    for model in ("/dev/null", "/", "", "missing", "/dev/zero", "/etc/passwd", "~nouser/x"):
        yield from [("classify", "image.png", "--model", model), ("classify", "image.png", "--csv", model)]


def command_lines(effort: Effort, whole: Path) -> Cases:
    """Each ends soon, with status 0 or with 1 and one sentence, and writes nothing into the repository."""
    for line in effort.some(lines(), least=40):
        folder = effort.fresh()

        def work(line=line, folder=folder) -> int:
            os.chdir(folder)
            os.environ |= {"HOME": str(folder), "DATA_DIR": str(folder)}

            def guard(event: str, arguments: tuple) -> None:
                if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(str(ROOT)):
                    raise RuntimeError(f"it writes {arguments[0]}")

            sys.addaudithook(guard)
            return command(*line)()

        yield f"{line!r:.90}", complaint(Child(work, memory=2**31, cpu=30).wait())
