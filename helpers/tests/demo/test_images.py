"""Images from files and addresses: hostile ones give one-sentence errors, and private addresses are never fetched."""

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helpers import demo
from helpers.demo import images
from helpers.runtime import UserError
from helpers.tests.demo.test_classify import hand_model, picture


class Handler(BaseHTTPRequestHandler):
    """A picture, a page, something huge, redirects, and answers that never end."""

    asked = []

    def do_GET(self):
        self.asked.append(self.requestline.split()[1])  # `path` has one slash at its beginning where two were sent
        known = {"/picture.png": picture(), "/a b.png?x=1": picture(), "/page.html": b"<html>", "/huge": bytes(2**17)}
        known["/a%20b.png?x=1"] = picture()
        known |= {"/twice.png": picture(), "/b%C3%BCcher.png": picture()}
        moved = {"/moved": "file:///etc/hostname", "/round": "/round", "/there": "picture.png", "/inside": "http://0/"}
        moved["/raw"] = "/bücher.png".encode().decode("latin-1")  # a header of UTF-8 bytes
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
        elif self.path in known:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(known[self.path])
        elif self.path in ("/slow", "/slower"):
            self.drip(b"HTTP/1.0 200 OK\r\n\r\n" if self.path == "/slow" else b"HTTP/1.0 200 OK\r\n")
        else:
            self.send_error(404)

    def drip(self, beginning):
        """Send one byte every 50 ms, of the content or of the headers."""
        try:
            self.wfile.write(beginning)
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture
def inside(monkeypatch):
    """Treat every address, including this machine, as public."""
    monkeypatch.setattr(images, "is_public", lambda address: True)


