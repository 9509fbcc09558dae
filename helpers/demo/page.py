"""A page in the browser to try a model: give it an image, and it shows the label and what the label rests on."""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from helpers.data import Dataset, Split, leaked, load, stratified
from helpers.data.pools import listed, printable
from helpers.demo.images import LARGEST_DOWNLOAD, is_address, read_image
from helpers.demo.labels import features, grad_cam, middle, nearest, overlay, probabilities
from helpers.demo.saved import SavedModel, load_model
from helpers.runtime import UserError, require

MOST_LIKELY = 5  # classes shown
NEAREST = 8  # training images shown
SMALLEST = 224  # a picture's side, in pixels
UNLABELLED = ["flower.jpg", "china.jpg"]  # examples if there is no data
SAMPLE = "SAMPLE: this model was trained on generated images; its labels mean nothing."
READING = """\
**How to read it.** *What it sees* is the image as the network gets it: square, cropped or squashed as in training, and
small. *Grad-CAM*: bright regions support the most likely class; an all-dark map means that nothing does. *The training
images most like it* are found by comparing what the network's last layer receives; the highest possible similarity is 1.
If they show something else, distrust the answer."""

_PICTURE = {"format": "png", "buttons": [], "elem_classes": "picture"}
_TILES = {"height": "fit-content", "format": "png", "buttons": [], "elem_classes": "tiles"}


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A model on the page."""

    model: SavedModel
    dataset: Dataset  # its training images are searched for the most similar ones
    known: Tensor  # their `features` (N, D)
    measured: str = ""  # a sentence on how accurate the model is
    examples: Split | None = None  # images to click on, preferably none from the training set
    card: str = ""  # its model card, in Markdown


def prepare(path: Path, data_dir: str | Path | None = None, searched: int = 1000, dataset: Dataset | None = None) -> Exhibit:
    """Load a saved model and its data: `searched` training images to compare with, and eight test images as examples.

    Test images that are also in training are left out. If the data cannot be loaded, a printed line says why, and the
    examples are two photographs from scikit-learn. `dataset` holds the model's own images, by default those on its card.
    """
    model = load_model(path)
    card, about = model.card, model.about
    try:
        if dataset is None:
            require(card, f"{path.name} has no model card, so its data are not known.")
            dataset = load(card["dataset"]["name"], data_dir, image_size=about.image_size, resize=about.resize)
        require(dataset.classes == about.classes, f"The classes of the {dataset.source} differ from those of {path.name}.")
        if card and dataset.fingerprint != card["dataset"]["fingerprint"]:
            print(f"{path.stem} was trained on images other than those in the {dataset.source}, which its card does not cover.")
        twice = set(leaked(dataset, near=False).tolist())
        fresh = dataset.test.subset([i for i in range(len(dataset.test)) if i not in twice])
        dataset, examples = replace(dataset, test=fresh), stratified(fresh, 8)
        train = stratified(dataset.train, searched)
        known = features(model, train.images)
    except UserError as error:
        print(f"{error} The page of {path.stem} shows examples from scikit-learn and no similar images.")
        photographs = [files("sklearn.datasets.images") / name for name in UNLABELLED]
        shown = torch.stack([read_image(photograph, about.stored_size, resize=about.resize) for photograph in photographs])
        examples = Split(shown, torch.full((len(shown),), -1), UNLABELLED)
        train, known = examples.subset([]), features(model, shown)[:0]
        dataset = Dataset(path.stem, "nowhere", "", about.classes, train, train, train)
    text = path.with_suffix(".md").read_text(encoding="utf-8") if path.with_suffix(".md").exists() else ""
    measured = f"Its run got {card['test']['accuracy']:.1%} of {card['test']['n']:,} test images right." if card else ""
    return Exhibit(model, replace(dataset, train=train), known, measured, examples, text)


def build_page(exhibits: Mapping[str, Exhibit]):
    """Build the page, a `gradio.Blocks` for `start`, with models to choose from; a UserError without gradio 6 or newer."""
    gradio = _gradio()
    first, shown = next(iter(exhibits.items()))
    with gradio.Blocks(title="Classify your image", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        about = gradio.Markdown(introduction(shown))
        chosen = gradio.Dropdown(list(exhibits), value=first, label="Model", elem_id="model", visible=len(exhibits) > 1)
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(label="Your image", height=150)
                address = gradio.Textbox(label="or its address", placeholder="https://…", max_lines=1, submit_btn="Classify")
                rear = gradio.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}})  # of a phone
                pictured = {"sources": ["webcam"], "type": "filepath", "webcam_options": rear}
                camera = gradio.Image(**pictured, label="or your camera", elem_id="camera")
                clickable = gradio.Gallery(_pictures(shown), label="or one of these", columns=4, allow_preview=False, **_TILES)
            with gradio.Column():
                status = gradio.Textbox("No image yet.", label="Status", elem_id="status", interactive=False)
                label = gradio.Label(label="Class probabilities", elem_id="label")
                with gradio.Row():
                    seen = gradio.Image(label="What it sees", elem_id="seen", **_PICTURE)
                    heat = gradio.Image(label="Grad-CAM", elem_id="heat", **_PICTURE)
        near = gradio.Gallery(label="The training images most like it", columns=NEAREST, elem_id="nearest", **_TILES)
        gradio.Markdown(READING)
        with gradio.Accordion("Model card", open=False):
            card = gradio.Markdown(shown.card, elem_classes="card")
        uploaded, photographed, fetched, clicked, switched = _handlers(exhibits)
        # One image at a time, since hooks on a model would mix up two; and no API, so that the page is the only way in.
        alone = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        outputs = [status, label, seen, heat, near]
        file.upload(uploaded, [chosen, file], [*outputs, file], **alone)
        camera.change(photographed, [chosen, camera], outputs, **alone)
        address.submit(fetched, [chosen, address], outputs, **alone)
        clickable.select(clicked, chosen, outputs, **alone)
        chosen.change(switched, chosen, [*outputs, about, clickable, card], **alone)
    return page


def _handlers(exhibits: Mapping[str, Exhibit]) -> tuple[Callable, ...]:
    """The page's event handlers: a file, a snapshot, an address, a click on an example, and a change of model."""
    gradio, nothing = _gradio(), [None] * 4

    def answer(chosen: str, name: str, image: str | Tensor) -> list:
        exhibit, about = exhibits[chosen], exhibits[chosen].model.about
        try:
            if isinstance(image, str):  # a path or an address
                image = read_image(image, about.stored_size, name, resize=about.resize)
            return [f"This is the answer for {name}.", *explain(exhibit, image)]
        except UserError as error:
            return [str(error), *nothing]

    def uploaded(chosen: str, path: str) -> list:
        return [*answer(chosen, Path(path).name, path), None]

    def photographed(chosen: str, path: str | None) -> list:
        return [gradio.skip()] * 5 if path is None else answer(chosen, "your snapshot", path)

    def fetched(chosen: str, url: str) -> list:
        url = url.strip()
        if not is_address(url):
            return [f"'{url}' is not the address of an image; it must start with http:// or https://.", *nothing]
        return answer(chosen, printable(url), url)

    def clicked(chosen: str, event: gradio.SelectData) -> list:
        dataset, examples = exhibits[chosen].dataset, exhibits[chosen].examples
        label, name = int(examples.labels[event.index]), examples.names[event.index]
        called = f"an example labelled {dataset.classes[label]}" if label >= 0 else f"the example {name}"
        return answer(chosen, called, examples.images[event.index])

    def switched(chosen: str) -> list:
        exhibit = exhibits[chosen]
        return ["No image yet.", *nothing, introduction(exhibit), _pictures(exhibit), exhibit.card]

    return uploaded, photographed, fetched, clicked, switched


