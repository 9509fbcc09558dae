"""Photographs: sources, splits, bad input, decoding, and the cache."""

import errno
import os
import struct
import sys
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize
from torchvision.transforms.functional import pil_to_tensor

from helpers import data
from helpers.data import photographs
from helpers.runtime import UserError
from helpers.tests.faults.inputs import png, tiff

SIZE, STORED = 28, 32  # 28 * 8 // 7


def write(path, colour=None, size=(40, 32), mode="RGB", **options):
    """Write an image of one colour, or of random squares that depend only on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if colour is None:
        rng = np.random.default_rng(zlib.crc32(path.name.encode()))
        squares = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
        image = Image.fromarray(squares.repeat(4, 0).repeat(4, 1))
    else:
        image = Image.new(mode, size, colour)
    image.save(path, **options)
    return path


def fill(root, splits=("train", "validation", "test"), classes=("cat", "dog"), count=3):
    """Make a small image folder; `splits=("",)` makes class folders without splits."""
    for split in splits:
        for name in classes:
            for i in range(count):
                write(root / split / name / f"{split}{name}{i}.png")
    return root


def load(base, name="pets", **options):
    return data.load(name, base, image_size=SIZE, **options)


def decoded(tmp_path, image, suffix=".png", **options):
    """The pixels, (H, W, 3), of a Pillow image after it is saved and decoded."""
    path = tmp_path / f"one{suffix}"
    image.save(path, **options)
    return photographs.decode_photograph(path.read_bytes(), STORED)[0].transpose(1, 2, 0)


# Where the images come from.


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
def test_a_folder_with_three_splits_keeps_them(tmp_path, capsys, validation):
    fill(tmp_path / "pets", ("train", validation, "test"))
    write(tmp_path / "pets/test/dog/one more.JPG")
    dataset = load(tmp_path)
    assert [len(split) for split in dataset.splits.values()] == [6, 6, 7]
    assert dataset.classes == ["cat", "dog"]
    assert dataset.source == "folder pets"
    assert not dataset.is_sample
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert dataset.validation.names[0] == f"{validation}/cat/{validation}cat0.png"
    assert dataset.train.images.shape == (6, 3, STORED, STORED) and dataset.train.images.dtype == torch.uint8
    assert dataset.train.sizes.tolist() == [[40, 32]] * 6
    printed = capsys.readouterr().out
    assert printed == "pets (folder pets): 6 train, 6 validation, 7 test images, 2 classes.\n"


@pytest.mark.parametrize(("count", "parts"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (8, (4, 2, 2)), (10, (6, 2, 2)), (14, (8, 3, 3))])
def test_class_folders_without_splits_are_split_60_20_20_by_class(tmp_path, count, parts):
    fill(tmp_path / "pets", ("",), count=count)
    dataset = load(tmp_path)
    for split, expected in zip(dataset.splits.values(), parts, strict=True):
        assert torch.bincount(split.labels).tolist() == [expected, expected]
    files = sum((split.names for split in dataset.splits.values()), [])
    assert sorted(files) == sorted(f"{name}/{name}{i}.png" for name in ("cat", "dog") for i in range(count))


def test_a_missing_validation_split_is_taken_from_train(tmp_path):
    fill(tmp_path / "pets", ("train", "test"), count=10)
    dataset = load(tmp_path)
    assert [torch.bincount(split.labels).tolist() for split in dataset.splits.values()] == [[8, 8], [2, 2], [10, 10]]
    assert all(name.startswith("train/") for name in dataset.train.names + dataset.validation.names)


def test_the_seed_decides_the_split_and_the_fingerprint(tmp_path):
    fill(tmp_path / "pets", ("",), count=10)
    first, again, other = load(tmp_path, seed=1), load(tmp_path, seed=1), load(tmp_path, seed=2)
    assert first.test.names == again.test.names and first.fingerprint == again.fingerprint
    assert first.test.names != other.test.names and first.fingerprint != other.fingerprint


def test_pikachu_may_be_the_data_folder_itself(tmp_path):
    fill(tmp_path / "photos")
    assert load(tmp_path / "photos", "pikachu").source == "folder photos"
    fill(tmp_path / "flat", ("",), classes=("not_pikachu", "pikachu"))
    (tmp_path / "flat/cifar10/parquet").mkdir(parents=True)  # as a download of CIFAR-10 leaves it
    for _ in range(2):  # the second time the cache folder lies beside the classes
        assert load(tmp_path / "flat", "pikachu").classes == ["not_pikachu", "pikachu"]
    fill(tmp_path / "pets", ("",), classes=("cat", "results"))  # here a class, since pets is not the data folder
    assert load(tmp_path).classes == ["cat", "results"]


WINDOWS = ("Thumbs.db", "0.jpg:Zone.Identifier")  # the second is what WSL shows of a downloaded file


def test_nested_folders_are_unwrapped_and_clutter_is_ignored(tmp_path):
    fill(tmp_path / "pets/archive/pets-main")
    for clutter in ("__MACOSX/x.png", ".hidden/x.png", *(f"archive/pets-main/train/cat/{file}" for file in WINDOWS)):
        write(tmp_path / "pets" / clutter, format="png")
    write(tmp_path / "pets/archive/pets-main/train/cat/._0.png")
    dataset = load(tmp_path)
    assert len(dataset.train) == 6 and dataset.skipped == []


def test_names_in_any_script(tmp_path):
    fill(tmp_path / "宠物", classes=("кошка", "σκύλος 🐕"))
    dataset = load(tmp_path, "宠物")
    assert dataset.classes == ["σκύλος 🐕", "кошка"]
    assert dataset.train.names == load(tmp_path, "宠物").train.names  # once decoded, once from the cache
    assert dataset.train.names[-1] == "train/кошка/trainкошка2.png"


def test_kaggle_is_used_if_there_is_no_folder(tmp_path, monkeypatch):
    fill(tmp_path / "download/versions/pikachu", classes=("not_pikachu", "pikachu"))
    asked = []
    kagglehub = SimpleNamespace(dataset_download=lambda handle: asked.append(handle) or str(tmp_path / "download"))
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)
    (tmp_path / "data").mkdir()
    dataset = load(tmp_path / "data", "pikachu")
    assert asked == ["hal0samuel/pikachu-classification-dataset"]
    assert dataset.source == "kaggle hal0samuel/pikachu-classification-dataset"
    assert len(dataset.train) == 6


def test_without_a_network_or_kagglehub_the_error_says_what_to_do(tmp_path, monkeypatch):
    def refuse(handle):
        raise ConnectionError("api.kaggle.com")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=refuse))
    with pytest.raises(UserError, match=r"Kaggle did not send .* \(ConnectionError\); .* pikachu/train/<class>/"):
        load(tmp_path, "pikachu")
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # so that importing it raises ImportError
    with pytest.raises(UserError, match="pip install kagglehub"):
        load(tmp_path, "pikachu")


def test_names_lists_what_can_be_loaded(tmp_path):
    fill(tmp_path / "pets", ("",))
    (tmp_path / "notes").mkdir()
    assert data.names(tmp_path) == ["cifar10", "cifar100", "cifar10_5k", "cifar10_tenth", "pets", "pikachu"]
    with pytest.raises(UserError, match="no 'cats' in the data folder; choose from cifar10, .*, pets, pikachu"):
        load(tmp_path, "cats")


# Bad input.


def test_a_missing_data_folder(tmp_path):
    with pytest.raises(UserError, match="no data folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path):
    (tmp_path / "pets").mkdir()
    with pytest.raises(UserError, match="folder pets is empty"):
        load(tmp_path)


def test_one_class(tmp_path):
    fill(tmp_path / "pets", classes=("cat",))
    with pytest.raises(UserError, match="one class, 'cat'"):
        load(tmp_path)
    fill(tmp_path / "more", ("",), classes=("cat",))
    with pytest.raises(UserError, match="one class, 'cat'"):
        load(tmp_path, "more")


def test_an_empty_class(tmp_path):
    fill(tmp_path / "pets")
    (tmp_path / "pets/test/bird").mkdir()
    with pytest.raises(UserError, match="class folder 'test/bird' of the folder pets is empty"):
        load(tmp_path)


def test_an_empty_split(tmp_path):
    fill(tmp_path / "pets", ("train", "validation"))
    (tmp_path / "pets/test").mkdir()
    with pytest.raises(UserError, match="test split of the folder pets is empty"):
        load(tmp_path)


def test_missing_duplicate_and_inconsistent_splits(tmp_path):
    fill(tmp_path / "a", ("train", "validation"))
    with pytest.raises(UserError, match="has the splits train, validation; it needs train and test"):
        load(tmp_path, "a")
    fill(tmp_path / "b", ("train", "val", "valid", "test"))
    with pytest.raises(UserError, match="two folders for the validation split"):
        load(tmp_path, "b")
    fill(tmp_path / "c")
    write(tmp_path / "c/train/bird/0.png")
    with pytest.raises(UserError, match="no class 'bird' in test/"):
        load(tmp_path, "c")


def test_too_few_images_to_split(tmp_path):
    fill(tmp_path / "pets", ("",), count=2)
    with pytest.raises(UserError, match="class 'cat' of the folder pets has 2 readable images, .* it needs 3"):
        load(tmp_path)


def spoil(root):
    """Put four files that are not valid images into train/cat; returns their paths."""
    whole = write(root / "train/cat/a_truncated.jpg", size=(200, 200)).read_bytes()
    (root / "train/cat/a_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/cat/b_empty.jpg").touch()
    (root / "train/cat/c_page.png").write_text("<html>404</html>")
    write(root / "train/cat/d_bomb.png", "white", size=(2000, 2000))
    return [f"train/cat/{name}" for name in ("a_truncated.jpg", "b_empty.jpg", "c_page.png", "d_bomb.png")]


def test_unreadable_files_are_skipped_and_named(tmp_path, capsys, monkeypatch):
    bad = spoil(fill(tmp_path / "pets"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)  # Pillow warns above it, and raises above twice it
    for _ in range(2):  # decoded, then from the cache
        dataset = load(tmp_path)
        assert len(dataset.train) == 6
        assert [file for file, _ in dataset.skipped] == bad
        why = [reason for _, reason in dataset.skipped]
        assert "truncated" in why[0]
        assert why[1:3] == ["an empty file", "not an image"]
        assert why[3] == "more than 3,000,000 pixels, perhaps a decompression bomb"
        printed = capsys.readouterr().out
        assert "Left out 4:" in printed and all(file in printed for file in bad)
        assert str(tmp_path) not in printed


def test_a_bomb_that_pillow_itself_refuses_is_reported_the_same_way(tmp_path, monkeypatch):
    spoil(fill(tmp_path / "pets"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert load(tmp_path).skipped[3][1] == "more than 1,000,000 pixels, perhaps a decompression bomb"


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("",)])
def test_a_class_without_a_readable_image_is_an_error(tmp_path, splits):
    root = fill(tmp_path / "pets", splits)
    for path in (root / splits[-1] / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"No image of class 'dog' of the folder pets can be read: .*dog0.png \(an"):
        load(tmp_path)


def test_on_a_read_only_disk_data_load_without_a_cache(tmp_path, capsys, monkeypatch):
    fill(tmp_path / "pets")

    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert len(load(tmp_path).train) == 6
    printed = capsys.readouterr().out
    assert printed.startswith("No cache is kept in the data folder (Read-only file system);")
    assert printed.count("\n") == 2
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, capsys, monkeypatch, disk_full):
    fill(tmp_path / "pets")
    monkeypatch.setattr(os, "fsync", disk_full)  # a temporary file has been written by then
    assert len(load(tmp_path).train) == 6
    assert "No space left on device" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"image_size": -1}, {"seed": -1}])
def test_invalid_sizes_and_seeds_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="choose a size above 0 and a seed of 0 or more"):
        data.load("pets", tmp_path, **wrong)


# One photograph.


def test_only_the_middle_square_is_kept(tmp_path):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, :64], pixels[:, 64:128], pixels[:, 128:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))):
        assert (decoded(tmp_path, image)[1:-1, 1:-1] == (0, 255, 0)).all()  # resizing blends in the neighbours at the edges


def test_squash_keeps_the_whole_image_but_not_its_aspect_ratio(tmp_path):
    """The same pixels as torchvision's `Resize((size, size))`, which the report's code uses."""
    root = fill(tmp_path / "pets")
    dataset = load(tmp_path, resize="squash")
    with Image.open(root / dataset.train.names[0]) as image:
        expected = pil_to_tensor(Resize((STORED, STORED))(image))
    assert torch.equal(dataset.train.images[0], expected)
    assert not torch.equal(load(tmp_path).train.images, dataset.train.images)
    cached = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert cached == [f"pets-{STORED}.npz", f"pets-squash-{STORED}.npz"]
    with pytest.raises(UserError, match="no resize 'stretch'; choose from crop, squash"):
        load(tmp_path, resize="stretch")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    quarters = np.kron([[0, 80], [160, 240]], np.ones((32, 32))).astype(np.uint8)
    upright = Image.fromarray(quarters).convert("RGB")
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transpositions to the pixels as a camera stores them
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = decoded(tmp_path, stored, exif=exif)[[4, 4, -4, -4], [4, -4, 4, -4], 0]
    assert corners.tolist() == [0, 80, 160, 240]


@pytest.mark.parametrize("block", [b"Exif\0\0junk, not a TIFF header", b"Exif\0\0MM\0*\0"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_broken_exif_block_counts_as_none(tmp_path, kind, block):
    more = {"exif": block} | ({"dpi": (72, 72)} if kind == "JPEG" else {})
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a", kind, **more)
    pixels, size = photographs.decode_photograph((tmp_path / "a").read_bytes(), STORED)
    assert size == (50, 40) and np.abs(pixels[:, 4, 4].astype(int) - (255, 0, 0)).max() <= 2


def test_bytes_that_many_tags_share_are_not_copied_for_each():
    """A megabyte of TIFF, or of EXIF, could otherwise fill the memory: here, a thousand times."""
    shared, rows = tiff(1000, 2**20), (b"IDAT", zlib.compress(bytes(72)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="its parts are read over and over"):
        photographs.decode_photograph(shared, STORED)
    assert photographs.decode_photograph(png(8, rows, (b"eXIf", shared)), STORED)[1] == (8, 8)
    assert tracemalloc.get_traced_memory()[1] < 2**29
    tracemalloc.stop()


def test_a_jpeg_may_not_be_scanned_without_end(tmp_path, monkeypatch):
    content = write(tmp_path / "a.jpg", progressive=True).read_bytes()  # ten scans of 40×32 pixels
    monkeypatch.setattr(photographs, "MOST_SCANNED", 10 * 40 * 32)
    assert photographs.decode_photograph(content, STORED)[1] == (40, 32)
    monkeypatch.setattr(photographs, "MOST_SCANNED", 9 * 40 * 32)
    with pytest.raises(ValueError, match="it has too many scans"):
        photographs.decode_photograph(content, STORED)


def test_a_file_name_need_not_be_utf8(tmp_path, capsys):
    root = fill(tmp_path / "pets")
    (root / "train" / "cat" / "traincat0.png").rename(root / "train" / "cat" / "caf\udce9.png")
    (root / "train" / "cat" / "bad\udce9.png").write_bytes(b"")
    dataset = load(tmp_path)
    assert "train/cat/caf\udce9.png" in dataset.train.names and len(dataset.fingerprint) == 16
    assert "Left out 1: train/cat/bad\\udce9.png (an empty file)" in capsys.readouterr().out


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    fill(tmp_path / "pets")
    fill(tmp_path / "private")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "private" and access(path, mode))
    assert len(load(tmp_path).train) == 6 and "private" not in data.names(tmp_path)


def test_a_link_into_a_private_folder_is_passed_over(tmp_path, monkeypatch):
    fill(tmp_path / "pets")
    (tmp_path / "link").symlink_to(fill(tmp_path / "private"))
    asked = os.stat

    def ask(path, *arguments, **options):
        if str(path).endswith("link"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return asked(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", ask)
    assert data.names(tmp_path) == sorted([*data.names(tmp_path / "nowhere"), "pets", "private"])


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_sizes_are_those_of_the_upright_photograph(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / f"turned.{kind}", "red", size=(50, 40), exif=exif)
    assert photographs.decode_photograph((tmp_path / f"turned.{kind}").read_bytes(), STORED)[1] == (40, 50)


def test_an_odd_exif_value_costs_neither_the_photograph_nor_its_orientation(tmp_path):
    """ImageWidth as text, which Pillow reads but cannot write."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2)
    exif += struct.pack(">HHI4s", 0x0100, 2, 4, b"640\0") + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    write(tmp_path / "odd.jpg", "red", size=(50, 40), exif=exif)
    assert photographs.decode_photograph((tmp_path / "odd.jpg").read_bytes(), STORED)[1] == (40, 50)


