"""Saved models keep their preprocessing, Grad-CAM matches hand calculations, and bad input gives one-sentence errors."""

import json
import math
import struct
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import data, demo, models, training
from helpers.__main__ import main
from helpers.demo.labels import class_activation
from helpers.experiments import records as results
from helpers.runtime import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
RUN = ["pikachu/resnet18_torchvision", "--profile", "smoke"]


def picture(seed=0, size=(60, 40), form="PNG"):
    """The bytes of an image file of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def weights():
    """A ResNet-18 with random BatchNorm statistics."""
    torch.manual_seed(0)
    network = models.build("resnet18", 2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return network.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    classes = ["not_mine", "mine"]
    return demo.save_model(path, weights.state_dict(), demo.Preprocessing("resnet18", classes, 32, 36, MEAN, STD, False))


def test_a_saved_model_comes_back_with_its_preprocessing(file, weights):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model = demo.load_model(file, "cpu")
    assert torch.equal(torch.get_rng_state(), state), "loading draws no random numbers"
    assert model.about == demo.Preprocessing("resnet18", ["not_mine", "mine"], 32, 36, list(MEAN), list(STD), False)
    assert all(torch.equal(value, weights.state_dict()[name]) for name, value in model.network.state_dict().items())
    assert not model.network.training and all(p.device.type == "cpu" for p in model.network.parameters())
    header = json.loads(file.read_bytes()[8 : 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]])
    assert json.loads(header["__metadata__"]["about"])["classes"] == ["not_mine", "mine"]


def test_files_get_the_same_probabilities_as_in_training(tmp_path, file, weights):
    """From an oblong file to the network's input, decoding and cropping give the same pixels."""
    for split in ("train", "validation", "test"):
        for number, name in enumerate(("mine", "other")):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            (tmp_path / "own" / split / name / "1.png").write_bytes(picture(number))
    dataset = data.load("own", tmp_path, image_size=32)
    model = demo.load_model(file, "cpu")
    paths = [tmp_path / "own" / name for name in dataset.test.names]
    assert torch.equal(torch.stack([demo.read_image(path, 36) for path in paths]), dataset.test.images)
    recipe = training.Recipe(epochs=1, batch_size=1, image_size=32, mean=MEAN, std=STD, mixed_precision=False)
    expected = training.predict(weights, dataset.test, recipe).softmax(1)
    table = demo.classify(model, paths)
    assert table.columns.tolist()[4:] == ["probability of not_mine", "probability of mine"]
    assert torch.allclose(torch.tensor(table.iloc[:, 4:].to_numpy(), dtype=torch.float32), expected, atol=1e-6)
    assert table["label"].tolist() == [["not_mine", "mine"][best] for best in expected.argmax(1)]
    assert table["probability"].tolist() == pytest.approx(expected.max(1).values.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", data.NAMES)
def test_the_size_before_cropping_is_that_of_the_data_set(name):
    assert data.stored_size(name, 28) == data.sample(name, image_size=28).train.images.shape[-1]


class ByHand(nn.Module):
    """Two feature maps, the red and the green channel, and scores computed from their means."""

    def __init__(self, scores):
        super().__init__()
        self.stage = nn.Conv2d(3, 2, 1, bias=False)
        self.stage.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.scores = scores

    def forward(self, images):
        return self.scores(self.pool(self.stage(images)).flatten(1))


RED, GREEN = torch.tensor([[4.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]])
IMAGE = torch.stack([RED, GREEN, torch.full((2, 2), 9.0)])[None]


def test_grad_cam_of_a_linear_head_by_hand():
    """After average pooling, a channel's weight is the head's, divided by the four pixels: relu((w1 A1 + w2 A2) / 4)."""
    head = nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[1.0, -2.0], [-1.0, 1.0], [-1.0, -1.0]])
    network = ByHand(head)
    assert class_activation(network, IMAGE, 0).tolist() == [[0.5, 0.0], [0.5, 0.0]]
    assert class_activation(network, IMAGE, 1).tolist() == [[0.0, 0.25], [0.0, 0.25]]
    assert class_activation(network, IMAGE, 2).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert head.weight.grad is None and not network.stage._forward_hooks


def test_grad_cam_of_a_product_by_hand():
    """Score = mean(A1) · mean(A2): the weights are mean(A2) / 4 = 1/4 and mean(A1) / 4 = 7/16."""

    class Product(nn.Module):
        def forward(self, means):
            return means.prod(1, keepdim=True)

    expected = RED / 4 + GREEN * 7 / 16
    assert torch.equal(class_activation(ByHand(Product()), IMAGE, 0), expected)


