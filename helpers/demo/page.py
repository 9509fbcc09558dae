"""A page in the browser to try a model on: an image goes in, its label and what the label rests on come out."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from helpers.data.datasets import Dataset, Split
from helpers.data.pools import listed
from helpers.demo import classify
from helpers.demo.classify import SavedModel
from helpers.report.pictures import middle, overlay
from helpers.runtime import UserError

MOST_LIKELY = 5  # classes shown
NEAREST = 8  # training images shown
SMALLEST = 224  # pixels of a picture's side
SAMPLE = "SAMPLE: this model was trained on generated images; its labels mean nothing."
READING = """\
**How to read it.** *What it sees* is the middle square of the image, made small. *Grad-CAM* is light where the
network sees its first answer, and dark all over where nothing speaks for it. *The training images most like it* are
compared by what the network's last layer is given; a similarity of 1 is the most there is. Where they show something
else, distrust the answer."""

_PICTURE = {"format": "png", "buttons": [], "elem_classes": "picture"}
_TILES = {"height": "fit-content", "format": "png", "buttons": [], "elem_classes": "tiles"}
_CSS = """
.picture .image-container {padding-top: 26px}
.tiles .grid-container {grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)); padding-top: 28px}
.tiles .caption-label {left: 0; right: 0; bottom: 0; max-width: none; padding: 1px; font-size: 11px}
.tiles .caption-label {white-space: normal; overflow-wrap: anywhere}
@media (max-width: 640px) {.tiles .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr))}}
"""


def build_page(model: SavedModel, dataset: Dataset, known: Tensor, *, measured: str = "", examples: Split | None = None):
    """The page, a `gradio.Blocks` that `start` opens.

    An image comes as a file, from an address, or from the examples. What cannot be read is answered with one sentence, and
    the page goes on.

    Args:
        dataset: its training images are searched for those most like the image.
        known: their features (N, D), by `classify.features`.
        measured: a sentence on how accurate the model is.
        examples: images to click on; best such as the model was not trained on.

    Raises:
        UserError: gradio is not installed.
    """
    gradio = _gradio()

    def answer(read: Callable[[], tuple[str, Tensor]]) -> list:
        try:
            name, image = read()
            return [f"This is the answer to {name}.", *look(model, dataset, known, image)]
        except UserError as error:
            return [str(error), None, None, None, None]

    def uploaded(path: str) -> list:
        name, size = Path(path).name, model.about.stored_size
        return [*answer(lambda: (name, classify.read_image(path, size, name))), None]

    def fetched(url: str) -> list:
        return answer(lambda: (url.strip(), read_address(url.strip(), model.about.stored_size)))

    def clicked(event: gradio.SelectData) -> list:
        label = dataset.classes[examples.labels[event.index]]
        return answer(lambda: (f"an example labelled {label}", examples.images[event.index]))

    with gradio.Blocks(title="Classify your image", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(introduction(model, measured))
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(label="Your image", height=150)
                address = gradio.Textbox(label="or its address", placeholder="https://…", max_lines=1, submit_btn="Classify")
                if examples:
                    pictures = [picture(image, model.about.sample) for image in examples.images]
                    clickable = gradio.Gallery(pictures, label="or one of these", columns=4, allow_preview=False, **_TILES)
            with gradio.Column():
                status = gradio.Textbox("No image yet.", label="Status", elem_id="status", interactive=False)
                label = gradio.Label(label="Class probabilities", elem_id="label")
                with gradio.Row():
                    seen = gradio.Image(label="What it sees", elem_id="seen", **_PICTURE)
                    heat = gradio.Image(label="Grad-CAM", elem_id="heat", **_PICTURE)
        nearest = gradio.Gallery(label="The training images most like it", columns=NEAREST, elem_id="nearest", **_TILES)
        gradio.Markdown(READING)
        # One image at a time, as a model keeps what it was shown last; and no way in but the page itself.
        alone = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        outputs = [status, label, seen, heat, nearest]
        file.upload(uploaded, file, [*outputs, file], **alone)
        address.submit(fetched, address, outputs, **alone)
        if examples:
            clickable.select(clicked, None, outputs, **alone)
    return page


def start(page, **options) -> str:
    """Open a page that `build_page` made, inside a notebook where there is one; returns its address.

    Nobody else can reach it, unless `share=True` asks gradio for a public address.

    Args:
        options: for `gradio.Blocks.launch`.
    """
    theme = _gradio().themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    looks = {"theme": theme, "css": _CSS, "footer_links": [], "height": 900}
    options = {"share": False, "quiet": True, "max_file_size": classify.LARGEST_DOWNLOAD} | looks | options
    try:
        page.launch(**options)
    except ValueError:  # gradio gives its server three seconds to answer; on a busy machine the first answer takes longer
        page.launch(**options)
    return page.share_url or page.local_url


def _gradio():
    """The library, when it is first needed: training machines do without it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it is read when gradio is imported
    try:
        with warnings.catch_warnings(action="ignore"):  # without ipywidgets, about the looks of progress bars
            import gradio
    except ImportError as error:
        raise UserError("The page needs a package: run 'pip install gradio'.") from error
    return gradio