def test_a_half_decoded_png_is_refused():
    """Its pixels end in the middle, and the damaged text chunk after them is an error while Pillow looks for EXIF."""
    pixels = zlib.compress(np.random.default_rng(0).bytes(64 * 65))
    content = png(64, (b"IDAT", pixels[: len(pixels) // 2]), (b"zTXt", b"a\0\1b"))
    with pytest.raises((OSError, SyntaxError)):
        photographs.decode_photograph(content, STORED)


def test_a_large_jpeg_is_reported_at_its_original_size(tmp_path):
    write(tmp_path / "large.jpg", (200, 100, 50), size=(640, 480))
    pixels, size = photographs.decode_photograph((tmp_path / "large.jpg").read_bytes(), STORED)
    assert size == (640, 480)  # though it was decoded at an eighth
    assert np.abs(pixels.reshape(3, -1).T.astype(int) - (200, 100, 50)).max() <= 2


def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_size(tmp_path):
    write(tmp_path / "large.png", size=(8 * STORED, 8 * STORED))
    with Image.open(tmp_path / "large.png") as image:
        image.save(tmp_path / "large.jpg", quality=95)
    small, expected = (
        photographs.decode_photograph((tmp_path / f"large.{kind}").read_bytes(), STORED)[0] for kind in ("jpg", "png")
    )
    assert np.abs(small.astype(int) - expected).mean() < 4


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    assert np.abs(decoded(tmp_path, image, ".jpg", quality=95).astype(int) - (255, 0, 0)).max() <= 3


def test_palette(tmp_path):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert (decoded(tmp_path, image) == (10, 200, 30)).all()


def test_transparent_pixels_become_white(tmp_path):
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert (decoded(tmp_path, palette, transparency=1) == 255).all()
    assert (decoded(tmp_path, Image.new("RGBA", (40, 40), (0, 0, 0, 0))) == 255).all()
    assert (decoded(tmp_path, Image.new("LA", (40, 40), (0, 0))) == 255).all()
    assert (decoded(tmp_path, Image.new("RGBA", (40, 40), (10, 20, 30, 255))) == (10, 20, 30)).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit(tmp_path, suffix):
    image = Image.fromarray(np.full((40, 40), 128 * 257, np.uint16))
    assert (decoded(tmp_path, image, suffix) == 128).all()


def test_floating_point_pixels_up_to_1_or_to_255(tmp_path):
    for value in (0.4, 102):
        assert (decoded(tmp_path, Image.fromarray(np.full((40, 40), value, np.float32)), ".tif") == 102).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for suffix in (".gif", ".png"):
        pixels = decoded(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:])
        assert (pixels == (255, 0, 0)).all()


def test_one_pixel_and_one_row(tmp_path):
    assert (decoded(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3))) == (1, 2, 3)).all()
    assert decoded(tmp_path, Image.new("RGB", (10_000, 1), (1, 2, 3))).shape == (STORED, STORED, 3)


