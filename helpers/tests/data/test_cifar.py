"""CIFAR-10 and CIFAR-100: the same images from every source, damaged files, and failed downloads."""

import base64
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import threading
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers import data
from helpers.data import cifar, downloads, pools
from helpers.runtime import UserError, data_dir

NAMES = ("cifar10", "cifar100")
COUNTS = {"cifar10": {"train": 100, "test": 20}, "cifar100": {"train": 200, "test": 100}}


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, which pickled the published files in 2009."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    old_numpy = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    false_true, zero_one = b"\x89\x88\x87", b"K\x00K\x01\x87"  # arguments of a dtype; old files have numbers
    return old_numpy.replace(false_true, zero_one, 1)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def splits(name, monkeypatch):
    """{split: (images, labels)}: a few images per class, shuffled; `load` is patched to expect exactly these."""
    monkeypatch.setattr(cifar, "COUNTS", COUNTS[name])
    rng = np.random.default_rng(0)
    made, lines = {}, []
    for split, count in COUNTS[name].items():
        labels = rng.permutation(np.arange(count) % len(cifar.CLASSES[name]))
        images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
        made[split] = images, labels
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        lines += [f"{split}/{cifar.CLASSES[name][label]} {digest}\n" for label, digest in zip(labels, digests, strict=True)]
    monkeypatch.setitem(cifar.FINGERPRINTS, name, hashlib.sha256("".join(sorted(lines)).encode()).hexdigest())
    return made


only_cifar10 = pytest.mark.parametrize("name", ["cifar10"], indirect=True)


