"""README's tables: written between their markers, and up to date with the committed records."""

import json
import re

import pandas as pd
import pytest
from PIL import Image

from helpers.experiments import records as results
from helpers.report import amp_curves, readme
from helpers.runtime import UserError


def test_each_part_goes_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "parts", lambda records: {"results": "new\n", "speed": "fast\n"})
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- results -->\nold\n<!-- /results -->\nb\n<!-- speed -->\n<!-- /speed -->\nc\n")
    readme.write([], file)
    assert file.read_text() == ("a\n<!-- results -->\nnew\n<!-- /results -->\nb\n<!-- speed -->\nfast\n<!-- /speed -->\nc\n")
    file.write_text("a\n<!-- results -->\n<!-- /results -->\n")
    with pytest.raises(UserError, match="README.md has no <!-- speed -->"):
        readme.write([], file)


def test_the_readme_states_when_ninety_per_cent_were_reached():
    """By our short recipe for `amp`'s network, and when a textbook loop would, at two gradients per step."""
    run = results.load(results.record_path("cifar10/resnext29_under5m_fast", "full", 0))
    epoch = next(row["epoch"] for row in run["history"] if row["val_accuracy"] >= 0.9)
    minutes = sum(row["seconds"] for row in run["history"][:epoch]) / 60
    printed = amp_curves()["perturbed"].ge(90).idxmax()
    measured = json.loads((results.RESULTS / "bench" / "cpu_2_threads_amx_bf16.json").read_text(encoding="utf-8"))["results"]
    [rate] = (round(row["textbook_images_per_second"], 1) for row in measured if row["model"] == "resnext29_under5m")
    ours = f"in epoch {epoch} of {len(run['history'])}, after {minutes:.0f} minutes ({run['environment']['device']}; "
    loop = f"2 · {printed} · 50,000 / {rate} seconds for that, or {2 * printed * 50_000 / rate / 3600:.0f} hours"
    text = (results.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert ours in text and f"90 % in epoch {printed}, with" in text and loop in text


def test_the_speed_table_is_read_from_the_saved_benchmarks(tmp_path):
    row = {"model": "resnext29_32x4d", "image_size": 32, "batch": 64, "ratio": 5.04, "input_ratio": 22.7}
    row |= {"textbook_images_per_second": 19.4, "ours_images_per_second": 97.77}
    row |= {"textbook_range": [18.0, 20.0], "ours_range": [90.0, 99.0]}
    row |= {"textbook_peak_memory_bytes": 2**31, "ours_peak_memory_bytes": 2**30}
    (tmp_path / "bench").mkdir()
    around = {"device": "CPU, 2 threads", "mixed_precision": "bfloat16"}
    (tmp_path / "bench" / "cpu_2_threads_bf16.json").write_text(
        json.dumps({"environment": around, "results": [row], "pieces": []})
    )
    line = "| cpu 2 threads bf16 | resnext29_32x4d | 32×32 | 64 | 19.4 | 97.8 | 5.0× (4.5–5.5) | 20× | 2.0 → 1.0 |"
    assert line in readme.speed_part(tmp_path)


def test_the_committed_readme_matches_the_committed_records_and_shows_print_ready_figures(monkeypatch):
    committed = pd.read_csv(results.RESULTS / "claims.csv", dtype=str, keep_default_na=False)  # `test_claims` recomputes it
    monkeypatch.setattr(readme.claims, "claims_table", lambda records: committed)
    text = (results.ROOT / "README.md").read_text(encoding="utf-8")
    for name, part in readme.parts(results.load_all()).items():
        assert f"<!-- {name} -->\n{part}<!-- /{name} -->" in text, "run python -m helpers table"
    for figure in re.findall(r"!\[[^]]+\]\((results/[^)]+)\)", text):
        with Image.open(results.ROOT / figure) as image:
            assert [round(dots) for dots in image.info["dpi"]] == [200, 200]


def test_readme_has_no_result_from_a_tenth_of_the_data_or_from_jpeg_copies():
    text = (results.ROOT / "README.md").read_text(encoding="utf-8")
    assert "cifar10_tenth" not in text and "JPEG" not in text and "a tenth of" not in text


def test_the_first_screen_has_at_most_forty_lines_and_the_headline_table():
    first, _ = (results.ROOT / "README.md").read_text(encoding="utf-8").split("\n## ", 1)
    assert len(first.splitlines()) <= 40 and "<!-- headline -->" in first


def test_every_link_to_a_file_in_readme_works():
    text = (results.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (results.ROOT / link).exists()] == []
