"""Photographs from the data folder or from Kaggle, turned upright, converted to RGB, made square and shrunk."""

import logging
import struct
import warnings
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from helpers.data.pools import Pool, cache_path, cached, decode, holds_images, is_image_folder, list_files, unwrap
from helpers.runtime import UserError

KAGGLE = {"pikachu": "hal0samuel/pikachu-classification-dataset"}
HELD_OUT = 0.2
RESIZES = ("crop", "squash")
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")  # no EPS: Ghostscript would execute it
MOST_PIXELS = 40_000_000  # to decode, at up to ten bytes each; JPEGs are decoded at a reduced size, so they may have more
MOST_SCANNED = 2e10  # pixels of all scans of a JPEG together, about a minute


def read_pool(name: str, base: Path, size: int, resize: str) -> Pool:
    """Photographs from the image folder `name`, else from `base` itself, else from Kaggle, `size` pixels wide and high."""
    source, root = _find(name, base)
    files = list_files(root, source, is_data_folder=root == base)
    paths, read = [path for path, _, _ in files], lambda path: (root / path).read_bytes()
    decoder = partial(decode_photograph, resize=resize)
    path = cache_path(base, Path(name).name if resize == "crop" else f"{Path(name).name}-{resize}", size)
    return cached(path, source, files, size, partial(decode, source, paths, read, decoder, size))


def _find(name: str, base: Path) -> tuple[str, Path]:
    """A description of the source, and the folder that holds its splits or classes."""
    own = unwrap(base / name) if (base / name).is_dir() else None
    # DATA_DIR may point at the photographs themselves, and one of their classes may have the same name as the data set.
    if name in KAGGLE and is_image_folder(base) and (own is None or holds_images(own)):
        return f"folder {base.resolve().name}", base
    if own:
        return f"folder {Path(name).name}", own
    instead = f"or put the photographs into the data folder yourself, as {name}/train/<class>/ and so on"
    try:
        with warnings.catch_warnings(action="ignore"):  # without ipywidgets, it warns about its progress bars
            import kagglehub
        logging.getLogger("kagglehub").setLevel(logging.WARNING)  # otherwise it prints local paths
        return f"kaggle {KAGGLE[name]}", unwrap(Path(kagglehub.dataset_download(KAGGLE[name])))
    except ImportError as error:
        raise UserError(f"Kaggle needs a package: run 'pip install kagglehub', {instead}.") from error
    except Exception as error:  # each library under kagglehub has its own errors, and all of them mean no data
        why = f"Kaggle did not send '{KAGGLE[name]}' ({type(error).__name__})"
        raise UserError(f"{why}; try again with a network connection, {instead}.") from error


class Metered(BytesIO):
    """The bytes of a file, which may be read only a few times over: all tags of a TIFF can point to the same ones."""

    taken = 0  # bytes read so far, plus 4 KiB for each read

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.taken += len(part) + 2**12
        if self.taken > 2 * self.getbuffer().nbytes + 2**28:
            raise ValueError("its parts are read over and over")
        return part


def decode_photograph(content: bytes, size: int, resize: str = "crop") -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image file of any mode to an upright RGB square, uint8 (3, size, size), and its original width and height.

    `crop` keeps the middle square; `squash` keeps the whole image but not its aspect ratio, as report `pikachu`'s code does.
    A file that is empty, has more than `MOST_PIXELS` or is read too often is a ValueError; one that is not an image, too
    large, or truncated is a PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError or OSError.
    """
    if not content:
        raise ValueError("an empty file")
    Image.init()
    with Image.open(Metered(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Image.DecompressionBombError
        width, height = image.size
        if image.format in ("JPEG", "MPO") and width * height * content.count(b"\xff\xda") > MOST_SCANNED:
            raise ValueError("it has too many scans; save it again")
        image.draft(None, (2 * size, 2 * size))  # JPEGs are decoded at 1/2, 1/4 or 1/8 scale, never below twice the size
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{width}x{height} pixels are too many; shrink it or save it as a JPEG")
        image.load()  # before EXIF, for which Pillow would decode a PNG: its errors must not be suppressed
        if len(image.info.get("exif", b"")) > 2**16:  # no JPEG holds more; Pillow copies a crafted one's bytes again and again
            del image.info["exif"]
        with suppress(SyntaxError, ValueError, struct.error):  # a broken EXIF block, which Pillow now takes for an empty one
            image.getexif()
        if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # on its side; a TIFF has been turned by now
            width, height = height, width
        image.info.pop("exif", None)  # or `exif_transpose`, which has read it, would write it back and fail on an odd value
        upright = _to_rgb(ImageOps.exif_transpose(image))
    # `fit` crops while resizing: an image of 1 x 10,000 pixels would otherwise grow to millions on the way.
    squared = ImageOps.fit if resize == "crop" else Image.Image.resize
    return np.asarray(squared(upright, (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1), (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; transparent areas become white."""
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        values = np.array(image, np.float32)
        float_white = 1 if values.max() <= 1 else 255
        values *= 255 / (float_white if image.mode == "F" else 65535)
        image = Image.fromarray(values.round(out=values).clip(0, 255, out=values).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
