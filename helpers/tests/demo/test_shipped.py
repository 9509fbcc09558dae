"""Shipped models: half precision agrees with full precision, cards match the records, and `evaluate` checks both."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import data, demo, experiments, models, training
from helpers.__main__ import main
from helpers.demo import page, shipped
from helpers.experiments import records
from helpers.runtime import UserError
from helpers.training import checkpoints

NAME, COMMITTED = "pikachu/resnet18_torchvision", list(shipped.list_models().values())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs and a shipped model; its record, its data set, and its network, with only the head fitted."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2), ("test", 60)):
        for name in ("not_pikachu", "pikachu"):
            (folder / "pikachu" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (4, 4, 3), np.uint8).repeat(10, 0).repeat(10, 1)
                pixels[..., (name == "pikachu") ^ (number % 10 == 9)] += 150  # red or green; every tenth has the wrong colour
                Image.fromarray(pixels).save(folder / "pikachu" / split / name / f"{number}.png")
    dataset = data.load("pikachu", folder, image_size=28, resize="squash")
    torch.manual_seed(0)
    network = models.build("resnet18", 2)
    recipe = training.Recipe(
        epochs=3, batch_size=8, image_size=28, mean=(0.5,) * 3, std=(0.5,) * 3, mixed_precision=False, resize="squash"
    )
    network.train()
    with torch.no_grad():
        network(torch.randn(16, 3, 28, 28))  # so that BatchNorm has statistics
    fit_head(network, dataset.train, recipe)
    predicted = training.predict(network, dataset.test, recipe).argmax(1).numpy()
    true = dataset.test.labels.numpy()
    confusion = [[int(((true == row) & (predicted == column)).sum()) for column in (0, 1)] for row in (0, 1)]
    accuracy, best = float((true == predicted).mean()), {"epoch": 2, "val_accuracy": 0.75, "val_loss": 0.5}
    about = {"name": "pikachu", "source": dataset.source, "fingerprint": dataset.fingerprint, "classes": dataset.classes}
    record = {
        "experiment": NAME,
        "report": "pikachu",
        "seed": 0,
        "profile": "full",
        "dataset": about | {"n_train": 8, "n_val": 4, "n_test": 120},
        "model": {"name": "resnet18", "params": models.count_parameters(network), "macs": 1},
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "stopped_early": None,
        "seconds": 1.0,
        "history": [],
        "test": {"accuracy": accuracy, "loss": 0.5, "n": 120, "confusion": confusion},
        "predictions": "seed0.predictions.npz",
        "best": best,
        "environment": {"device": "CPU", "torch": "2.11.0", "date": "2026-11-24T10:00:00+00:00"},
    }
    answers = {"true": true.astype(np.int16), "predicted": predicted.astype(np.int16), "confidence": np.ones(120, np.float32)}
    records.save(record, answers, folder / "results")
    checkpoint = experiments.checkpoint_path(NAME, "full", 0, folder / "checkpoints")
    checkpoint.parent.mkdir(parents=True)
    state = {"best": best, "identity": {"images": dataset.fingerprint}, "best_weights": network.state_dict()}
    checkpoints.save_checkpoint(state, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "MODELS", folder / "models")
        demo.ship(record, folder / "checkpoints", folder, folder / "results")
        yield folder, record, dataset, network


def fit_head(network, split, recipe):
    """Make the last layer classify by the nearest mean of the features of each class."""
    network.fc, head = nn.Identity(), network.fc
    means = torch.stack([training.predict(network, split, recipe)[split.labels == label].mean(0) for label in (0, 1)])
    head.weight.data, head.bias.data = means, -means.square().sum(1) / 2
    network.fc = head


def evaluated(folder, name="pikachu-resnet18_torchvision"):
    return demo.evaluate(name, folder, "cpu")


def test_a_shipped_model_is_half_as_large_and_predicts_the_same(place):
    folder, record, dataset, network = place
    path = folder / "models" / "pikachu-resnet18_torchvision.safetensors"
    full = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    assert 0.5 < path.stat().st_size / full < 0.52
    model = demo.load_model(path, "cpu")
    assert model.about.classes == ["not_pikachu", "pikachu"] and model.about.resize == "squash"
    assert (model.about.image_size, model.about.stored_size) == (28, 32)
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.network.state_dict().values())
    kept = {name: value for name, value in model.network.state_dict().items() if value.dim() < 2}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in kept.items()), "BatchNorm in full precision"
    recipe = training.Recipe(**training.completed(record["recipe"]))
    before = training.predict(network, dataset.test, recipe).argmax(1)
    assert (demo.probabilities(model, dataset.test.images).argmax(1) == before).double().mean() >= 0.999
    assert evaluated(folder) == (
        f"pikachu-resnet18_torchvision: {record['test']['accuracy']:.2%} of 120 test images; its run got "
        f"{record['test']['accuracy']:.2%}. 100.00% of its answers agree with full precision."
    )


def test_the_card_gives_the_records_numbers(place):
    folder, record, *_ = place
    card = (folder / "models" / "pikachu-resnet18_torchvision.md").read_text()
    correct = round(record["test"]["accuracy"] * 120)
    z, n, p = 1.959964, 120, correct / 120
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (
        f"**{p:.2%}** of 120 images in full precision, 95 % Wilson interval: {middle - half:.2%} to {middle + half:.2%}" in card
    )
    assert f"| accuracy of the run | {p:.2%}, in the precision" in card
    assert "validation accuracy | 75.00% of 4 images after epoch 2" in card and f"| seed 0: {p:.2%} |" in card
    assert "`resnet18`, 11,177,538 parameters" in card and "trained on 8 images of pikachu (2 classes):" in card
    assert record["dataset"]["fingerprint"] in card and "epochs 3, batch_size 8" in card and "resize squash" in card
    assert "must not be used for" in card and "{" not in card


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_model_loads_and_its_card_is_that_of_its_record(path, tmp_path):
    assert path.stat().st_size <= shipped.LARGEST * 2**20
    model = demo.load_model(path, "cpu")
    logits = model.network(torch.zeros(2, 3, model.about.image_size, model.about.image_size))
    assert logits.shape == (2, len(model.about.classes)) and logits.isfinite().all()
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert shipped.write_card(copy).read_text() == path.with_suffix(".md").read_text(), "run python -m helpers table"


def test_the_committed_models_take_at_most_fifty_megabytes():
    assert len(COMMITTED) >= 3 and sum(path.stat().st_size for path in COMMITTED) <= 50e6


def test_a_card_is_not_written_for_another_run(place, tmp_path):
    folder, record, *_ = place
    copy = tmp_path / "pikachu-resnet18_torchvision.safetensors"
    copy.write_bytes((folder / "models" / copy.name).read_bytes())
    records.save(record | {"best": record["best"] | {"epoch": 1}}, records.predictions(record, folder / "results"), tmp_path)
    with pytest.raises(UserError, match="does not belong to the recorded run; save the model again, or remove it"):
        shipped.write_card(copy, tmp_path)
    assert not copy.with_suffix(".md").exists()


def test_evaluate_detects_different_weights_and_different_images(place, tmp_path):
    folder, record, dataset, network = place
    weights = {name: -value if name.startswith("fc") else value for name, value in network.state_dict().items()}
    model = demo.load_model(folder / "models" / "pikachu-resnet18_torchvision.safetensors")
    demo.save_model(folder / "models" / "other.safetensors", weights, model.about, model.card)
    right = record["test"]["accuracy"]
    told = f"other: {1 - right:.2%} of 120 test images; its run got {right:.2%}.* That should be 99.9% or more"
    with pytest.raises(UserError, match=told):  # each image gets the other of the two labels
        evaluated(folder, "other")
    card = model.card | {"dataset": model.card["dataset"] | {"fingerprint": "another"}}
    demo.save_model(folder / "models" / "other.safetensors", weights, model.about, card)
    with pytest.raises(UserError, match="The model was tested on images other than those in the folder pikachu"):
        evaluated(folder, "other")
    demo.save_model(folder / "models" / "other.safetensors", weights, model.about)
    with pytest.raises(UserError, match="other has no model card to compare with"):
        evaluated(folder, "other")
    (folder / "models" / "other.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        lambda card: [card],
        lambda card: {"experiment": card["experiment"]},
        lambda card: card | {"experiment": 1},
        lambda card: card | {"dataset": card["dataset"] | {"fingerprint": None}},
        lambda card: card | {"test": card["test"] | {"accuracy": "high"}},
        lambda card: card | {"predicted": card["predicted"][1:]},
        lambda card: card | {"predicted": ["0"] * 120},
        lambda card: card | {"recipe": card["recipe"] | {"unknown": 1}},
        lambda card: card | {"recipe": card["recipe"] | {"epochs": 0}},
    ],
)
def test_a_malformed_card_gives_a_one_sentence_error(place, tmp_path, change):
    folder, *_ = place
    model = demo.load_model(folder / "models" / "pikachu-resnet18_torchvision.safetensors")
    file = demo.save_model(tmp_path / "odd.safetensors", model.network.state_dict(), model.about, change(model.card))
    with pytest.raises(UserError, match="The metadata of odd.safetensors do not describe a model of ours; use a file written"):
        demo.load_model(file)


def test_large_models_and_those_trained_on_generated_images_are_not_shipped(place, tmp_path, monkeypatch):
    folder, record, *_ = place
    monkeypatch.setattr(shipped, "MODELS", tmp_path)
    monkeypatch.setattr(shipped, "LARGEST", 1)
    with pytest.raises(UserError, match="takes 21 MiB; at most 1 are shipped"):
        demo.ship(record, folder / "checkpoints", folder, None)
    sample = record | {"dataset": record["dataset"] | {"source": "sample"}}
    with pytest.raises(UserError, match="was trained on generated images"):
        demo.ship(sample, folder / "checkpoints", folder, None)
    assert not list(tmp_path.iterdir())


def test_models_are_found_by_name_and_the_first_on_photographs_is_the_default(place, tmp_path, monkeypatch, capsys):
    folder, *_ = place
    model = demo.load_model(folder / "models" / "pikachu-resnet18_torchvision.safetensors")
    for name, card in {"a": model.card, "pikachu-b": model.card, "pikachu-c": None}.items():
        demo.save_model(tmp_path / f"{name}.safetensors", model.network.state_dict(), model.about, card)
    (tmp_path / "d.safetensors").write_bytes(b"not whole")
    (tmp_path / "._a.safetensors").write_bytes(b"hidden, as a Mac adds them on shared drives")
    monkeypatch.setattr(shipped, "MODELS", tmp_path / "none")
    with pytest.raises(UserError, match="No model comes with this copy; name one of your own with --model FILE"):
        demo.find_model()
    monkeypatch.setattr(shipped, "MODELS", tmp_path)
    assert list(demo.list_models()) == ["pikachu-b", "pikachu-c", "a", "d"]
    assert demo.find_model().name == "pikachu-b.safetensors" == demo.find_model("pikachu-b").name
    with pytest.raises(UserError, match="There is no model 'z'; choose one of pikachu-b, pikachu-c, a, d, or give a file"):
        demo.find_model("z")
    image = next((folder / "pikachu/test/pikachu").iterdir())
    assert main(["classify", str(image), "--device", "cpu"]) == 0
    assert "pikachu" in capsys.readouterr().out
    assert main(["classify", str(image), "--model", "pikachu-c"]) == 0
    assert main(["classify", str(image), "--model", str(tmp_path / "a.safetensors")]) == 0
    assert main(["evaluate", "z"]) == main(["evaluate", "z" * 300]) == main(["classify", "a", "--model", "z" * 300 + ".s"]) == 1


def test_the_page_shows_a_shipped_models_card_and_examples(place):
    folder, record, dataset, _ = place
    exhibit = demo.prepare(folder / "models" / "pikachu-resnet18_torchvision.safetensors", folder, searched=4)
    assert len(exhibit.known) == len(exhibit.dataset.train) == 4 and len(exhibit.examples) == 8
    assert exhibit.card.startswith("# pikachu-resnet18_torchvision")
    assert exhibit.measured == f"Its run got {record['test']['accuracy']:.1%} of 120 test images right."


def test_the_page_says_that_the_images_are_not_the_models_own_and_leaves_out_copies(place, tmp_path, capsys):
    folder, _, dataset, _ = place
    model = demo.load_model(folder / "models" / "pikachu-resnet18_torchvision.safetensors")
    card = model.card | {"dataset": model.card["dataset"] | {"fingerprint": "another"}}
    file = demo.save_model(tmp_path / "mine.safetensors", model.network.state_dict(), model.about, card)
    copied = replace(dataset.test, digests=[dataset.train.digests[0], *dataset.test.digests[1:]])
    exhibit = demo.prepare(file, searched=4, dataset=replace(dataset, test=copied))
    assert "mine was trained on images other than those in the folder pikachu, which its card" in capsys.readouterr().out
    assert exhibit.dataset.test.names == dataset.test.names[1:]


def test_without_the_data_the_page_still_classifies(place, tmp_path, capsys):
    folder, _, dataset, _ = place
    (tmp_path / "pikachu").mkdir()
    exhibit = demo.prepare(folder / "models" / "pikachu-resnet18_torchvision.safetensors", tmp_path)
    assert "The folder pikachu is empty" in capsys.readouterr().out
    assert exhibit.examples.names == ["flower.jpg", "china.jpg"] and exhibit.examples.images.shape == (2, 3, 32, 32)
    *_, clicked, _ = page._handlers({"shipped": exhibit})
    status, label, _, _, similar = clicked("shipped", SimpleNamespace(index=1))
    assert status == "This is the answer for the example china.jpg." and len(label) == 2 and similar == []
    shares, seen, heat, nearest = page.explain(exhibit, dataset.test.images[0])
    assert sum(shares.values()) == pytest.approx(1) and nearest == [] and exhibit.card.startswith("# pikachu")


def test_the_page_uses_the_given_images_for_a_model_without_a_card(place, tmp_path, capsys):
    folder, _, dataset, _ = place
    model = demo.load_model(folder / "models" / "pikachu-resnet18_torchvision.safetensors")
    file = demo.save_model(tmp_path / "mine.safetensors", model.network.state_dict(), model.about)
    assert demo.prepare(file, folder).examples.names == ["flower.jpg", "china.jpg"]
    assert "mine.safetensors has no model card, so its data are not known" in capsys.readouterr().out
    others = replace(dataset, classes=["cat", "dog"])
    assert len(demo.prepare(file, dataset=others).known) == 0
    assert "differ from those of mine.safetensors" in capsys.readouterr().out
    exhibit = demo.prepare(file, searched=4, dataset=dataset)
    assert len(exhibit.known) == 4 and len(exhibit.examples) == 8 and exhibit.measured == exhibit.card == ""
    assert exhibit.dataset.fingerprint == dataset.fingerprint
    seen = replace(dataset.test, digests=[dataset.train.digests[0]] * 112 + dataset.test.digests[112:])
    others = demo.prepare(file, searched=4, dataset=replace(dataset, test=seen)).examples
    assert others.names == dataset.test.names[112:], "the others are copies of a training image"
