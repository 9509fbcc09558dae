"""The figures of all runs: drawn from the records alone, the same every time, each with a caption."""

import pytest
from PIL import Image

from helpers.data.cifar import CIFAR100_CLASSES
from helpers.experiments import records as results
from helpers.report import figures
from helpers.runtime import UserError
from helpers.tests.experiments.test_results import make_run


def test_figures_are_rebuilt_from_the_records_alone_print_ready_and_reproducible(tmp_path):
    records = [make_run()[0], make_run(name="pikachu/resnet18_torchvision", predicted=(1, 1, 1, 1, 0))[0]]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "stale.png").touch()
    written = figures.write(records, tmp_path)
    assert [path.name for path in written] == [
        "accuracy.png",
        "pikachu_pikachu_curves.png",
        "pikachu_confusion.png",
        "README.md",
    ]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in written}
    for path in written[:-1]:
        with Image.open(path) as image:
            assert [round(dots) for dots in image.info["dpi"]] == [200, 200], path.name
            assert image.mode == "P" and len(image.palette.colors) <= 256, path.name
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in figures.write(records, tmp_path)] == before


def test_each_data_set_has_its_own_figures_with_captions():
    records = [make_run(f"cifar10/{name}", seed)[0] for name in "abcde" for seed in (0, 1)]
    for record, name in zip(records[::2], ("wrn16_2", "wrn16_4", "simplenet", "slim_resnet", "wrn16_4"), strict=True):
        record["model"] = record["model"] | {"name": name}
    for record in records[2:4]:  # the second is the best on the validation images, and the worst on the test images
        record["best"] = record["best"] | {"val_accuracy": 0.7}
        record["test"] = record["test"] | {"accuracy": 0.5}
    records[2]["report"] = records[3]["report"] = "slim"
    drawn = list(figures.drawn(records))
    assert [name for name, *_ in drawn] == [
        "accuracy",
        "cifar10_cost",
        "cifar10_pikachu_curves",
        "cifar10_slim_curves",
        "cifar10_confusion",
    ]
    assert all(caption.endswith(".") for _, _, caption in drawn)
    [title] = [axis.get_title() for axis in drawn[-1][1].axes]
    assert title == "b: 80.0%", "as its confusion matrix says"
    costs = figures._costs(figures.tables.by_experiment(records))
    assert sorted(costs.index) == ["cifar10/a", "cifar10/b", "cifar10/c", "cifar10/d"], "one of two with the same network"
    assert costs.loc["cifar10/b"].tolist() == ["wrn16_4", 22984002, 1e-6, 0.5]
    figures.plt.close("all")


def test_the_speed_comparison_is_in_no_figure():
    assert list(figures.drawn([make_run("cifar10_tenth/speed_fast")[0] | {"report": "speed"}])) == []


def test_a_hundred_classes_are_shown_as_superclasses():
    record = make_run("cifar100/a")[0]
    record["dataset"]["classes"] = list(CIFAR100_CLASSES)
    record["test"]["confusion"] = [[int(true == predicted) for predicted in range(100)] for true in range(100)]
    *_, (_, figure, caption) = figures.drawn([record])
    assert len(figure.axes[0].get_yticklabels()) == 20 and "superclass" in caption
    figures.plt.close("all")


def test_a_folder_that_cannot_be_written_gives_a_one_sentence_error(tmp_path):
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(UserError, match="figures could not be written"):
        figures.write([make_run()[0]], tmp_path)


def test_the_committed_figures_and_captions_match_the_committed_records():
    """Figures are compared by name only: another release of matplotlib may draw different pixels."""
    captions = {name: caption for name, _, caption in figures.drawn(results.load_all())}
    figures.plt.close("all")
    folder = results.RESULTS / "figures"
    assert all(path.stat().st_size <= 200_000 for path in folder.glob("*.png"))
    assert {path.stem for path in folder.glob("*.png")} == captions.keys(), "run python -m helpers table"
    assert (folder / "README.md").read_text(encoding="utf-8") == figures.readme(captions)
