"""The named networks: exact parameter counts, equality with torchvision's, and errors for bad input."""

import os
import socket
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from helpers import models
from helpers.models import registry
from helpers.runtime import UserError

OURS = ["resnext50_32x4d", "resnet18", "resnet50"]


# 1000 classes: torchvision's published `num_params`. Each class fewer removes 2048 (or 512) weights and one bias.
PARAMETERS = {
    "resnext50_32x4d": {1000: 25_028_904, 2: 22_984_002},
    "resnet18": {1000: 11_689_512, 2: 11_177_538, 10: 11_181_642},
    "resnet50": {1000: 25_557_032},
    # Xie et al. 2017 give 34.4 M for 8×64d and 68.1 M for 16×64d; 4,761,770 is report `amp`'s own total.
    "resnext29_32x4d": {100: 4_868_004, 10: 4_775_754},
    "resnext29_8x64d": {10: 34_426_698},
    "resnext29_16x64d": {10: 68_155_210},
    "resnext29_under5m": {10: 4_761_770},
    # Report `pikachu` as coded: its own count, and torchvision's, since padding has no parameters.
    "pikachu_resnext29": {10: 4_678_602},
    "resnext50_unpadded": {1000: 25_028_904, 2: 22_984_002},
    # Report `slim`, figures 1 and 3; the last is derived in test_resnet.py from arXiv 2306.12100's 4,697,742.
    "slim_resnet_trial1": {10: 11_160_618},
    "slim_resnet_trial2": {10: 4_963_882},
    "slim_resnet_trial2_coded": {10: 4_963_882},
    "slim_resnet_trial3": {10: 4_266_410},
    "slim_resnet": {10: 4_978_730},
    "slim_resnet_max_pool": {10: 4_978_730},
    "slim_resnet_stride_second": {10: 4_978_730},
    "slim_resnet_strong": {10: 4_733_610},
    "torchvision/resnext50_32x4d": {1000: 25_028_904, 2: 22_984_002},
    "torchvision/resnet18": {1000: 11_689_512, 2: 11_177_538, 10: 11_181_642},
    "torchvision/resnet50": {1000: 25_557_032},
    # Zagoruyko and Komodakis 2016 print 11.0 M for 16-8; Gao et al. 2019, table 4, print
    # 24.3 M for Res2NeXt-29, where others count 23.71 M, as here. test_zoo.py adds up the home-made ones.
    "simplenet": {10: 5_498_378, 100: 5_521_508},
    "wrn16_2": {100: 703_284},
    "wrn16_4": {100: 2_772_020},
    "wrn16_8": {100: 11_007_540},
    "wrn16_16": {100: 43_870_772},
    "wrn28_2": {100: 1_479_220},
    "wrn28_4": {100: 5_872_180},
    "res2next29_6c24w4s": {100: 23_705_732},
    "zoo_resnext1": {100: 75_484},
    "zoo_resnext2": {100: 159_772},
    "zoo_resnext3": {100: 70_316},
    "zoo_resnext1_rectified": {100: 75_484},
    "zoo_resnext1_doubling": {100: 76_864},
    "zoo_resnext1_doubling_wide": {100: 211_204},
}


# Xie et al. 2017, table 1, prints 4.2 and 4.1 billion for the first and the last, with the stride in the 3×3 as here.
MACS = {"resnext50_32x4d": 4_230_479_872, "resnet18": 1_814_073_344, "resnet50": 4_089_184_256}


@pytest.fixture(scope="module", params=OURS)
def pair(request):
    """Our network and torchvision's of the same name, built with the same seed for two classes."""
    torch.manual_seed(7)
    ours = models.build(request.param, 2)
    torch.manual_seed(7)
    theirs = models.build(f"torchvision/{request.param}", 2)
    return ours, theirs


def assert_equal_states(left: nn.Module, right: nn.Module) -> None:
    left, right = left.state_dict(), right.state_dict()
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_has_a_pinned_count_and_runs(name):
    assert name in PARAMETERS, f"pin the parameter count of {name}"
    small = max(PARAMETERS[name].values()) < 10_000_000  # of large ones, only counts and shapes are computed
    with torch.device("cpu" if small else "meta"), torch.no_grad():
        for num_classes, parameters in PARAMETERS[name].items():
            model = models.build(name, num_classes)
            assert models.count_parameters(model) == parameters
        assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, num_classes)


def test_counts_are_pinned_for_registered_models_only():
    assert set(PARAMETERS) == set(models.MODELS)


def test_parameter_counts_equal_torchvisions_published_ones():
    for name in OURS:
        assert get_model_weights(name).IMAGENET1K_V1.meta["num_params"] == PARAMETERS[name][1000]


@pytest.mark.parametrize("name", OURS)
def test_macs_equal_torchvisions_published_ones(name):
    ours = models.count_macs(models.inspect.network(name, 1000))
    assert ours == MACS[name]
    assert round(ours / 1e9, 3) == get_model_weights(name).IMAGENET1K_V1.meta["_ops"]


def test_initial_weights_equal_torchvisions_with_the_same_seed(pair):
    assert_equal_states(*pair)


