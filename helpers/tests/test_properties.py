"""Properties at any size, from one image up: batches, splits, recipes, networks, training, checkpoints, intervals."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import data, models, training
from helpers.models import Description, Stage, Stem
from helpers.report.statistics import wilson
from helpers.runtime import UserError
from helpers.training.checkpoints import load_checkpoint, save_checkpoint

SMALL = ("zoo_resnext1", "wrn16_2", "simplenet", "slim_resnet_trial3")
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

sizes = st.integers(1, 24)
few = st.integers(1, 9)


def make_split(count: int, pixels: int, classes: int = 3) -> data.Split:
    """Images whose red channel is their index, and whose labels cycle through the classes."""
    images = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0] = torch.arange(count)[:, None, None]
    return data.Split(images, torch.arange(count) % classes, [str(number) for number in range(count)])


@st.composite
def recipes(draw) -> dict:
    """Random settings of a recipe, possibly incompatible with each other."""
    epochs, image_size = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    return {
        **NORMAL,
        "epochs": epochs,
        "batch_size": draw(few),
        "image_size": image_size,
        "optimizer": draw(st.sampled_from(training.OPTIMIZERS)),
        "learning_rate": draw(st.floats(1e-6, 0.1)),
        "nesterov": draw(st.booleans()),
        "weight_decay": draw(st.floats(0, 0.1)),
        "decay_weights_only": draw(st.booleans()),
        "perturbation": draw(st.none() | st.floats(0, 1)),
        "schedule": draw(st.sampled_from(training.SCHEDULES)),
        "warmup_epochs": draw(st.integers(0, epochs - 1)),
        "label_smoothing": draw(st.floats(0, 0.9)),
        "augment": draw(st.sampled_from(data.AUGMENTS)),
        "padding": draw(st.integers(0, 4)),
        "border": draw(st.sampled_from(("zero", "reflect"))),
        "cutout": draw(st.integers(0, min(6, image_size))),
        "clip_norm": draw(st.none() | st.floats(0.1, 10)),
        "ema": draw(st.none() | st.floats(0, 0.99)),
        "flip_test": draw(st.booleans()),
    }


@given(few, few, sizes)
def test_a_pass_in_order_shows_each_image_once_in_full_batches(count, batch_size, pixels):
    split = make_split(count, pixels)
    passed = list(data.batches(split, batch_size, image_size=pixels, **NORMAL))
    assert [len(labels) for _, labels in passed[:-1]] == [batch_size] * (len(passed) - 1)
    images = torch.cat([images for images, _ in passed]) * 0.25 + 0.5
    assert torch.equal((images * 255).round().to(torch.uint8), split.images)
    assert torch.equal(torch.cat([labels for _, labels in passed]), split.labels)


@given(few, few, sizes, sizes, st.sampled_from(data.AUGMENTS), st.integers(0, 5), st.integers(0, 2**31))
def test_a_shuffled_pass_shows_each_image_as_often_as_it_says_and_the_same_twice(
    count, batch_size, pixels, crop, augment, padding, seed
):
    split, view = make_split(count, pixels, classes=count), {"image_size": min(crop, pixels), "augment": augment}

    def shuffled() -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        passed = list(data.batches(split, batch_size, generator=generator, padding=padding, **view, **NORMAL))
        return torch.cat([images for images, _ in passed]), torch.cat([labels for _, labels in passed])

    images, labels = shuffled()
    assert images.shape == (data.images_shown(split, augment), 3, view["image_size"], view["image_size"])
    assert images.isfinite().all() and images.abs().max() <= 2.0001, "a pixel is no darker than black, no lighter than white"
    assert set(Counter(labels.tolist()).values()) == {data.images_shown(split, augment) // count}
    assert all(map(torch.equal, shuffled(), (images, labels)))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 99))
def test_a_stratified_subset_keeps_the_shares_of_the_classes(labels, wanted, seed):
    split = data.Split(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), torch.tensor(labels), [""] * len(labels))
    chosen = Counter(data.stratified(split, wanted, seed).labels.tolist())
    assert chosen.total() == min(wanted, len(labels))
    for label, count in Counter(labels).items():
        assert abs(chosen[label] - chosen.total() * count / len(labels)) < len(set(labels))


@given(recipes(), st.floats(0, 1), st.integers(1, 9))
def test_a_learning_rate_lies_between_its_lowest_and_its_peak(settings_, share, batches):
    recipe = training.Recipe(**settings_)
    rate = training.learning_rate(recipe, share * recipe.epochs, batches)
    assert -1e-12 <= rate <= recipe.learning_rate * (1 + 1e-12)


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=5)
@given(classes=st.integers(1, 12), images=st.integers(1, 3), pixels=st.integers(1, 40))
def test_a_network_gives_a_score_for_each_class_whatever_the_image_size(name, classes, images, pixels):
    model = models.build(name, classes).eval()
    with torch.inference_mode():
        try:
            scores = model(torch.zeros(images, 3, pixels, pixels))
        except RuntimeError as error:  # pooled away: torch says so
            assert pixels < 32 and ("too small" in str(error) or "greater than actual input size" in str(error))
            return
    assert scores.shape == (images, classes) and scores.isfinite().all()


@given(recipes(), st.integers(1, 7), few, st.integers(1, 4))
def test_training_from_one_image_up_ends_with_finite_numbers_or_a_sentence(settings_, images, validated, classes):
    model = Description(Stem(8, 3, 2), (Stage(1, 8),)).build(classes)
    pixels = settings_["image_size"]
    try:
        recipe = training.Recipe(**settings_)
        fitted = training.fit(model, make_split(images, pixels, classes), make_split(validated, pixels, classes), recipe)
    except UserError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
        return
    assert len(fitted.history) == recipe.epochs
    assert all(math.isfinite(row["train_loss"]) and 0 <= row["val_accuracy"] <= 1 for row in fitted.history)
    assert all(value.isfinite().all() for value in model.state_dict().values())


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | st.none()))
def test_a_checkpoint_comes_back_as_it_was(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("checkpoint") / "seed0.ckpt"
    save_checkpoint(state, path)
    assert load_checkpoint(path) == state


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_interval_holds_its_accuracy_and_mirrors(n, share):
    correct = round(share * n)
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
