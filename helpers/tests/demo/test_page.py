"""The page for trying a model: its functions, and in a real browser if playwright and Chromium are installed."""

import re
import shutil
import sys
import threading
import warnings
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from importlib.util import find_spec
from math import log
from types import SimpleNamespace
from urllib.parse import urlsplit

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import demo
from helpers.data.datasets import Dataset, Split
from helpers.demo import images, page
from helpers.report import pictures
from helpers.runtime import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)
SIZE = 16
WAIT = 120_000  # milliseconds that the browser waits for an expected change
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + ["Chromium"] * (BROWSER is None)


def flat(colour):
    """An image of one colour, uint8 (3, SIZE, SIZE)."""
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, SIZE, SIZE)


def by_hand(sample=False):
    """A model with known answers: with r and b the mean red and blue from 0 to 1, the odds of red are 9 ** (r - b)."""
    stage, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    stage.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1]])[:, :, None, None]
    head.weight.data = log(9) * torch.eye(2)
    layers = OrderedDict(stage=stage, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head)
    about = demo.Preprocessing("by hand", ["red", "blue"], SIZE, SIZE, (0.0,) * 3, (1.0,) * 3, sample)
    return demo.SavedModel(nn.Sequential(layers).eval(), about)


@pytest.fixture(scope="module")
def dataset():
    """Blue, red and purple training images, blue and red test images; the model has the classes in another order."""
    train = Split(torch.stack([flat(BLUE), flat(RED), flat((127, 0, 127))]), torch.tensor([0, 1, 1]), [""] * 3)
    test = Split(torch.stack([flat(BLUE), flat(RED)]), torch.tensor([0, 1]), [""] * 2)
    return Dataset("colours", "drawn here", "", ["blue", "red"], train, test, test)


def test_an_answer_and_its_explanation_match_hand_calculations(dataset):
    model = by_hand()
    image = flat(RED)
    image[:, :, SIZE // 2 :] = 0
    known = demo.features(model, dataset.train.images)
    likely, seen, heat, nearest = page.explain(page.Exhibit(model, dataset, known), image)
    assert likely == pytest.approx({"red": 0.75, "blue": 0.25}), "half of it is red: odds of 9 ** 0.5"
    assert [caption for _, caption in nearest] == ["red, 1.000", "red, 0.707", "blue, 0.000"]
    assert all(picture.shape == (224, 224, 3) for picture in (seen, heat, *(picture for picture, _ in nearest)))
    assert (seen[:, :112] == RED).all() and (seen[:, 112:] == 0).all()
    hot, cold = (255 * np.array(plt.get_cmap("inferno")(value)[:3]) for value in (1.0, 0.0))
    assert np.abs(heat[0, 0] - (0.6 * hot + 0.4 * 85)).max() <= 0.51 and np.abs(heat[0, -1] - 0.6 * cold).max() <= 0.51


def test_a_model_trained_on_generated_images_says_so_everywhere(dataset):
    model, plain = by_hand(sample=True), by_hand()
    known = demo.features(model, dataset.train.images)
    likely, *pictures, nearest = page.explain(page.Exhibit(model, dataset, known), flat(RED))
    assert list(likely) == ["SAMPLE: blue", "SAMPLE: red"]
    told, plainly = (page.introduction(page.Exhibit(one, dataset, known)) for one in (model, plain))
    assert page.SAMPLE in told and page.SAMPLE not in plainly
    _, *without, nearest_without = page.explain(page.Exhibit(plain, dataset, known), flat(RED))
    pictures, without = ([*some, *(one for one, _ in near)] for some, near in ((pictures, nearest), (without, nearest_without)))
    assert all((one != other).any() for one, other in zip(pictures, without, strict=True))


def test_the_most_likely_classes_are_shown_and_of_two_with_one_name_the_likelier(dataset):
    stage, head = nn.Conv2d(3, 3, 1), nn.Linear(3, 8, bias=False)
    head.weight.data[:] = torch.arange(8.0)[:, None]
    stage.weight.data[:], stage.bias.data[:] = 0, 1 / 3  # so the scores are 0 to 7, whatever the image
    layers = OrderedDict(stage=stage, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head)
    classes = ["a", "b", "c", "d", "crane", "e", "f", "crane"]
    about = demo.Preprocessing("by hand", classes, SIZE, SIZE, (0.0,) * 3, (1.0,) * 3, False)
    model = demo.SavedModel(nn.Sequential(layers).eval(), about)
    known = demo.features(model, dataset.train.images)
    likely, *_ = page.explain(page.Exhibit(model, dataset, known), flat(RED))
    shares = torch.arange(8.0).softmax(0).tolist()
    assert likely == pytest.approx({"d": shares[3], "e": shares[5], "f": shares[6], "crane": shares[7]})


def test_an_answer_that_is_not_a_number_is_no_answer(dataset):
    model = by_hand()
    model.network.head.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="The model's answer to this image is not a number"):
        page.explain(page.Exhibit(model, dataset, torch.zeros(3, 2)), flat(RED))


