"""Report `slim`'s fourfold augmentation: how often each image appears, how it changes, and where each pixel lands."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as V

from helpers import data
from helpers.data import augment, batching
from helpers.tests.training.test_fake_gpu import CUDA, Operations

OPTIONS = {"image_size": 32, "augment": "fourfold", "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, size=32):
    """Images of random pixels; the label of each is its index."""
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator(9), dtype=torch.uint8)
    return data.Split(images, torch.arange(count), [])


def collect(split, batch_size=16, seed=0, **options):
    parts = list(data.batches(split, batch_size, generator=generator(seed), **{**OPTIONS, **options}))
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return images, labels, [len(part[1]) for part in parts]


def view(box, matrix=(1, 0, 0, 1)):
    return torch.tensor([[*box, *matrix]], dtype=torch.float32)


def test_every_image_appears_four_times_and_exactly_once_unchanged():
    split = noise(30)
    images, labels, sizes = collect(split)
    assert sizes == [16] * 7 + [8] and data.images_shown(split, "fourfold") == 120
    assert labels.bincount().tolist() == [4] * 30
    plain = torch.cat([batch for batch, _ in data.batches(split, 16, **{**OPTIONS, "augment": "none"})])
    for number in range(30):
        same = [torch.equal(image, plain[number]) for image in images[labels == number]]
        assert sum(same) == 1


def test_the_four_copies_are_shuffled_over_the_whole_pass():
    _, labels, _ = collect(noise(50))
    assert labels[:50].bincount(minlength=50).max() > 1, "shown one copy after another, the first 50 would all differ"
    assert labels[:50].unique().numel() > 25


def test_labels_stay_with_their_images_in_every_view():
    colours = torch.arange(1, 61) * 4
    split = data.Split(colours.to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32), colours, [])
    images, labels, _ = collect(split, mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert torch.allclose(images[:, :, 16, 16], labels[:, None].float(), atol=1e-3)
    corners = images[:, :, 0, 0]
    assert ((corners < 1) | ((corners - labels[:, None]).abs() < 1e-3)).all(), "black after a rotation, else the same colour"


def test_identical_images_in_one_batch_are_transformed_differently():
    one = noise(1).images.expand(64, -1, -1, -1)
    images, _, _ = collect(data.Split(one, torch.zeros(64, dtype=torch.int64), []), batch_size=256)
    assert len(images.flatten(1).unique(dim=0)) > 180, "1 unchanged image and 192 views, a few of which may be equal"


def test_views_are_reproducible_and_differ_between_seeds():
    first, again, other = (collect(noise(8), seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first.sort(0)[0], other.sort(0)[0])


def test_evaluation_shows_every_image_once_whatever_the_augmentation():
    split = noise(10)
    shown = [labels for _, labels in data.batches(split, 4, **OPTIONS)]
    assert torch.equal(torch.cat(shown), split.labels)


def test_an_enlarged_crop_matches_a_hand_calculation():
    # The crop is the 2×2 pixels 11, 13, 19, 21 of a 4×4 image. Enlarged to 4×4, its pixel centres lie at -1/4, 1/4, 3/4 and
    # 5/4 in the crop's coordinates, clamped to 0 and 1: the second pixel gets the weights 0, 1/4, 3/4 and 1.
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    image = (8 * rows + 2 * columns - 1).to(torch.uint8).expand(1, 3, 4, 4)
    assert image[0, 0, 1:3, 2:4].tolist() == [[11, 13], [19, 21]]
    seen = augment.render(image, view((1, 2, 2, 2)), 4)
    steps = torch.tensor([0, 0.25, 0.75, 1])
    assert torch.allclose(seen[0, 1], 11 + 8 * steps[:, None] + 2 * steps[None, :], atol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[1, 2], [3, 4]]),
        ((-1, 0, 0, 1), [[2, 1], [4, 3]]),
        ((1, 0, 0, -1), [[3, 4], [1, 2]]),
        ((0, -1, 1, 0), [[2, 4], [1, 3]]),  # a quarter turn anticlockwise
    ],
)
def test_flips_and_a_quarter_turn_of_a_2x2_image(matrix, expected):
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(1, 3, 2, 2)
    assert torch.allclose(augment.render(image, view((0, 0, 2, 2), matrix), 2)[0, 0], torch.tensor(expected).float(), atol=1e-4)


def test_each_copy_equals_torchvisions_crop_then_flip_or_rotation():
    images = noise(40).images
    views = augment.sample_views(40, 32, 32, generator())
    assert torch.equal(augment.render(images, views[:40], 32), images.float()), "copy 0 is the unchanged image"
    for copy in (1, 2, 3):
        rows = views[copy * 40 : copy * 40 + 40]
        for image, row, seen in zip(images, rows, augment.render(images, rows, 32), strict=True):
            crop = V.resized_crop(image.float(), *(int(side) for side in row[:4]), [32, 32], antialias=True)
            if copy < 3:
                flip = (V.horizontal_flip, V.vertical_flip)[copy - 1]
                assert torch.allclose(seen, flip(crop), atol=1e-3)
                continue
            angle = torch.rad2deg(torch.atan2(row[6], row[4])).item()
            assert -90 <= angle <= 90
            assert torch.allclose(seen, V.rotate(crop, angle, InterpolationMode.NEAREST), atol=1e-3)


def test_rotation_angles_are_uniform_within_90_degrees_either_way():
    turned = augment.sample_views(1000, 32, 32, generator())[3000:]
    angles = torch.rad2deg(torch.atan2(turned[:, 6], turned[:, 4]))
    assert kstest(angles, "uniform", (-90, 180)).pvalue > 0.01


def test_a_rotation_about_the_centre_equals_torchvisions():
    image = noise(1).images
    angle = torch.tensor(30.0).deg2rad()
    matrix = (angle.cos(), -angle.sin(), angle.sin(), angle.cos())
    seen = augment.render(image, view((0, 0, 32, 32), matrix), 32)[0]
    assert torch.equal(seen, V.rotate(image[0].float(), 30, InterpolationMode.NEAREST))


def test_crops_have_the_same_distribution_as_torchvisions():
    ours = augment.sample_crops(3000, 32, 32, generator())
    torch.manual_seed(0)
    image, crop = torch.zeros(3, 32, 32), RandomResizedCrop(32)
    theirs = torch.tensor([crop.get_params(image, crop.scale, crop.ratio) for _ in range(3000)]).float()
    for name, column in {
        "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
        "ratio": lambda boxes: boxes[:, 3] / boxes[:, 2],
        "top": lambda boxes: boxes[:, 0],
        "left": lambda boxes: boxes[:, 1],
    }.items():
        assert ks_2samp(column(ours), column(theirs)).pvalue > 0.01, name
    top, left, height, width = ours.unbind(1)
    assert (ours[:, :2] >= 0).all() and (top + height <= 32).all() and (left + width <= 32).all()
    assert torch.equal(ours, ours.round()) and (ours[:, 2:] >= 1).all()


def test_every_position_of_a_crop_is_equally_likely():
    boxes = augment.sample_crops(40_000, 32, 32, generator())
    narrow = boxes[boxes[:, 3] == 20]
    assert chisquare(narrow[:, 1].long().bincount(minlength=13)).pvalue > 0.01, "13 positions for a crop of 20 pixels in 32"


def test_if_no_crop_fits_the_whole_image_is_used(monkeypatch):
    monkeypatch.setattr(augment, "RATIO", (100.0, 200.0))
    assert torch.equal(augment.sample_crops(5, 8, 8, generator()), torch.tensor([[0.0, 0, 8, 8]]).expand(5, 4))


def test_the_unchanged_copy_of_a_larger_image_is_its_centre_crop():
    split = noise(5, size=40)
    images, labels, _ = collect(split)
    plain = torch.cat([batch for batch, _ in data.batches(split, 5, **{**OPTIONS, "augment": "none"})])
    assert images.shape == (20, 3, 32, 32)
    assert all(sum(torch.equal(image, plain[n]) for image in images[labels == n]) == 1 for n in range(5))


KINDS = [
    {"augment": "crop_flip", "padding": 4, "border": "reflect", "cutout": 8},
    {"augment": "resized_crop_flip"},
    {"augment": "fourfold"},
    {"augment": "flip"},
]


@pytest.mark.parametrize("options", KINDS, ids=lambda options: options["augment"])
def test_batches_cut_together_equal_those_cut_one_by_one_bit_for_bit(monkeypatch, options):
    one_by_one = collect(noise(50, size=36), 8, **options)
    monkeypatch.setattr(batching, "AT_ONCE", {"cpu": 3 * 8 * 3 * 32**2 * 4})
    images, labels, sizes = collect(noise(50, size=36), 8, **options)
    assert torch.equal(images, one_by_one[0]) and torch.equal(labels, one_by_one[1]) and sizes == one_by_one[2]
    first, _ = next(data.batches(noise(50, size=36), 8, generator=generator(), **{**OPTIONS, **options}))
    assert first.shape[0] == 8 and first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", KINDS, ids=lambda options: options["augment"])
def test_a_gpu_launches_fewer_than_one_kernel_per_batch_and_never_synchronises(options):
    """An epoch of CIFAR has 391 batches of 128 images. Cut one by one, each took 14 to 51 launches."""
    with FakeTensorMode(), Operations() as operations:
        images = torch.empty(50_000, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        split = data.Split(images, torch.zeros(50_000, dtype=torch.int64, device=CUDA), range(50_000))
        shown = sum(1 for _ in data.batches(split, 128, generator=torch.Generator(), **{**OPTIONS, **options}))
    assert shown == 391 * data.images_shown(split, options["augment"]) // 50_000 - (options["augment"] == "fourfold")
    assert len(operations.launches) < shown and not operations.waits, Counter(operations.launches)