# The cache.


@pytest.fixture
def decodings(monkeypatch):
    """A list with one entry for each photograph decoded so far."""
    seen, decode = [], photographs.decode_photograph
    monkeypatch.setattr(photographs, "decode_photograph", lambda *a, **options: seen.append(1) or decode(*a, **options))
    return seen


def equal(one, other):
    return one.fingerprint == other.fingerprint and all(
        torch.equal(one.splits[name].images, other.splits[name].images)
        and torch.equal(one.splits[name].labels, other.splits[name].labels)
        and torch.equal(one.splits[name].sizes, other.splits[name].sizes)
        and one.splits[name].names == other.splits[name].names
        and one.splits[name].digests == other.splits[name].digests
        for name in ("train", "validation", "test")
    )


def test_the_second_load_decodes_nothing_and_is_the_same(tmp_path, decodings):
    fill(tmp_path / "pets")
    first = load(tmp_path)
    assert len(decodings) == 18
    assert equal(first, load(tmp_path))
    assert len(decodings) == 18
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"pets-{STORED}.npz"]


def test_another_size_decodes_again_and_another_seed_does_not(tmp_path, decodings):
    fill(tmp_path / "pets", ("",), count=5)
    load(tmp_path)
    load(tmp_path, seed=3)
    assert len(decodings) == 10
    assert data.load("pets", tmp_path, image_size=56).train.images.shape[-1] == 64
    assert len(decodings) == 20