def put_pickles(base, name, splits, monkeypatch):
    """Write the folder that torchvision unpacks, and replace torchvision's MD5 sums with those of its files."""
    published = cifar.PUBLISHED[name]
    folder = base / published.base_folder
    folder.mkdir(parents=True)

    def put(file, content):
        (folder / file).write_bytes(python2_pickle(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        files = [file for file, _ in getattr(published, attribute)]
        sums = []
        for number, file in enumerate(files):
            images, labels = (part[number :: len(files)] for part in splits[split])
            labels = [int(label) for label in labels]
            files_inside = [f"{label}_s_{number:06}.png" for number, label in enumerate(labels)]
            batch = {"data": images.reshape(len(images), -1), "filenames": files_inside}
            both = {"fine_labels": labels, "coarse_labels": data.cifar100_superclasses()[labels].tolist()}
            sums.append(put(file, batch | ({"labels": labels} if name == "cifar10" else both)))
        monkeypatch.setattr(published, attribute, [list(pair) for pair in zip(files, sums, strict=True)])
    meta = published.meta
    md5 = put(meta["filename"], {meta["key"]: cifar.CLASSES[name]})
    monkeypatch.setattr(published, "meta", meta | {"md5": md5})
    return folder


def put_folder(root, name, splits, suffix="png", **options):
    for split, (images, labels) in splits.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / split / cifar.CLASSES[name][label] / f"{number:04}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path, **options)
    return root


def encoded(image, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def table(name, images, labels, kind="png"):
    """A table in Hugging Face's layout."""
    pa = pytest.importorskip("pyarrow")
    cells = [{"bytes": encoded(image, kind), "path": None} for image in images]
    columns = {"img": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    if name == "cifar10":
        return pa.table(columns | {"label": pa.array(labels, pa.int64())})
    coarse = data.cifar100_superclasses().numpy()[labels]
    return pa.table(columns | {"fine_label": pa.array(labels, pa.int64()), "coarse_label": pa.array(coarse, pa.int64())})


def put_parquet(root, name, splits, folder=None, **options):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = root / (folder or {"cifar10": "plain_text", "cifar100": "cifar100"}[name])
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in splits.items():
        parquet.write_table(table(name, images, labels, **options), folder / f"{split}-00000-of-00001.parquet")
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and logs the requested paths; sends at most `limit` bytes of a file, but announces its full length.

    The first requests get the status codes in `refusals`, one each.
    """

    limit, asked, refusals = None, [], []

    def do_GET(self):
        self.asked.append(self.path)
        if self.refusals:
            self.send_error(self.refusals.pop(0))
        else:
            super().do_GET()

    def copyfile(self, source, outputfile):
        outputfile.write(source.read()[: self.limit])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """(the server's address, the folder that it serves)"""
    folder = tmp_path_factory.mktemp("server")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Handler, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


@pytest.fixture
def hugging_face(server, monkeypatch):
    """A function that puts a data set on a server that stands in for Hugging Face."""
    address, folder = server
    monkeypatch.setenv("HF_ENDPOINT", address)
    return lambda name, splits: put_parquet(folder / "datasets" / downloads.PARQUET[name], name, splits, ".")


@pytest.fixture
def offline(monkeypatch):
    """Neither Hugging Face nor the original server can be reached."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in NAMES:
        monkeypatch.setattr(cifar.PUBLISHED[name], "url", "http://127.0.0.1:9/cifar.tar.gz")


def equal(one, other):
    return one.classes == other.classes and all(
        torch.equal(one.splits[split].images, other.splits[split].images)
        and torch.equal(one.splits[split].labels, other.splits[split].labels)
        for split in ("train", "validation", "test")
    )


# Where the images come from.


def test_every_format_gives_the_same_tensors(tmp_path, monkeypatch, hugging_face, name, splits):
    put_pickles(tmp_path / "pickle", name, splits, monkeypatch)
    put_folder(tmp_path / "png" / name, name, splits)
    put_parquet(tmp_path / "parquet" / name, name, splits)
    (tmp_path / "parquet" / name / "._train-00000-of-00001.parquet").write_bytes(b"as a Mac leaves on shared drives")
    (tmp_path / "hugging_face").mkdir()
    hugging_face(name, splits)
    sets = {kind: data.load(name, tmp_path / kind) for kind in ("pickle", "png", "parquet", "hugging_face")}
    folder = cifar.PUBLISHED[name].base_folder
    assert {kind: dataset.source for kind, dataset in sets.items()} == {
        "pickle": f"pickle folder {folder}",
        "png": f"folder {name}",
        "parquet": f"Parquet folder {name}",
        "hugging_face": f"Parquet folder {name}",
    }
    assert {dataset.name for dataset in sets.values()} == {name}
    assert all(equal(sets["pickle"], dataset) for dataset in sets.values())
    assert len({dataset.fingerprint for dataset in sets.values()}) == 1
    assert data.duplicates(sets["png"]) == []


def test_every_image_is_loaded_with_its_own_label(tmp_path, monkeypatch, name, splits):
    put_pickles(tmp_path, name, splits, monkeypatch)
    dataset = data.load(name, tmp_path)
    assert dataset.classes == cifar.CLASSES[name]
    seen = set()
    for split, part in dataset.splits.items():
        images, labels = splits["test" if split == "test" else "train"]
        truth = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
        pixels = [image.numpy().tobytes() for image in part.images]
        assert [truth[image] for image in pixels] == part.labels.tolist()
        assert part.sizes.tolist() == [[32, 32]] * len(part)
        seen.update(pixels)
    assert len(seen) == sum(COUNTS[name].values())
    assert set(dataset.train.names[0].split("/")[:2]) == {"train", dataset.classes[dataset.train.labels[0]]}


@only_cifar10
def test_the_first_source_that_exists_is_used_and_printed(tmp_path, monkeypatch, capsys, server, hugging_face, name, splits):
    folder = put_pickles(tmp_path, name, splits, monkeypatch)
    put_folder(tmp_path / "cifar10", name, splits)
    put_parquet(tmp_path / "cifar10", name, splits)
    hugging_face(name, splits)
    for here in (folder, tmp_path / "cifar10/train", tmp_path / "cifar10/plain_text"):
        data.load(name, tmp_path)
        shutil.rmtree(here)
        shutil.rmtree(tmp_path / "cifar10/test", ignore_errors=here != folder)
        if here == folder:
            put_folder(tmp_path / "cifar10", name, splits)
    shutil.rmtree(tmp_path / "cache")  # the cache alone would be enough
    data.load(name, tmp_path)
    numbers = ": 90 train, 10 validation, 20 test images, 10 classes.\n"
    kinds = ("pickle folder cifar-10-batches-py", "folder cifar10", "Parquet folder cifar10", "Parquet folder cifar10")
    assert capsys.readouterr().out == "".join(f"cifar10 ({kind}){numbers}" for kind in kinds)
    revision = "/datasets/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text"
    assert Handler.asked == [f"{revision}/{split}-00000-of-00001.parquet" for split in ("train", "test")]
    data.load(name, tmp_path)
    assert len(Handler.asked) == 2, "downloaded files are kept"


def test_a_page_instead_of_the_data_is_not_kept(tmp_path, server, offline, monkeypatch):
    """As a mirror or a hotel's network may answer, with status 200."""
    address, folder = server
    monkeypatch.setenv("HF_ENDPOINT", address)
    for split in ("train", "test"):
        page = folder / "datasets" / downloads.PARQUET["cifar10"] / f"{split}-00000-of-00001.parquet"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("<html>Please log in.</html>")
    with pytest.raises(UserError, match=r"Hugging Face did not send uoft-cs/cifar10 \(OSError\), and the original server"):
        data.load("cifar10", tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_cifar_100_superclasses_are_the_published_ones():
    published = """
        4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13 14
        17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1
        2 15 6 0 17 8 14 13
    """
    assert data.cifar100_superclasses().tolist() == [int(place) for place in published.split()]
    assert list(data.CIFAR100_SUPERCLASSES) == sorted(data.CIFAR100_SUPERCLASSES)
    assert cifar.CIFAR100_CLASSES[:3] == ["apple", "aquarium_fish", "baby"] and cifar.CIFAR100_CLASSES[-1] == "worm"


@only_cifar10
def test_jpeg_copies_are_refused(tmp_path, name, splits):
    put_folder(tmp_path / "folder/cifar10", name, splits, "jpg", quality=75)
    put_parquet(tmp_path / "parquet/cifar10", name, splits, kind="jpeg")
    for kind in ("folder", "parquet"):
        with pytest.raises(UserError, match=r"or not as published \(a JPEG copy\?\); unpack or download it again"):
            data.load(name, tmp_path / kind)


@only_cifar10
def test_the_seed_decides_which_tenth_of_each_class_is_held_out(tmp_path, monkeypatch, name, splits):
    put_folder(tmp_path / name, name, splits)
    first, again, other = (data.load(name, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert [torch.bincount(part.labels).tolist() for part in first.splits.values()] == [[9] * 10, [1] * 10, [2] * 10]
    assert all(file.startswith("train/") for file in first.validation.names)
    assert equal(first, again) and not equal(first, other)
    assert torch.equal(first.test.images, other.test.images)


@only_cifar10
def test_cifar10_5k_has_the_same_images_whatever_the_source_and_the_seed(tmp_path, monkeypatch, name, splits):
    monkeypatch.setattr(cifar, "PARTS", {"cifar10_5k": ("cifar10", {"train": 50, "test": 10})})
    put_pickles(tmp_path / "pickle", name, splits, monkeypatch)
    put_folder(tmp_path / "png/cifar10", name, splits)
    one, other = data.load("cifar10_5k", tmp_path / "pickle"), data.load("cifar10_5k", tmp_path / "png")
    assert equal(one, other) and one.name == "cifar10_5k" and one.fingerprint == other.fingerprint
    assert [torch.bincount(part.labels).tolist() for part in one.splits.values()] == [[4] * 10, [1] * 10, [1] * 10]
    seeded = data.load("cifar10_5k", tmp_path / "png", seed=1)
    assert set(seeded.train.digests + seeded.validation.digests) == set(one.train.digests + one.validation.digests)
    assert seeded.test.digests == one.test.digests and seeded.validation.digests != one.validation.digests
    whole = data.load("cifar10", tmp_path / "png")
    assert set(one.test.digests) < set(whole.test.digests)
    assert sorted(path.name for path in (tmp_path / "png/cache").iterdir()) == ["cifar10-32.npz", "cifar10_5k-32.npz"]


def test_the_sizes_of_cifar_and_its_subsets():
    assert cifar.PARTS["cifar10_5k"] == ("cifar10", {"train": 5_000, "test": 1_000})
    assert cifar.PARTS["cifar10_tenth"] == ("cifar10", {"train": 5_000, "test": 10_000})
    assert cifar.COUNTS == {"train": 50_000, "test": 10_000}


# The cache.


@only_cifar10
@pytest.mark.parametrize("asked", ["cifar10", "cifar10_tenth"])
def test_a_cache_file_alone_is_sufficient_if_its_pixels_are_the_published_ones(
    tmp_path, monkeypatch, offline, name, splits, asked
):
    """A machine without a network needs nothing but this file: cifar10_tenth-32.npz has 46 MiB."""
    monkeypatch.setattr(cifar, "PARTS", {"cifar10_tenth": ("cifar10", {"train": 50, "test": 20})})
    root = put_folder(tmp_path / name, name, splits)
    first, path = data.load(asked, tmp_path), tmp_path / f"cache/{asked}-32.npz"
    with np.load(path) as stored:
        content = dict(stored)
    pixels = (hashlib.sha256(image.tobytes()).hexdigest() for image in content["images"])
    lines = (f"{file.rpartition('/')[0]} {digest}\n" for file, digest in zip(names_in(content), pixels, strict=True))
    monkeypatch.setitem(cifar.FINGERPRINTS, asked, hashlib.sha256("".join(sorted(lines)).encode()).hexdigest())
    shutil.rmtree(root)
    for other in set((tmp_path / "cache").iterdir()) - {path}:
        other.unlink()
    carried = data.load(asked, tmp_path)
    assert equal(first, carried) and carried.fingerprint == first.fingerprint and carried.name == asked
    assert carried.source == f"cache file {asked}-32.npz"
    content["images"][0, 0, 0, 0] ^= 1
    np.savez(path, **content)
    with pytest.raises(UserError, match=f"{name} is not in the data folder, Hugging Face"):
        data.load(asked, tmp_path)


def names_in(content):
    return json.loads(content["about"].tobytes())["names"]


@pytest.fixture
def decodings(monkeypatch):
    seen, decode = [], cifar.decode_photograph
    monkeypatch.setattr(cifar, "decode_photograph", lambda content, size: seen.append(size) or decode(content, size))
    return seen


@only_cifar10
def test_the_second_load_decodes_nothing_and_a_change_is_noticed(tmp_path, name, splits, decodings):
    root = put_folder(tmp_path / name, name, splits)
    first = data.load(name, tmp_path)
    assert len(decodings) == 120 and equal(first, data.load(name, tmp_path)) and len(decodings) == 120
    Image.new("RGB", (32, 32), "red").save(root / first.train.names[0])
    with pytest.raises(UserError, match=NOT_PUBLISHED):
        data.load(name, tmp_path)
    assert len(decodings) == 240


# Bad input.


@only_cifar10
def test_a_file_with_a_wrong_checksum_is_refused_and_never_unpickled(tmp_path, monkeypatch, name, splits):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "unpickled"),)

    folder = put_pickles(tmp_path, name, splits, monkeypatch)
    (folder / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    sentence = "'data_batch_3' of the pickle folder cifar-10-batches-py is not .* MD5 sum is [0-9a-f]{32}; delete"
    with pytest.raises(UserError, match=sentence):
        data.load(name, tmp_path)
    assert not (tmp_path / "unpickled").exists() and not (tmp_path / "cache").exists()


def test_files_are_checked_against_torchvisions_checksums(tmp_path, monkeypatch, name, splits):
    published = cifar.PUBLISHED[name]
    first, sums = published.train_list[0][0], [md5 for _, md5 in published.train_list + published.test_list]
    put_pickles(tmp_path, name, splits, monkeypatch)
    monkeypatch.undo()  # this restores torchvision's own sums
    with pytest.raises(UserError, match=f"'{first}' .* {sums[0]}; delete"):
        data.load(name, tmp_path)
    assert sums[0] == {"cifar10": "c99cafc152244af753f735de768cd75f", "cifar100": "16019d7e3df5f24257cddd939b257f8d"}[name]


@only_cifar10
def test_a_missing_pickle_gives_a_one_sentence_error(tmp_path, monkeypatch, name, splits):
    (put_pickles(tmp_path, name, splits, monkeypatch) / "test_batch").unlink()
    with pytest.raises(UserError, match="pickle folder cifar-10-batches-py has no file 'test_batch'; delete"):
        data.load(name, tmp_path)


@only_cifar10
def test_old_pickles_load_without_a_warning(tmp_path, monkeypatch, name, splits):
    put_pickles(tmp_path, name, splits, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load(name, tmp_path)


def remove_one(root):
    next((root / "train/cat").iterdir()).unlink()


def cut_one(root):
    path = sorted((root / "train/cat").iterdir())[0]
    path.write_bytes(path.read_bytes()[:500])


def resize_one(root):
    Image.new("RGB", (40, 32)).save(sorted((root / "train/cat").iterdir())[0])


def rename_class(root):
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "cats")


def drop_class(root):
    for split in ("train", "test"):
        shutil.rmtree(root / split / "truck")


def empty_one(root):
    sorted((root / "test/dog").iterdir())[0].write_bytes(b"")


def add_one(root):
    Image.new("RGB", (32, 32)).save(root / "test/cat/more.png")


def swap_classes(root):
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "old")
        (root / split / "dog").rename(root / split / "cat")
        (root / split / "old").rename(root / split / "dog")


def change_one(root):
    Image.new("RGB", (32, 32)).save(sorted((root / "train/cat").iterdir())[0])


def swap_splits(root):
    for one, other in zip(sorted((root / "train/cat").iterdir()), sorted((root / "test/cat").iterdir()), strict=False):
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


NOT_PUBLISHED = r"as many images as cifar10, but one is in the wrong class or not as published \(a JPEG copy\?\); unpack"


def flatten(root):
    (root / "train").rename(root.parent / "classes")
    shutil.rmtree(root)
    (root.parent / "classes").rename(root)


@only_cifar10
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (remove_one, "folder cifar10 has 9 images in train/cat where cifar10 has 10; unpack"),
        (cut_one, r"cannot be used: train/cat/\d+.png \(image file is truncated.*\); unpack"),
        (empty_one, r"cannot be used: test/dog/\d+.png \(an empty file\)"),
        (resize_one, r"cannot be used: train/cat/\d+.png \(40x32 pixels instead of 32x32\)"),
        (rename_class, "has a class 'cats'; the classes are airplane; automobile; bird; cat; deer"),
        (drop_class, "has 0 images in test/truck where cifar10 has 2"),
        (add_one, "folder cifar10 has 3 images in test/cat where cifar10 has 2; unpack"),
        (swap_classes, NOT_PUBLISHED),
        (change_one, NOT_PUBLISHED),
        (swap_splits, NOT_PUBLISHED),
        (flatten, "has 0 images in test/airplane where cifar10 has 2"),
    ],
)
def test_an_incomplete_or_altered_folder_is_refused(tmp_path, name, splits, spoil, sentence):
    spoil(put_folder(tmp_path / name, name, splits))
    for _ in range(2):  # the second time too: nothing was cached
        with pytest.raises(UserError, match=sentence):
            data.load(name, tmp_path)


def test_one_data_set_under_the_name_of_the_other_is_refused(tmp_path, name, splits):
    other = NAMES[1 - NAMES.index(name)]
    put_folder(tmp_path / other, name, splits)
    sentence = rf"folder {other} has a class '{cifar.CLASSES[name][0]}'; the classes are {cifar.CLASSES[other][0]}; "
    with pytest.raises(UserError, match=sentence):
        data.load(other, tmp_path)


@only_cifar10
def test_class_folders_may_be_capitalised(tmp_path, name, splits):
    root = put_folder(tmp_path / name, name, splits)
    for path in [*root.glob("*/*")]:
        path.rename(path.with_name(path.name.title()))
    assert data.load(name, tmp_path).classes == cifar.CIFAR10_CLASSES


def put_table(path, columns):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)


def cut_table(folder):
    path = folder / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1000])


def flip_in_table(folder):
    """Flip a bit of a page header, for which pyarrow has a two-line error message."""
    path = folder / "train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[17] ^= 1 << 3
    path.write_bytes(content)


def misspell_type_in_table(folder):
    """Misspell a NumPy type in pandas' metadata in a table's schema, which Arrow stores in base 64."""
    path = folder / "train-00000-of-00001.parquet"
    pd.read_parquet(path).to_parquet(path)
    schema = max(re.findall(rb"[A-Za-z0-9+/]{100,}=*", path.read_bytes()), key=len)
    misspelt = base64.b64encode(base64.b64decode(schema).replace(b'"int64"', b'"inp64"'))
    path.write_bytes(path.read_bytes().replace(schema, misspelt))


def rename_table(folder):
    (folder / "test-00000-of-00001.parquet").rename(folder / "part2.parquet")


@only_cifar10
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut_table, "Parquet folder cifar10 has a file that cannot be read; download it again.$"),
        (misspell_type_in_table, "Parquet folder cifar10 has a file that cannot be read; download it again.$"),
        (flip_in_table, "Parquet folder cifar10 has a file that cannot be read; download it again.$"),
        (rename_table, "has a file 'plain_text/part2.parquet' that names no split; rename it to train-"),
        (lambda folder: (folder / "train-00000-of-00001.parquet").unlink(), "has 0 images in train/airplane where"),
        (
            lambda folder: put_table(folder / "test-00000-of-00001.parquet", {"img": [{"bytes": b""}], "labels": [1]}),
            "no column 'label', only img, labels; download",
        ),
        (
            lambda folder: pd.DataFrame({0: [b""], 1: [1]}).to_parquet(folder / "test-00000-of-00001.parquet"),
            "no column 'img', only 0, 1; download",
        ),
        (
            lambda folder: put_table(folder / "test-00000-of-00001.parquet", {"img": [{"bytes": b""}], "label": [10]}),
            "a label 10, but cifar10 has 0 to 9",
        ),
        (
            lambda folder: put_table(folder / "test-00000-of-00001.parquet", {"img": [{"bytes": None}], "label": [1]}),
            r"cannot be used: test/automobile/00000.png \(an empty file\)",
        ),
        *[
            (lambda folder, row=row: put_table(folder / "test-00000-of-00001.parquet", row), sentence)
            for row, sentence in (
                ({"img": [{"bytes": b""}], "label": [None]}, "a label None, but cifar10 has 0 to 9"),
                ({"img": [{"bytes": b""}], "label": ["cat"]}, "a label cat, but cifar10 has 0 to 9"),
                ({"img": [{"path": "a"}], "label": [1]}, r"cannot be used: test/automobile/00000.png \(an empty file\)"),
                ({"img": ["a"], "label": [1]}, r"cannot be used: test/automobile/00000.png \(an empty file\)"),
            )
        ],
    ],
)
def test_incomplete_or_damaged_parquet_is_refused(tmp_path, name, splits, spoil, sentence):
    spoil(put_parquet(tmp_path / name, name, splits))
    with pytest.raises(UserError, match=sentence):
        data.load(name, tmp_path)