@pytest.mark.parametrize("address", ["/etc/passwd", "file:///etc/passwd", "data/README.md", "ftp://a/b.png", ""])
def test_the_address_field_never_reads_a_local_file(dataset, monkeypatch, address):
    monkeypatch.setattr(page, "_gradio", lambda: SimpleNamespace(SelectData=None))
    monkeypatch.setattr(page, "read_image", None)
    _, _, fetched, *_ = page._handlers({"one": page.Exhibit(by_hand(), dataset, torch.zeros(3, 2))})
    status, *answers = fetched("one", address)
    assert status == f"'{address}' is not the address of an image; it must start with http:// or https://."
    assert answers == [None] * 4


def test_without_gradio_one_sentence_says_what_to_install(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"^The page needs a package: run 'pip install gradio'\.$"):
        page.build_page({"by hand": page.Exhibit(by_hand(), dataset, torch.zeros(3, 2))})


def test_with_an_older_gradio_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="5.50.0"))
    with pytest.raises(UserError, match="needs gradio 6, not 5.50.0: run 'pip install -U gradio' and restart"):
        page._gradio()


@pytest.mark.parametrize("name", ["<b>cat</b>", "$x^$", "[a](javascript:b)", "**bold**", "x" * 5000])
def test_class_names_are_not_rendered_as_markup(dataset, name):
    model = by_hand()
    about = replace(model.about, classes=[name, "blue"])
    told = page.introduction(page.Exhibit(replace(model, about=about), dataset, torch.zeros(3, 2)))
    assert len(told) < 500 and not re.search(r"(?<!\\)(<b>|\$|\]\(|\*\*bold)", told)
    assert told.count("\n") == 2


def test_class_names_are_not_rendered_as_formulas():
    """`$x^$` is an invalid formula, so rendering it would raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # files that other tests left open may be collected here
        bars = pictures.probability_bars([flat(RED)], ["$x^$"], torch.tensor([[0.25, 0.75]]), ["$x^$", "b"])
        bars.canvas.draw()
        pictures.image_grid([flat(RED)], ["$x^$"]).canvas.draw()
    assert [text.get_text() for text in bars.axes[1].texts] == ["b", "75.0%", "$x^$", "25.0%"], "the likelier class first"
    plt.close("all")


def test_the_pages_handlers_for_files_addresses_examples_and_another_model(dataset, tmp_path):
    pytest.importorskip("gradio")
    Image.new("RGB", (60, 40), RED).save(tmp_path / "red.png")
    one = page.Exhibit(by_hand(), dataset, demo.features(by_hand(), dataset.train.images), "Right.", dataset.test, "# Card")
    exhibits = {"one": one, "other": replace(one, card="# Other")}
    uploaded, photographed, fetched, clicked, switched = page._handlers(exhibits)
    status, label, *_, cleared = uploaded("one", str(tmp_path / "red.png"))
    assert status == "This is the answer for red.png." and label["red"] == pytest.approx(0.9) and cleared is None
    (tmp_path / "notes.png").write_text("not an image")
    assert uploaded("one", str(tmp_path / "notes.png"))[:2] == ["notes.png cannot be classified: not an image.", None]
    assert photographed("one", str(tmp_path / "red.png"))[0] == "This is the answer for your snapshot."
    assert len(photographed("one", None)) == 5
    refused = "http://127.0.0.1:9/a.png cannot be classified: its address is not a public one."
    assert fetched("one", " http://127.0.0.1:9/a.png ") == [refused, None, None, None, None]
    assert fetched("one", str(tmp_path / "red.png"))[0].endswith("it must start with http:// or https://.")
    status, label, *_ = clicked("other", SimpleNamespace(index=0))
    assert status == "This is the answer for an example labelled blue." and label["blue"] == pytest.approx(0.9)
    assert switched("other")[-1] == "# Other" and len(switched("other")[-2]) == 2
    components = page.build_page(exhibits).config["components"]
    assert {"Model", "Model card", "or your camera"} <= {one["props"].get("label") for one in components}
    (camera,) = [one["props"] for one in components if one["props"].get("label") == "or your camera"]
    assert camera["sources"] == ["webcam"]


def test_gradio_runs_on_loopback_with_one_worker_and_limited_uploads(dataset):
    pytest.importorskip("gradio")
    launched = {}
    page.start(SimpleNamespace(launch=lambda **options: launched.update(options), share_url=None, local_url="here"))
    assert not launched["share"] and "server_name" not in launched and launched["max_file_size"] == 32 * 2**20
    made = page.build_page({"one": page.Exhibit(by_hand(), dataset, torch.zeros(3, 2))})
    assert [work.concurrency_limit for work in made.fns.values()] == [1] * 5
    assert {work.concurrency_id for work in made.fns.values()} == {"model"}


@pytest.fixture(scope="module")
def address(dataset):
    """The address of the running page."""
    if MISSING:
        pytest.skip(f"not installed here: {', '.join(MISSING)}")
    model = by_hand()
    known = demo.features(model, dataset.train.images)
    one = page.Exhibit(model, dataset, known, "It gets 2 of 2 right.", dataset.test, "# The card")
    made = page.build_page({"one": one, "other": replace(one, measured="It is the other.", examples=None)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "is_public", lambda address: True)  # so that the page may fetch from a test's own server
        yield page.start(made, prevent_thread_lock=True)
        made.close()


@pytest.fixture
def browser(address, tmp_path):
    """The page in a fresh browser, which must not contact any other machine."""
    from playwright.sync_api import sync_playwright

    arguments = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    arguments += ["disable-component-update", "disable-sync"]
    arguments += ["use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"]  # a camera that shows a moving disc
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=BROWSER, args=[f"--{argument}" for argument in arguments]
        )
        context.set_default_timeout(WAIT)
        tab, asked = context.new_page(), []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.wait_for_selector("#status textarea")
        yield tab
        context.close()
    assert {urlsplit(url).hostname for url in asked if url.startswith("http")} == {"127.0.0.1"}, "it contacts no other machine"


def status_is(tab, text):
    """Wait until the page's status contains `text`, and return all of it."""
    wanted = "text => document.querySelector('#status textarea').value.includes(text)"
    tab.wait_for_function(wanted, arg=text)
    return tab.input_value("#status textarea")