def _pictures(exhibit: Exhibit) -> list[np.ndarray]:
    return [picture(image, exhibit.model.about.sample) for image in (exhibit.examples.images if exhibit.examples else [])]


def start(page, **options) -> str:
    """Open a page made by `build_page`, inside the notebook if there is one; returns its address.

    Nobody else can reach it unless `share=True` asks gradio for a public address. Gradio listens on this machine's
    loopback address, accepts files of at most `LARGEST_DOWNLOAD` bytes, and answers one image at a time, in one worker.
    `options` are those of `gradio.Blocks.launch`.
    """
    theme = _gradio().themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    looks = {"theme": theme, "css_paths": Path(__file__).with_name("page.css"), "footer_links": [], "height": 900}
    options = {"share": False, "quiet": True, "max_file_size": LARGEST_DOWNLOAD} | looks | options
    try:
        page.launch(**options)
    except ValueError:  # gradio gives its server three seconds to answer; on a busy machine the first answer takes longer
        page.launch(**options)
    return page.share_url or page.local_url


def _gradio():
    """Import gradio only when it is needed: training machines do without it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it on import
    try:
        with warnings.catch_warnings(action="ignore"):  # without ipywidgets, a warning about progress bars
            import gradio
    except ImportError as error:
        raise UserError("The page needs a package: run 'pip install gradio'.") from error
    old = f"The page needs gradio 6, not {gradio.__version__}: run 'pip install -U gradio' and restart the notebook."
    require(int(gradio.__version__.partition(".")[0]) >= 6, old)
    return gradio


def introduction(exhibit: Exhibit) -> str:
    """The page's introduction, in Markdown: the model, its classes, its accuracy and its limits."""
    about = exhibit.model.about
    stamp = f"**{SAMPLE}**\n\n" if about.sample else ""
    known = _plain(listed([name[:100] for name in about.classes]))
    return (
        f"# Classify your image\n\n{stamp}**{_plain(about.model)}** knows {len(about.classes):,} classes: {known}. "
        f"{exhibit.measured} Every image gets one of these classes, even if it shows something else. "
        "Yours stays on the machine that runs this page."
    )