@only_cifar10
def test_parquet_in_folders_named_after_the_splits(tmp_path, name, splits):
    folder = put_parquet(tmp_path / name, name, splits)
    for split in splits:
        (folder / split).mkdir()
        (folder / f"{split}-00000-of-00001.parquet").rename(folder / split / "0000.parquet")
    assert len(data.load(name, tmp_path).test) == 20


@only_cifar10
def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch, name, splits):
    import pandas

    def refuse(path):
        raise ImportError("pyarrow")

    put_parquet(tmp_path / name, name, splits)
    monkeypatch.setattr(pandas, "read_parquet", refuse)
    with pytest.raises(UserError, match="To read the Parquet folder cifar10, run 'pip install pyarrow'"):
        data.load(name, tmp_path)


@pytest.mark.parametrize("wrong", NAMES + tuple(cifar.PARTS))
def test_images_are_never_enlarged(tmp_path, wrong):
    with pytest.raises(UserError, match=f"image size is 224, but {wrong}'s images have 32 pixels"):
        data.load(wrong, tmp_path, image_size=224)


# The network.


def test_without_a_network_the_error_is_one_sentence(tmp_path, capsys, offline, name):
    folder = cifar.PUBLISHED[name].base_folder
    with pytest.raises(UserError) as caught:
        data.load(name, tmp_path)
    before, after = str(caught.value).split("<urlopen error [Errno ")
    assert before == (
        f"{name} is not in the data folder, Hugging Face did not send uoft-cs/{name} (URLError), and the original server "
        "failed ("
    )
    assert after.endswith(
        f"Connection refused>); try again with a network connection, or put {folder}/ or {name}/train/<class>/ and so on "
        "into the data folder yourself."
    )
    assert list(tmp_path.iterdir()) == []
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "36 to 57 minutes (pytorch/vision issue 9536)" in line