def introduction(model: SavedModel, measured: str = "") -> str:
    """What the page is, in Markdown: which model, what it knows, how accurate it is and what it cannot do."""
    about = model.about
    stamp = f"**{SAMPLE}**\n\n" if about.sample else ""
    return (
        f"# Classify your image\n\n{stamp}**{about.model}** knows {len(about.classes):,} classes: {listed(about.classes)}. "
        f"{measured} Every image gets one of these classes, even if it shows something else. "
        "Yours stays on the machine that runs this page."
    )


def read_address(url: str, size: int) -> Tensor:
    """The image at a URL, as `classify.read_image` gives it; but no file of the machine that runs the page.

    Raises:
        UserError: it is no address, cannot be reached, or is no image.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"'{url}' is no address of an image; it must start with http:// or https://.")
    return classify.read_image(url, size)


def look(model: SavedModel, dataset: Dataset, known: Tensor, image: Tensor) -> tuple[dict, np.ndarray, np.ndarray, list]:
    """What the page shows of an image, uint8 (3, S, S), as `classify.read_image` gives it.

    Args:
        dataset, known: as for `build_page`.

    Returns:
        The probabilities of the most likely classes; what the network sees, and where it sees the first class, each a
        `picture`; and the nearest training images, the nearest first, each a `picture` and its caption.
    """
    about = model.about
    classes, stamp = about.classes, "SAMPLE: " if about.sample else ""
    shares, labels = classify.probabilities(model, image[None])[0].sort()
    # The most likely last: of two ImageNet classes with the same name, "crane" or "maillot", it is the one that stays.
    likely = [(stamp + classes[label], share) for label, share in zip(labels.tolist(), shares.tolist(), strict=True)]
    heat = classify.grad_cam(model, image, int(labels[-1]))
    places, similarities = classify.nearest(classify.features(model, image[None])[0], known, NEAREST)
    names = [dataset.classes[label] for label in dataset.train.labels[places]]
    pictures = [picture(near, about.sample) for near in dataset.train.images[places]]
    captions = [f"{name}, {similarity:.3f}" for name, similarity in zip(names, similarities, strict=True)]
    return (
        dict(likely[-MOST_LIKELY:]),
        picture(middle(image, about.image_size), about.sample),
        picture(overlay(image, heat), about.sample),
        list(zip(pictures, captions, strict=True)),
    )


def picture(image: Tensor, sample: bool) -> np.ndarray:
    """An image, uint8 (3, H, W), for the page: uint8 (H, W, 3), enlarged where it is small, stamped where it is a sample."""
    pixels = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if pixels.width < SMALLEST:
        pixels = pixels.resize((SMALLEST, SMALLEST), Image.Resampling.NEAREST)
    if sample:
        middle, font = (pixels.width // 2, pixels.height // 2), ImageFont.load_default(pixels.width // 6)
        ink = {"fill": "white", "stroke_fill": "black", "stroke_width": 2, "anchor": "mm"}
        ImageDraw.Draw(pixels).text(middle, "SAMPLE", font=font, **ink)
    return np.asarray(pixels)