def _plain(text: str) -> str:
    """Escape text so that Markdown, HTML and formulas show it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>$~&])", r"\\\1", " ".join(text.split()))


def explain(exhibit: Exhibit, image: Tensor) -> tuple[dict, np.ndarray, np.ndarray, list]:
    """What the page shows for an image, uint8 (3, S, S): the probabilities of the most likely classes, the network's input,
    the Grad-CAM of the likeliest, and the most similar training images with captions, best first; each image a `picture`.
    """
    model, dataset, about = exhibit.model, exhibit.dataset, exhibit.model.about
    classes, stamp = about.classes, "SAMPLE: " if about.sample else ""
    shares, labels = probabilities(model, image[None])[0].sort()
    require(shares.isfinite().all(), "The model's answer to this image is not a number; choose another model.")
    # Most likely last: if two ImageNet classes share a name, such as "crane" or "maillot", the dict keeps the likelier.
    likely = [(stamp + classes[label], share) for label, share in zip(labels.tolist(), shares.tolist(), strict=True)]
    heat = grad_cam(model, image, int(labels[-1]))
    places, similarities = nearest(features(model, image[None])[0], exhibit.known, NEAREST)
    tiles = []
    for place, similarity in zip(places.tolist(), similarities.tolist(), strict=True):
        name = dataset.classes[dataset.train.labels[place]]
        tiles.append((picture(dataset.train.images[place], about.sample), f"{name}, {similarity:.3f}"))
    seen = picture(middle(image, about.image_size), about.sample)
    return dict(likely[-MOST_LIKELY:]), seen, picture(overlay(image, heat), about.sample), tiles


def picture(image: Tensor, sample: bool) -> np.ndarray:
    """An image, uint8 (3, H, W), for the page: uint8 (H, W, 3), enlarged if it is small, stamped SAMPLE if `sample`."""
    pixels = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if pixels.width < SMALLEST:
        pixels = pixels.resize((SMALLEST, SMALLEST), Image.Resampling.NEAREST)
    if sample:
        centre, font = (pixels.width // 2, pixels.height // 2), ImageFont.load_default(pixels.width // 6)
        ink = {"fill": "white", "stroke_fill": "black", "stroke_width": 2, "anchor": "mm"}
        ImageDraw.Draw(pixels).text(centre, "SAMPLE", font=font, **ink)
    return np.asarray(pixels)