def is_empty(tab):
    """Whether the page shows no answer."""
    answers = "#label .confidence-set, #seen img, #heat img, #nearest img"
    tab.wait_for_function("answers => document.querySelector(answers) === null", arg=answers)
    return "%" not in tab.inner_text("#label")


def answer(tab, name):
    """The words of the page's label and the captions of the nearest images, once it has answered to `name`."""
    assert status_is(tab, name) == f"This is the answer for {name}."
    for place in ("#seen img", "#heat img", "#nearest img"):
        loaded = "place => document.querySelector(place)?.complete && document.querySelector(place).naturalWidth === 224"
        tab.wait_for_function(loaded, arg=place)
    return tab.inner_text("#label").split()[2:], tab.locator("#nearest .caption-label").all_inner_texts()


def test_a_photograph_a_file_that_is_not_an_image_and_another_photograph(browser, tmp_path):
    for name, colour in (("red.png", RED), ("blue.png", BLUE)):
        Image.new("RGB", (60, 40), colour).save(tmp_path / name)
    (tmp_path / "notes.png").write_text("not an image")
    text = browser.inner_text("body")
    assert "by hand knows 2 classes: red; blue. It gets 2 of 2 right." in text and "SAMPLE" not in text
    browser.set_input_files("input[type=file]", tmp_path / "red.png")
    likely, nearest = answer(browser, "red.png")
    assert likely == ["red", "red", "90%", "blue", "10%"]
    assert nearest == ["red, 1.000", "red, 0.707", "blue, 0.000"]
    browser.set_input_files("input[type=file]", tmp_path / "notes.png")
    assert status_is(browser, "notes.png") == "notes.png cannot be classified: not an image."
    assert is_empty(browser)
    browser.set_input_files("input[type=file]", tmp_path / "blue.png")
    likely, nearest = answer(browser, "blue.png")
    assert likely == ["blue", "blue", "90%", "red", "10%"]
    assert nearest == ["blue, 1.000", "red, 0.707", "red, 0.000"]


def test_a_reachable_address_an_unreachable_one_and_an_example(browser, tmp_path):
    Image.new("RGB", (60, 40), RED).save(tmp_path / "red.png")
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    url = f"http://127.0.0.1:{server.server_port}/red.png"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    field = browser.locator("input[placeholder], textarea[placeholder]").first
    field.fill(f"  {url} ")
    field.press("Enter")
    assert answer(browser, url)[0] == ["red", "red", "90%", "blue", "10%"]
    server.shutdown()
    server.server_close()
    field.press("Enter")
    assert status_is(browser, "could not be reached").startswith(f"{url} cannot be classified: it could not be reached (")
    assert is_empty(browser)
    field.fill("/etc/passwd")
    field.press("Enter")
    assert status_is(browser, "must start with http").startswith("'/etc/passwd' is not the address of an image")
    browser.locator(".tiles button:has(img)").first.click()
    assert answer(browser, "an example labelled blue")[0] == ["blue", "blue", "90%", "red", "10%"]


def test_another_model_and_a_camera_snapshot(browser):
    browser.locator("#model input").click()
    browser.get_by_role("option", name="other").click()
    browser.get_by_text("It is the other.").wait_for()
    browser.locator("#camera").get_by_text("Click to Access Webcam").click()
    browser.locator("#camera button[aria-label='capture photo']").click()
    shares = [int(word[:-1]) for word in answer(browser, "your snapshot")[0] if word.endswith("%")]
    assert sum(shares) == 100