def test_a_changed_source_is_noticed(tmp_path, decodings):
    root = fill(tmp_path / "pets")
    prints = [load(tmp_path).fingerprint]
    path = write(root / "train/cat/new.bmp")
    prints.append(load(tmp_path).fingerprint)
    (root / "test/dog/testdog0.png").unlink()
    prints.append(load(tmp_path).fingerprint)
    write(path, "red")  # as many bytes as before: a BMP is not compressed
    prints.append(load(tmp_path).fingerprint)
    assert len(set(prints)) == 4
    assert len(decodings) == 18 + 19 + 18 + 18


def test_the_fingerprint_depends_on_the_content_not_on_file_times(tmp_path):
    root = fill(tmp_path / "pets")
    before = load(tmp_path)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert equal(before, load(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "flip", "other", "empty", "encrypted"])
def test_a_damaged_cache_is_rebuilt(tmp_path, capsys, damage):
    fill(tmp_path / "pets")
    before = load(tmp_path)
    path = tmp_path / f"cache/pets-{STORED}.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8 if damage == "encrypted" else len(content) // 2] ^= 1  # encryption flag, or any bit
    path.write_bytes({"cut": content[:-100], "other": b"not a zip file", "empty": b""}.get(damage, content))
    assert equal(before, load(tmp_path))
    assert "cannot be read and will be rebuilt" in capsys.readouterr().out
    load(tmp_path)
    assert "rebuilt" not in capsys.readouterr().out