def test_without_pyarrow_hugging_face_is_skipped_and_a_line_says_so(tmp_path, monkeypatch, capsys, offline):
    monkeypatch.setattr(downloads, "find_spec", lambda package: None)
    with pytest.raises(UserError, match="Hugging Face was not tried"):
        data.load("cifar10_5k", tmp_path)
    assert "not tried (it needs 'pip install pyarrow'); trying the original server" in capsys.readouterr().out


@pytest.fixture
def archive(monkeypatch, offline, server, name, splits):
    """The bytes of the archive of pickles that the original server has."""
    address, folder = server
    published = cifar.PUBLISHED[name]
    pickles = put_pickles(folder, name, splits, monkeypatch)
    with tarfile.open(folder / published.filename, "w:gz") as archive:
        archive.add(pickles, pickles.name)
    content = (folder / published.filename).read_bytes()
    monkeypatch.setattr(published, "url", f"{address}/{published.filename}")
    monkeypatch.setattr(published, "tgz_md5", hashlib.md5(content).hexdigest())
    return content


@only_cifar10
@pytest.mark.parametrize(
    ("owner", "fault", "reason"),
    [
        (Handler, ("limit", 1000), "the download broke off"),
        (downloads, ("LONGEST_DOWNLOAD", -3600), "it took longer than -1 hours"),
        (cifar.PUBLISHED["cifar10"], ("tgz_md5", "0" * 32), "the archive it sent is incomplete or damaged"),
    ],
)
def test_a_failed_or_incomplete_download_is_not_kept(tmp_path, monkeypatch, archive, owner, fault, reason):
    monkeypatch.setattr(owner, *fault)
    with pytest.raises(UserError, match=rf"the original server failed \({reason}\); try again"):
        data.load("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


@only_cifar10
def test_the_original_server_is_the_last_resort(tmp_path, monkeypatch, capsys, archive, name):
    published = cifar.PUBLISHED[name]
    (tmp_path / published.filename).write_bytes(archive[: len(archive) // 2])  # as an interrupted torchvision may have left it
    first = data.load(name, tmp_path)
    assert first.source == "pickle folder cifar-10-batches-py"
    assert "which has sent 50 to 80 kB a second since June 2026" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", published.base_folder, published.filename]
    monkeypatch.setattr(published, "url", "http://127.0.0.1:9/")
    assert equal(first, data.load(name, tmp_path))
    assert socket.getdefaulttimeout() is None


@only_cifar10
def test_two_programs_may_download_the_same_files(tmp_path, monkeypatch, capsys, hugging_face, name, splits):
    """The other program puts its files in place while this one downloads."""
    hugging_face(name, splits)
    copied = downloads._copy

    def copy(url, path):
        copied(url, path)
        other = tmp_path / name / "parquet" / path.name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(path.read_bytes())

    monkeypatch.setattr(downloads, "_copy", copy)
    assert data.load(name, tmp_path).source == "Parquet folder cifar10"
    assert "did not send" not in capsys.readouterr().out


@only_cifar10
def test_a_folder_that_stops_a_download_is_named(tmp_path, monkeypatch, hugging_face, name, splits):
    hugging_face(name, splits)
    (tmp_path / name / "parquet").mkdir(parents=True)
    (tmp_path / name / "parquet" / ".DS_Store").touch()
    with pytest.raises(UserError, match="folder cifar10/parquet has no Parquet files but is not empty; remove it"):
        data.load(name, tmp_path)


@only_cifar10
def test_a_busy_hugging_face_is_retried(tmp_path, monkeypatch, hugging_face, name, splits):
    hugging_face(name, splits)
    monkeypatch.setattr(downloads, "LATER", (0, 0))
    monkeypatch.setattr(Handler, "refusals", [429, 503])
    assert data.load(name, tmp_path).source == "Parquet folder cifar10"
    first = f"/datasets/{downloads.PARQUET[name]}/train-00000-of-00001.parquet"
    assert Handler.asked == [first] * 3 + [first.replace("train", "test")]


@only_cifar10
@pytest.mark.parametrize(("refusals", "asked"), [([429] * 3, 3), ([404], 1)])
def test_retries_stop_after_three_busy_answers_or_one_not_found(tmp_path, monkeypatch, offline, server, name, refusals, asked):
    monkeypatch.setenv("HF_ENDPOINT", server[0])
    monkeypatch.setattr(downloads, "LATER", (0, 0))
    monkeypatch.setattr(Handler, "refusals", refusals)
    with pytest.raises(UserError, match=r"Hugging Face did not send uoft-cs/cifar10 \(HTTPError\), and the original server"):
        data.load("cifar10", tmp_path)
    assert len(Handler.asked) == asked


def test_a_silent_server_is_given_up(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        late = threading.Timer(20, silent.close)  # so that this test ends in any case
        late.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=r"Hugging Face did not send uoft-cs/cifar10 \(TimeoutError\)"):
            data.load("cifar10", tmp_path)
        assert late.is_alive()
        late.cancel()


@only_cifar10
def test_an_incomplete_parquet_download_is_not_kept(tmp_path, monkeypatch, offline, server, hugging_face, name, splits):
    hugging_face(name, splits)
    monkeypatch.setattr(Handler, "limit", 1000)
    with pytest.raises(UserError, match=r"Hugging Face did not send uoft-cs/cifar10 \(OSError\), and the original server"):
        data.load(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("real", "mean", "std", "twice"),
    [
        ("cifar10", (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159), (0, 0, 0)),
        ("cifar100", (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615), (14, 2, 10)),
    ],
)
def test_the_real_images_have_the_numbers_in_the_data_readme(real, mean, std, twice):
    """Counts, statistics of the 50,000 training images, and byte-identical ones: surplus in train, in test, and in both."""
    if not (data_dir() / real / "train").is_dir():
        pytest.skip("needs the real images")
    dataset = data.load(real)
    images, labels = (
        torch.cat([getattr(split, part) for split in (dataset.train, dataset.validation)]) for part in ("images", "labels")
    )
    per_class = 60_000 // len(dataset.classes)
    assert set(torch.bincount(labels).tolist()) == {per_class * 5 // 6}
    assert set(torch.bincount(dataset.test.labels).tolist()) == {per_class // 6}
    found = data.channel_statistics(data.Split(images, labels, []))
    assert [[round(value, 5) for value in part] for part in found] == [list(mean), list(std)]
    if real == "cifar10":
        for part in cifar.PARTS:
            places = [file.rpartition("/")[0] for split in data.load(part).splits.values() for file in split.names]
            digests = [digest for split in data.load(part).splits.values() for digest in split.digests]
            assert cifar._fingerprint(places, digests) == cifar.FINGERPRINTS[part]
    sides = [[split == "test" for split, _ in group] for group in data.duplicates(dataset)]
    surplus = [sum(max(0, side.count(which) - 1) for side in sides) for which in (False, True)]
    assert (*surplus, len(data.leaked(dataset, near=False))) == twice


@pytest.mark.parametrize("names", [["one"], None])
def test_a_cache_whose_names_do_not_fit_its_images_counts_as_damaged(tmp_path, names):
    about = {"key": "x", "source": "s", "names": names, "digests": [], "skipped": []}
    arrays = {"images": np.zeros((3, 3, 32, 32), np.uint8), "sizes": np.zeros((3, 2), np.int32)}
    np.savez(tmp_path / "a.npz", about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    assert pools.read_cache(tmp_path / "a.npz") == ("", None)