def test_with_torchvisions_weights_the_outputs_are_bit_identical(pair):
    ours, theirs = pair
    torch.manual_seed(1)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_weights_after_two_sgd_steps_equal_torchvisions(pair):
    ours, theirs = pair
    start = theirs.fc.weight.clone()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for model in pair:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    assert_equal_states(*pair)
    assert not torch.equal(start, theirs.fc.weight)


def test_the_error_for_an_unknown_name_lists_the_names():
    with pytest.raises(
        UserError, match=r"no model 'resnext51'; choose one of resnext50_32x4d, .*zoo_resnext1_doubling_wide\.$"
    ):
        models.build("resnext51", 2)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, "2", None, True])
def test_an_invalid_number_of_classes_is_refused(num_classes):
    with pytest.raises(UserError, match="num_classes must be a whole number of at least 1"):
        models.build("resnet18", num_classes)


def test_pretrained_weights_come_from_the_cache_with_a_new_head(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "require_published", lambda path: None)
    published = get_model("resnet18", weights=None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    for name in ("resnet18", "torchvision/resnet18"):
        model = models.build(name, 2, pretrained=True)
        state, expected = model.state_dict(), published.state_dict()
        assert state["fc.weight"].shape == (2, 512)
        assert all(torch.equal(state[key], expected[key]) for key in expected if not key.startswith("fc."))


@pytest.mark.parametrize("failure", [URLError("no route to host"), TimeoutError("timed out"), socket.gaierror("no such name")])
def test_a_failed_download_gives_a_one_sentence_error_and_leaves_no_file(tmp_path, monkeypatch, capsys, failure):
    def refuse(*arguments, **keywords):
        raise failure

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(UserError) as caught:
        models.build("resnet18", 2, pretrained=True)
    assert "could not be loaded from https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(caught.value)
    assert "\n" not in str(caught.value) and capsys.readouterr() == ("", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class Malicious:
    """Creates a folder when unpickled unsafely."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("checked", [True, False])
def test_a_wrong_file_of_weights_is_refused_and_no_code_in_it_runs(tmp_path, monkeypatch, checked):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if not checked:
        monkeypatch.setattr(registry, "require_published", lambda path: None)
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(Malicious(tmp_path / "made"), file)
    reason = "is not the published one" if checked else "could not be loaded from"
    with pytest.raises(UserError, match=reason) as caught:
        models.build("resnet18", 2, pretrained=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


def test_pretrained_weights_are_the_first_published_ones():
    assert {name: weights.name for name, weights in registry.WEIGHTS.items()} == dict.fromkeys(OURS, "IMAGENET1K_V1")


def test_a_published_file_is_checked_against_the_hash_in_its_name(tmp_path):
    file = tmp_path / "empty-e3b0c442.pth"  # the SHA-256 of an empty file begins with these digits
    registry.require_published(file)
    file.write_bytes(b"")
    registry.require_published(file)
    file.write_bytes(b"x")
    with pytest.raises(OSError, match="existing empty-e3b0c442.pth is not the published one"):
        registry.require_published(file)


def test_a_damaged_file_of_weights_gives_a_one_sentence_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"broken off")
    with pytest.raises(UserError, match="put an intact copy of that file into") as caught:
        models.build("resnet18", 2, pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("initialisation", ["torch", "he"])
def test_the_chosen_initialisation_is_used(initialisation):
    """PyTorch draws uniformly within ±1/√(fan in), He et al. 2015 from a normal of variance 2/(fan in)."""
    torch.manual_seed(0)
    model = models.build("resnext29_under5m", 10, initialisation=initialisation)
    for layer in (model.layer1[0].conv2, model.layer2[0].conv1, model.fc):
        weights = layer.weight.detach()
        fan_in = weights[0].numel()
        variance = 1 / (3 * fan_in) if initialisation == "torch" else 2 / fan_in
        error = variance * (2 / weights.numel()) ** 0.5
        assert abs(weights.var().item() - variance) < 4 * error
        assert (weights.abs().max() <= fan_in**-0.5) == (initialisation == "torch")


def test_an_unknown_initialisation_and_a_pointless_one_are_refused():
    with pytest.raises(UserError, match="There is no initialisation 'zeros'; choose one of torch, he, he_weights, or None."):
        models.build("resnet18", 2, initialisation="zeros")
    with pytest.raises(UserError, match="Pretrained weights need no initialisation"):
        models.build("resnet18", 2, pretrained=True, initialisation="torch")


def test_the_default_initialisation_of_two_reports_networks():
    """He-normal with fan out for report `amp`'s network, and with fan in for report `pikachu`'s, including the head."""
    torch.manual_seed(0)
    amp, pikachu = models.build("resnext29_under5m", 10), models.build("pikachu_resnext29", 10)
    layers = (amp.layer1[0].conv2, 9 * 128), (pikachu.layer3[1].conv2, 9 * 16), (pikachu.fc, 1024)
    for weights, fan in ((layer.weight, fan) for layer, fan in layers):
        assert abs(weights.var().item() * fan / 2 - 1) < 4 * (2 / weights.numel()) ** 0.5
