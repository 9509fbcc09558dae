"""README's tables: put between their markers, and those of what is committed."""

import json
import re

import pytest
from PIL import Image

from helpers.experiments import records as results
from helpers.report import readme
from helpers.runtime import UserError


def test_each_part_goes_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "parts", lambda: {"results": "new\n", "speed": "fast\n"})
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- results -->\nold\n<!-- /results -->\nb\n<!-- speed -->\n<!-- /speed -->\nc\n")
    readme.write(file)
    assert file.read_text() == ("a\n<!-- results -->\nnew\n<!-- /results -->\nb\n<!-- speed -->\nfast\n<!-- /speed -->\nc\n")
    file.write_text("a\n<!-- results -->\n<!-- /results -->\n")
    with pytest.raises(UserError, match="README.md has no <!-- speed -->"):
        readme.write(file)


def test_the_speed_table_is_read_from_what_bench_kept(tmp_path):
    row = {"model": "resnext29_32x4d", "image_size": 32, "batch": 64, "ratio": 5.04, "input_ratio": 7.0}
    row |= {"textbook_images_per_second": 19.4, "ours_images_per_second": 97.77}
    row |= {"textbook_peak_memory_bytes": 2**31, "ours_peak_memory_bytes": 2**30}
    (tmp_path / "bench").mkdir()
    around = {"device": "CPU, 2 threads", "mixed_precision": "bfloat16"}
    (tmp_path / "bench" / "cpu.json").write_text(json.dumps({"environment": around, "results": [row], "pieces": []}))
    line = "| CPU, 2 threads, bfloat16 | resnext29_32x4d | 32×32 | 64 | 19.4 | 97.8 | 5.0× | 7.0× | 2.0 → 1.0 |"
    assert line in readme.speed_part(tmp_path)


def test_the_fast_path_and_the_plain_one_end_alike_within_what_another_seed_changes():
    def run(name, accuracy, epochs=4):
        history = [{"train_loss": 2.5 - 0.1 * epoch} for epoch in range(epochs)]
        experiment, model = f"cifar10_tenth/{name}", {"name": "resnext29_under5m"}
        return {"experiment": experiment, "model": model, "history": history, "test": {"accuracy": accuracy}}

    records = [run("speed_fast", 0.21), run("speed_plain", 0.22), run("resnext29_under5m_sgd_same", 0.43, 15)]
    assert readme.agreement_part(records) == ""
    part = readme.agreement_part([*records, run("resnext29_under5m_sgd_same", 0.38, 15)])
    assert "2.200 and 21.00% by the fast path, 2.200 and 22.00% by the plain one" in part
    assert "5.0 points apart after 15 epochs" in part

    fast, plain, seeds = (
        [record["test"]["accuracy"] for record in results.load_all() if record["experiment"] == f"cifar10_tenth/{name}"]
        for name in readme.COMPARED
    )
    assert abs(fast[0] - plain[0]) < max(seeds) - min(seeds)


def test_the_committed_readme_is_that_of_the_committed_records_and_shows_figures_fit_for_print():
    text = (results.ROOT / "README.md").read_text(encoding="utf-8")
    for name, part in readme.parts().items():
        assert f"<!-- {name} -->\n{part}<!-- /{name} -->" in text, "run python -m helpers table"
    for figure in re.findall(r"!\[[^]]+\]\((results/[^)]+)\)", text):
        with Image.open(results.ROOT / figure) as image:
            assert [round(dots) for dots in image.info["dpi"]] == [300, 300]
