"""The cost model for several GPUs: checked by hand, and as committed."""

import importlib.util
import json

import pytest
from PIL import Image

from helpers import models
from helpers.experiments.records import RESULTS

spec = importlib.util.spec_from_file_location("scaling", RESULTS / "bench/scaling/scaling.py")
spec.loader.exec_module(scaling := importlib.util.module_from_spec(spec))


def test_the_cost_model_by_hand():
    """A step of 64 images of 10⁹ multiply–adds takes 19.2 ms on one GPU; ten million parameters are 40 MB."""
    parts = {"macs": 10**9, "layers": 10, "gradient_bytes": 40_000_000}
    assert scaling.images_per_second(parts, 64, 1, 1e10) == pytest.approx(64 / 0.0192)
    # Two GPUs compute for 9.6 ms and send 40 MB in 4 ms plus 0.02 ms, all hidden behind the 6.4 ms of the backward pass.
    assert scaling.images_per_second(parts, 64, 2, 1e10) == pytest.approx(64 / 0.0096)
    # Eight compute for 2.4 ms and send 70 MB in 7 ms plus 0.14 ms, of which 1.6 ms are hidden.
    assert scaling.images_per_second(parts, 64, 8, 1e10) == pytest.approx(64 / (0.0024 + 0.00714 - 0.0016))
    # One image each: no step is shorter than its 30 launches.
    assert scaling.images_per_second(parts, 64, 64, 1e18) == pytest.approx(64 / (0.0003 + 126e-5 - 0.0002))


def test_the_committed_cost_model_is_up_to_date_and_drawn():
    kept = json.loads((RESULTS / "bench/scaling/cost_model.json").read_text())
    assert kept["assumed"] == scaling.ASSUMED and set(kept["measured"]) >= {"1 processes", "2 processes"}
    assert kept["modelled"] == json.loads(json.dumps(scaling.modelled()))
    assert {row["pays_up_to"] for row in kept["modelled"] if row["link"] == "PCIe"} == {1, 2, 4, 8}
    first = kept["modelled"][0]
    assert first["gradient_bytes"] == 4 * models.count_parameters(models.build("resnext29_under5m", 10)) < 20_000_000
    with Image.open(RESULTS / "bench/scaling/scaling.png") as image:
        assert image.size == (2000, 800)