@pytest.mark.parametrize("name", ["resnext29_under5m", "torchvision/resnet18"])
def test_grad_cam_uses_the_last_stage(name):
    """With average pooling and a linear head: relu of the head's row times the last stage's maps, over their pixel count."""
    torch.manual_seed(0)
    network = models.build(name, 3).eval()
    image = torch.randn(1, 3, 64, 64)
    stage = network.layer3 if name == "resnext29_under5m" else network.layer4
    maps = []
    hook = stage.register_forward_hook(lambda layer, inputs, output: maps.append(output.detach()))
    heat = class_activation(network, image, 2)
    hook.remove()
    pixels = maps[0].shape[-2:].numel()
    expected = (network.fc.weight[2][:, None, None] * maps[0][0]).sum(0).relu() / pixels
    assert torch.allclose(heat, expected.detach(), atol=1e-6)


def hand_model(**about):
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    base = demo.Preprocessing("resnet18", ["red", "green"], 2, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False)
    return demo.SavedModel(ByHand(head).eval(), replace(base, **about))


def test_the_heat_map_covers_the_centre_crop_that_the_network_sees():
    model = hand_model()
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[0, 1, 1], image[1, 2, 2], image[0, 0, 0] = 255, 51, 255  # the corner is cropped away
    assert demo.grad_cam(model, image).tolist() == [[1.0, 0.0], [0.0, 0.0]], "by default, the more probable class"
    assert demo.grad_cam(model, image, 1).tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert demo.grad_cam(model, torch.zeros_like(image), 0).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_features_are_pooled_and_neighbours_ranked_by_cosine_similarity():
    model = hand_model()
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[0, 0, 1, 1], images[1, 0], images[2, 1] = 204, 255, 255
    found = demo.features(model, images)
    assert found.tolist() == [pytest.approx([0.2, 0]), pytest.approx([1, 0]), pytest.approx([0, 1])]
    assert not model.network.scores._forward_pre_hooks
    places, similarity = demo.nearest(torch.tensor([3.0, 4.0]), found, 5)
    assert places[0] == 2 and set(places.tolist()) == {0, 1, 2}, "length does not matter: 0 and 1 are equally near"
    assert similarity.tolist() == pytest.approx([0.8, 0.6, 0.6])