@pytest.fixture(scope="module")
def server():
    """The address of a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["picture.png", "there", "a b.png?x=1", "picture.png#part", "/twice.png", "raw"])
def test_an_address_gives_the_same_pixels_as_the_file(server, inside, tmp_path, path):
    (tmp_path / "a.png").write_bytes(picture())
    fetched = demo.read_image(f"{server}/{path}", 16)
    assert torch.equal(fetched, demo.read_image(tmp_path / "a.png", 16))
    assert path != "/twice.png" or Handler.asked[-1] == "//twice.png"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/nothing", r"could not be reached \(HTTP Error 404: Not Found\)"),
        ("/page.html", "not an image"),
        ("/huge", "larger than 0 MiB"),
        ("/moved", "could not be reached"),
        ("/round", "more than 5 redirects"),
        ("/slow", "it took longer than 0.5 seconds"),
        ("/slower", "it took longer than 0.5 seconds"),
        (None, r"could not be reached \(.*Connection refused\)"),
        ("http://", "could not be reached"),
        ("HTTPS://[", "could not be reached"),
        ("http://127.0.0.1:99999/", "could not be reached"),
        ("http://exa mple/", "could not be reached"),
    ],
)
def test_an_address_without_an_image_gives_a_one_sentence_error(server, inside, address, reason, monkeypatch):
    assert (images.LONGEST_DOWNLOAD, images.LARGEST_DOWNLOAD) == (20, 32 * 2**20), "SECURITY.md promises both"
    monkeypatch.setattr(images, "LARGEST_DOWNLOAD", 2**16)
    monkeypatch.setattr(images, "LONGEST_DOWNLOAD", 0.5 if "slow" in str(address) else 20.0)
    if address is None:
        closed = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        address = f"http://127.0.0.1:{closed.server_port}/"
        closed.server_close()
    source = f"{server}{address}" if address.startswith("/") else address
    with pytest.raises(UserError, match=f"cannot be classified: .*{reason}") as caught:
        demo.read_image(source, 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"])
def test_local_addresses_are_neither_fetched_nor_probed(server, host):
    """The error is the same whether something listens there or not."""
    port = int(server.rpartition(":")[2])
    Handler.asked.clear()
    reasons = {images.try_image(f"http://{host}:{number}/picture.png", 16)[1] for number in (port, 9)}
    assert reasons == {"its address is not a public one"} and Handler.asked == []


def test_a_redirect_to_a_private_address_is_not_followed(server, monkeypatch):
    """The first host counts as public here, the second does not."""
    monkeypatch.setattr(images, "is_public", lambda address: address == "127.0.0.1")
    assert images.try_image(f"{server}/picture.png", 16)[1] == ""
    assert images.try_image(f"{server}/inside", 16)[1] == "its address is not a public one"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),
        *[(address, False) for address in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1")],
        *[(address, False) for address in ("0.0.0.0", "127.8.8.8", "224.0.0.1", "255.255.255.255", "::", "::1")],
        *[(address, False) for address in ("fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "2002:7f00:1::")],
        *[(address, False) for address in ("64:ff9b::7f00:1", "fec0::2", "64:ff9b:1::a00:1")],
    ],
)
def test_public_addresses(address, public):
    assert images.is_public(address) is public


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(images.socket, "getaddrinfo", lambda *arguments, **options: places)
    assert images.try_image("http://example.org/", 16)[1] == "its address is not a public one"


def test_https_connects_to_the_address_that_was_checked_and_verifies_the_name(monkeypatch):
    """A second lookup of the name could give a private address."""
    asked = []

    def look_up(host, port, type):
        asked.append((host, port))
        return [(socket.AF_INET, type, 6, "", ("93.184.216.34", port))]

    def wrap(connection, server_hostname, **_):
        asked.append(server_hostname)
        raise OSError("no handshake here")

    monkeypatch.setattr(images.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(images.socket, "create_connection", lambda place, timeout: asked.append(place) or socket.socket())
    monkeypatch.setattr(images.ssl, "create_default_context", lambda: SimpleNamespace(wrap_socket=wrap))
    assert images.try_image("https://example.org/a.png", 16)[0] is None
    assert asked == [("example.org", 443), ("93.184.216.34", 443), "example.org"]


def put(folder):
    """Create hostile files; returns the expected error for each path, "" for any error."""
    os.mkfifo(folder / "fifo.png")
    os.symlink(folder / "loop.png", folder / "loop.png")
    (folder / "folder.png").mkdir()
    (folder / "\udcff\udcfe.png").write_bytes(picture()[:50])
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    Image.new("L", (9400, 9400)).save(folder / "wide.png", compress_level=1)
    return {
        folder / "fifo.png": "it is not a regular file",
        "/dev/zero": "it is not a regular file",
        folder / "loop.png": "Too many levels of symbolic links",
        folder / "folder.png": "it is not a regular file",
        folder / "\udcff\udcfe.png": "",
        folder / "sparse.png": "it is larger than 256 MiB",
        folder / ("x" * 300): "File name too long",
        "~nouser/a.png": "No such file or directory",
        "a\0b.png": "",  # its wording depends on the version of Python
        "a\nb.png": "No such file or directory",
        "": "it is not a regular file",
        folder / "wide.png": "9400x9400 pixels are too many; shrink it or save it as a JPEG",
    }


def test_bad_paths_do_not_stop_the_batch(tmp_path):
    bad = put(tmp_path)
    (tmp_path / "good.png").write_bytes(picture())
    table = demo.classify(hand_model(), [*bad, tmp_path / "good.png"])
    for reason, expected in zip(table["error"], bad.values(), strict=False):
        assert reason == expected if expected else reason
    assert table["error"].iloc[-1] == "" and table["label"].iloc[-1] in ("red", "green")
    assert table.to_csv(index=False).encode().count(b"\n") == len(table) + 1 and "\\udcff" in table["image"][4]


def test_a_large_jpeg_is_decoded_at_a_reduced_size(tmp_path):
    Image.new("RGB", (9400, 9400), "red").save(tmp_path / "a.jpg")
    assert demo.read_image(tmp_path / "a.jpg", 16).float().mean((1, 2)).tolist() == pytest.approx([254, 0, 0], abs=1)


def test_the_error_calls_the_image_by_the_given_name(tmp_path):
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"^yours cannot be classified: not an image\.$"):
        demo.read_image(tmp_path / "a.png", 16, "yours")