def test_labels_of_a_model_trained_on_generated_images_say_so(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    table = demo.classify(hand_model(sample=True), [tmp_path / "a.png"])
    assert table["label"][0] in ("SAMPLE: red", "SAMPLE: green")


def rewritten(file, header=None, **about):
    """The bytes of the file with a changed header or changed preprocessing values."""
    blob = file.read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    fields = json.loads(blob[8 : 8 + length])
    if about:
        fields["__metadata__"]["about"] = json.dumps(json.loads(fields["__metadata__"]["about"]) | about)
    text = json.dumps(fields if header is None else header(fields)).encode()
    return struct.pack("<Q", len(text)) + text + blob[8 + length :]


def with_text(file, text):
    """The bytes of the file with `text` in place of its preprocessing."""
    return rewritten(file, lambda fields: fields | {"__metadata__": {"about": text}})


def nested(depth):
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda file: b"", "is not a valid safetensors file"),
        (lambda file: b"PK\x03\x04 a pickle of torch", "is not a valid safetensors file"),
        (lambda file: file.read_bytes()[:-1], "is not a valid safetensors file"),
        (lambda file: file.read_bytes()[:1000], "is not a valid safetensors file"),
        (lambda file: rewritten(file, lambda fields: fields | {"__metadata__": {}}), "do not describe a model of ours"),
        (lambda file: rewritten(file, stored_size=16), "do not describe a model of ours"),
        (lambda file: rewritten(file, std=[0, 1, 1]), "do not describe a model of ours"),
        (lambda file: rewritten(file, mean="0.5"), "do not describe a model of ours"),
        (lambda file: rewritten(file, classes=[]), "do not describe a model of ours"),
        (lambda file: rewritten(file, classes=["a", "\x1b[31mb"]), "do not describe a model of ours"),
        (lambda file: rewritten(file, classes=["a", "\udcff"]), "do not describe a model of ours"),
        (lambda file: rewritten(file, image_size=20_000, stored_size=20_000), "do not describe a model of ours"),
        (lambda file: rewritten(file, mean=[10**400, 0, 0]), "do not describe a model of ours"),
        (lambda file: rewritten(file, image_size=10**400), "do not describe a model of ours"),
        (lambda file: rewritten(file, resize="stretch"), "do not describe a model of ours"),
        (lambda file: rewritten(file, classes=nested(900)), "do not describe a model of ours"),
        (lambda file: with_text(file, "[" * 100_000), "do not describe a model of ours"),
        (lambda file: with_text(file, '{"mean": ' + "9" * 5000), "do not describe a model of ours"),
        (lambda file: file.read_bytes()[:-4] + struct.pack("<f", math.nan), "are not all finite numbers"),
        (lambda file: rewritten(file, more=1), "do not describe a model of ours"),
        (lambda file: rewritten(file, model="resnet19"), "needs the model 'resnet19', which is unknown here"),
        (lambda file: rewritten(file, model="resnext29_under5m"), "are not those of 'resnext29_under5m' with 2 classes"),
        (lambda file: rewritten(file, classes=["a", "b", "c"]), "are not those of 'resnet18' with 3 classes"),
    ],
)
def test_a_file_that_is_not_a_model_gives_a_one_sentence_error(tmp_path, file, capsys, make, sentence):
    (tmp_path / "bad.safetensors").write_bytes(make(file))
    assert main(["classify", "a.png", "--model", str(tmp_path / "bad.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "bad.safetensors" in error and sentence in error and len(error.splitlines()) == 1


def test_a_missing_model_and_a_missing_safetensors_package(tmp_path, capsys, monkeypatch):
    assert main(["classify", "a.png", "--model", str(tmp_path / "none")]) == 1
    assert "There is no model file" in capsys.readouterr().err
    (tmp_path / "none").write_text("now it is there")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(["classify", "a.png", "--model", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == "Saved models need a package: run 'pip install safetensors'.\n"


def test_mismatched_or_non_finite_weights_are_not_saved_nor_is_a_folder_overwritten(tmp_path, weights):
    about, state = demo.Preprocessing("resnet18", ["a", "b"], 32, 36, MEAN, STD, False), weights.state_dict()
    with pytest.raises(UserError, match="are not those of 'resnet50' with 2 classes"):
        demo.save_model(tmp_path / "m", state, replace(about, model="resnet50"))
    with pytest.raises(UserError, match="are not all finite numbers"):
        demo.save_model(tmp_path / "m", state | {"fc.bias": torch.tensor([0.0, float("nan")])}, about)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="could not be written"):
        demo.save_model(tmp_path / "folder", state, about)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_bad_images_are_named_and_the_others_are_classified(tmp_path, file, capsys):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "cut.jpg").write_bytes(picture(form="JPEG")[:900])
    (tmp_path / "text.txt").write_text("not a picture")
    names = [str(tmp_path / name) for name in ("a.png", "text.txt", "cut.jpg", "gone.png", "a.png")]
    table = tmp_path / "table.csv"
    assert main(["classify", *names, "--model", str(file), "--csv", str(table), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert f"3 of 5 images could not be read: {names[1]}; {names[2]}; {names[3]}.\n" == captured.err
    rows = pd.read_csv(table, keep_default_na=False)
    assert rows["image"].tolist() == names
    assert rows["error"].tolist()[1] == "not an image" and rows["error"].tolist()[3] == "No such file or directory"
    assert rows["label"][0] == rows["label"][4] in ("mine", "not_mine") and rows["label"][1] == ""
    shown = captured.out.splitlines()
    assert len(shown) == 6 and shown[2].endswith("not an image")
    assert f"{float(rows['probability'][0]):.2%}" in shown[1]


@pytest.mark.parametrize("name", ["text.txt", "empty.png", "gone.png", "."])
def test_a_single_bad_image_gives_a_one_sentence_error(tmp_path, file, capsys, name):
    (tmp_path / "text.txt").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    assert main(["classify", str(tmp_path / name), "--model", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"{tmp_path / name} cannot be classified: ")
    assert len(captured.err.splitlines()) == 1


def test_the_exit_status_is_0_for_a_good_image_and_1_for_an_unwritable_table(tmp_path, file, capsys):
    (tmp_path / "a.png").write_bytes(picture())
    command = ["classify", str(tmp_path / "a.png"), "--model", str(file)]
    assert main(command) == 0
    assert main([*command, "--csv", str(tmp_path / "no" / "table.csv")]) == 1
    assert "choose another --csv" in capsys.readouterr().err


def test_a_recorded_run_becomes_a_model_with_the_recorded_predictions(tmp_path, capsys):
    folders = ["--results-dir", str(tmp_path), "--checkpoint-dir", str(tmp_path / "c")]
    target = tmp_path / "new" / "model.safetensors"
    assert main(["save", RUN[0], str(target), *RUN[1:], *folders]) == 1
    assert "There is no record of pikachu/resnet18_torchvision, seed 0, smoke" in capsys.readouterr().err
    assert main(["run", *RUN, *folders]) == 0
    assert main(["save", RUN[0], str(target), *RUN[1:], *folders]) == 0
    model = demo.load_model(target, "cpu")
    record = results.load(results.record_path(RUN[0], "smoke", 0, tmp_path))
    assert model.about.sample and model.about.classes == record["dataset"]["classes"]
    assert (model.about.image_size, model.about.stored_size) == (32, 36)
    test = data.sample("pikachu", image_size=32).test
    predicted = demo.probabilities(model, test.images).argmax(1)
    assert predicted.tolist() == results.predictions(record, tmp_path)["predicted"].tolist()

    other = record | {"best": record["best"] | {"val_loss": 9.0}}
    with pytest.raises(UserError, match="is not that of its record; train it again"):
        demo.best_weights(other, tmp_path / "c")
    with pytest.raises(UserError, match="There is no checkpoint of pikachu/resnet18_torchvision, seed 0"):
        demo.best_weights(record, tmp_path / "elsewhere")
