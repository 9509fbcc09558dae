"""Sample data, splits and batches, crops of CIFAR images, and the audit."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torchvision.transforms.v2 import functional as V

from helpers import data
from helpers.data import augment
from helpers.runtime import UserError
from helpers.tests.data.test_photographs import SIZE, equal, fill, load, write

# Sample data.


def test_sample_data_is_always_the_same_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    one, other = data.sample("pikachu", image_size=SIZE), data.sample("pikachu", image_size=SIZE)
    assert equal(one, other)
    assert one.is_sample and one.source == "sample"
    assert list(tmp_path.iterdir()) == []


def test_sample_data_looks_like_real_data():
    dataset = data.sample("pikachu")
    assert [tuple(split.images.shape) for split in dataset.splits.values()] == [
        (48, 3, 73, 73),
        (16, 3, 73, 73),
        (16, 3, 73, 73),
    ]
    assert dataset.classes == ["not_pikachu", "pikachu"]
    assert torch.bincount(dataset.test.labels).tolist() == [8, 8]
    with pytest.raises(UserError, match="no sample data for 'pets'"):
        data.sample("pets")


def test_sample_data_can_be_learned():
    dataset = data.sample("pikachu")
    colours = {name: split.images.float().mean((2, 3)) for name, split in dataset.splits.items()}
    means = torch.stack([colours["train"][dataset.train.labels == label].mean(0) for label in (0, 1)])
    nearest = torch.cdist(colours["validation"], means).argmin(1)
    assert torch.equal(nearest, dataset.validation.labels)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar10_tenth", 10), ("cifar100", 100)])
def test_classes_of_sample_data_can_be_told_apart(name, classes):
    one, other = data.sample(name), data.sample(name, image_size=32)
    assert equal(one, other) and one.is_sample and one.name == name
    assert one.classes == data.SAMPLE_CLASSES[name] and len(one.classes) == classes
    assert all(part.images.shape[1:] == (3, 32, 32) for part in one.splits.values())
    assert torch.bincount(one.train.labels, minlength=classes).min() >= 2

    def features(split):  # the mean colours of the middle and of the top left corner
        middle, corner = split.images[..., 12:20, 12:20].float(), split.images[..., :6, :6].float()
        return torch.cat([middle.mean((2, 3)), corner.mean((2, 3))], 1)

    means = torch.stack([features(one.train)[one.train.labels == label].mean(0) for label in range(classes)])
    nearest = torch.cdist(features(one.validation), means).argmin(1)
    assert (nearest == one.validation.labels).double().mean() > 0.9


# Splits and batches.


def numbered(count, size=6):
    """A split whose pixel values count up through all images, modulo 251; the label of each image is its index."""
    images = torch.arange(count * size * size).view(count, 1, size, size).expand(-1, 3, -1, -1) % 251
    return data.Split(images.to(torch.uint8), torch.arange(count), [f"{i}.png" for i in range(count)])


PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # so that a batch holds the stored values


def test_subset_keeps_everything_in_step(tmp_path):
    fill(tmp_path / "pets")
    split = load(tmp_path).train
    part = split.subset([4, 0])
    assert torch.equal(part.images, split.images[[4, 0]])
    assert part.labels.tolist() == [1, 0] and len(part) == 2
    assert part.names == [split.names[4], split.names[0]]
    assert part.digests == [split.digests[4], split.digests[0]]
    assert torch.equal(part.sizes, split.sizes[[4, 0]])
    assert part.to("cpu").names == part.names


def test_a_stratified_subset_keeps_the_class_proportions():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)  # sorted, as an image folder is
    split = data.Split(torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1), labels, [f"{i}.png" for i in range(100)])
    part = data.stratified(split, 20)
    assert torch.bincount(part.labels).tolist() == [12, 6, 2]
    assert part.names == [f"{i}.png" for i in part.images.flatten().tolist()] == sorted(part.names, key=lambda n: int(n[:-4]))
    assert part.names == data.stratified(split, 20, seed=0).names != data.stratified(split, 20, seed=1).names
    for n in range(1, 101):
        counts = torch.bincount(data.stratified(split, n).labels, minlength=3)
        assert counts.sum() == n and ((counts - torch.tensor([0.6, 0.3, 0.1]) * n).abs() < 1 + 1e-6).all()
    assert data.stratified(split, 1000).names == split.names
    with pytest.raises(UserError, match="A subset of 0 images"):
        data.stratified(split, 0)


def test_the_batch_size_does_not_change_the_augmentation():
    def images(batch_size):
        options = {"image_size": 4, "augment": "crop_flip", "generator": torch.Generator().manual_seed(0)}
        return torch.cat([images for images, _ in data.batches(numbered(10), batch_size, **options, **PLAIN)])

    assert torch.equal(images(3), images(10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", data.AUGMENTS)
def test_a_gpu_sees_the_same_batches(augment):
    def images(device):
        options = {"image_size": 4, "augment": augment, "padding": 1, "generator": torch.Generator().manual_seed(0)}
        return torch.cat([x.cpu() for x, _ in data.batches(numbered(10).to(device), 4, **options, **PLAIN)])

    difference = (images("cpu") - images("cuda")).abs().max()
    assert difference < 1e-2 if augment == "fourfold" else difference == 0, "of 255 grey levels"


def test_batches_are_channels_last_float32():
    images, labels = next(data.batches(numbered(10), 4, image_size=4, **PLAIN))
    assert images.shape == (4, 3, 4, 4) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64


def test_normalisation():
    split = numbered(3)
    mean, std = (0.5, 0.25, 0.1), (0.5, 0.2, 0.3)
    images, _ = next(data.batches(split, 3, image_size=6, mean=mean, std=std))
    expected = (split.images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(images.double(), expected, atol=1e-6)
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    split = data.Split(black_and_white, torch.arange(2), [])
    images, _ = next(data.batches(split, 2, image_size=1, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert images[:, 0, 0, 0].tolist() == [-1, 1]


def test_the_centre_crop():
    split = numbered(5)
    for generator in (None, torch.Generator().manual_seed(0)):
        for images, labels in data.batches(split, 2, image_size=3, generator=generator, **PLAIN):
            assert torch.allclose(images, split.images[labels, :, 1:4, 1:4].float(), atol=1e-4)


def test_half_of_the_images_are_flipped_and_labels_stay_with_them():
    split = numbered(400)
    options = {"image_size": 6, "augment": "flip", "padding": 2, "generator": torch.Generator().manual_seed(0)}
    flipped = 0
    for images, labels in data.batches(split, 64, **options, **PLAIN):
        plain = split.images[labels].float()
        is_plain = (images - plain).abs().amax((1, 2, 3)) < 1e-3
        is_mirrored = (images - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-3
        assert (is_plain ^ is_mirrored).all()
        flipped += int(is_mirrored.sum())
    assert 160 <= flipped <= 240  # four standard deviations of a fair coin


def test_crops_with_a_reflected_border_equal_those_of_an_image_padded_by_numpy():
    size, padding, copies = 6, 2, 900
    one = numbered(1, size)
    split = data.Split(one.images.expand(copies, -1, -1, -1), torch.arange(copies), [])
    padded = torch.from_numpy(np.pad(one.images[0, 0].numpy(), padding, mode="reflect")).float()
    windows = torch.stack([padded[y : y + size, x : x + size] for y in range(5) for x in range(5)])
    windows = torch.cat([windows, windows.flip(-1)])
    options = {"image_size": size, "augment": "crop_flip", "padding": padding, "border": "reflect"} | PLAIN
    images, _ = next(data.batches(split, copies, generator=torch.Generator().manual_seed(0), **options))
    match = (images[:, None, 0] - windows).abs().amax((2, 3)) < 1e-3
    assert (match.sum(1) == 1).all() and match.any(0).all(), "each crop is one of 50 windows, and all 50 occur"


def test_cutout_puts_a_square_of_mean_colour_at_every_position_equally_often():
    split = data.Split(torch.full((2000, 3, 6, 6), 200, dtype=torch.uint8), torch.arange(2000), [])
    options = {"image_size": 6, "mean": (0.2, 0.3, 0.4), "std": (1 / 255,) * 3, "cutout": 4}
    images, _ = next(data.batches(split, 2000, generator=torch.Generator().manual_seed(0), **options))
    holes = images == 0
    assert (holes.sum((2, 3)) == 16).all() and torch.equal(holes[:, 0], holes[:, 2])
    places = holes[:, 0].flatten(1).int().argmax(1)  # the top left corner
    counts = places.bincount(minlength=36)[[row * 6 + column for row in range(3) for column in range(3)]]
    assert counts.sum() == 2000 and chisquare(counts).pvalue > 0.01
    assert all(holes[i, 0, p // 6 : p // 6 + 4, p % 6 : p % 6 + 4].all() for i, p in enumerate(places[:50].tolist()))
    assert not (next(data.batches(split, 9, **options))[0] == 0).any(), "no cutout in evaluation"


def test_a_resized_crop_equals_torchvisions_without_antialiasing():
    """Each view is a crop of 35 to 100 % of the area, enlarged; about half of them are mirrored."""
    boxes = augment.sample_crops(4000, 32, 32, torch.Generator().manual_seed(1), augment.GENTLE_AREA)
    area, ratio = boxes[:, 2] * boxes[:, 3] / 1024, boxes[:, 3] / boxes[:, 2]
    assert 0.33 < area.min() < 0.37 and area.max() == 1 and 0.70 < ratio.min() and ratio.max() < 1.43
    views = augment.sample_gentle_views(60, 32, 32, torch.Generator().manual_seed(0))
    images = mapped(60).images
    crops = augment.sample_crops(60, 32, 32, torch.Generator().manual_seed(0), augment.GENTLE_AREA)
    assert torch.equal(views[:, :4], crops) and 15 < (views[:, 4] == -1).sum() < 45
    for image, view, seen in zip(images, views, augment.render(images, views, 32), strict=True):
        crop = V.resized_crop(image.float(), *(int(side) for side in view[:4]), [32, 32], antialias=False)
        assert torch.allclose(seen, crop.flip(-1) if view[4] == -1 else crop, atol=1e-2)


def test_resize_equals_torchvisions_antialiased_bilinear_resize():
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    small = data.resize(images, 16)
    torch.testing.assert_close(small, V.resize(images.contiguous(), [16, 16], antialias=True))
    assert small.is_contiguous(memory_format=torch.channels_last) and data.resize(images, 32) is images
    torch.testing.assert_close(data.resize(torch.full((1, 3, 32, 32), 0.25), 24), torch.full((1, 3, 24, 24), 0.25))


def test_exactly_the_requested_images_are_mirrored():
    split, mirror = numbered(10), torch.arange(10) % 3 == 0
    images = torch.cat([images for images, _ in data.batches(split, 4, image_size=4, mirror=mirror, **PLAIN)])
    plain = split.images[..., 1:5, 1:5].float()
    assert torch.allclose(images, torch.where(mirror[:, None, None, None], plain.flip(-1), plain), atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"image_size": 7}, "image size is 7, but images are 6x6; choose 1 to 6"),
        ({"image_size": 0}, "image size is 0"),
        ({"augment": "mixup"}, "no augmentation 'mixup'; choose from none, flip, crop_flip"),
        ({"padding": -1}, "padding is -1"),
        ({"border": "wrap"}, "no border 'wrap'; choose from zero, reflect"),
        ({"border": "reflect", "padding": 6}, "padding is 6 pixels, but 6x6 images can reflect at most 5"),
        ({"cutout": 7}, "cutout is 7 pixels; choose 0 to 6"),
        ({"std": (1, 1, float("nan"))}, "cannot be normalised"),
    ],
)
def test_impossible_batch_settings_are_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        data.batches(numbered(2), **({"batch_size": 2, "image_size": 6} | PLAIN | wrong))


def test_channel_statistics_are_computed_over_all_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 3, 7, 9), np.uint8)
    pixels[:, 2] //= 3
    mean, std = data.channel_statistics(data.Split(torch.from_numpy(pixels), torch.zeros(5), []))
    assert mean == pytest.approx(pixels.mean((0, 2, 3)) / 255, abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3)) / 255, abs=1e-12)


# Crops with padding 4, the usual augmentation for CIFAR.

CIFAR_CROPS = {"image_size": 32, "padding": 4, "augment": "crop_flip", "mean": (0, 0, 0), "std": (1 / 255,) * 3}


def mapped(count):
    """Images whose channels hold the row + 1, the column + 1 and the index of the image, which is also its label."""
    rows, columns = torch.meshgrid(torch.arange(1, 33), torch.arange(1, 33), indexing="ij")
    numbers = torch.arange(count).view(-1, 1, 1).expand(-1, 32, 32)
    images = torch.stack([rows.expand(count, -1, -1), columns.expand(count, -1, -1), numbers], 1)
    return data.Split(images.to(torch.uint8), torch.arange(count), [])


def copies(count):
    one = mapped(1)
    return data.Split(one.images.expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.int64), [])


def test_identical_images_in_one_batch_are_transformed_differently():
    images, _ = next(data.batches(copies(64), 64, generator=torch.Generator().manual_seed(0), **CIFAR_CROPS))
    assert len(images.flatten(1).unique(dim=0)) > 40  # 64 draws from 162 give 53 different ones on average


def test_the_162_possible_crops_are_equally_likely_and_no_others_occur():
    padded = torch.nn.functional.pad(mapped(1).images[0, :2], [4] * 4).float()
    windows = torch.stack([padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)])
    windows = torch.cat([windows, windows.flip(-1)])
    counts = torch.zeros(162, dtype=torch.int64)
    for images, _ in data.batches(copies(8100), 2700, generator=torch.Generator().manual_seed(0), **CIFAR_CROPS):
        images = images.round()
        # The middle pixel is never padding, so it tells where the window lies.
        row, column, next_column = images[:, 0, 16, 16], images[:, 1, 16, 16], images[:, 1, 16, 17]
        mirrored = next_column < column
        which = (mirrored * 81 + (row - 13) * 9 + column - 13 + mirrored).long()
        assert torch.equal(images[:, :2], windows[which])
        counts += torch.bincount(which, minlength=162)
    assert counts.sum() == 8100
    assert chisquare(counts).pvalue > 0.01


def test_labels_stay_with_their_images():
    seen = []
    for images, labels in data.batches(mapped(250), 64, generator=torch.Generator().manual_seed(0), **CIFAR_CROPS):
        assert torch.equal(images[:, 2, 16, 16].round().long(), labels)
        seen += labels.tolist()
    assert sorted(seen) == list(range(250)) and seen != sorted(seen)


def test_a_split_normalised_by_its_own_statistics_has_mean_0_and_deviation_1():
    split = data.sample("cifar10").train
    mean, std = data.channel_statistics(split)
    images = torch.cat([images for images, _ in data.batches(split, 16, image_size=32, mean=mean, std=std)])
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    per_image = (split.images.double() / 255).std((2, 3), correction=0).mean(0)  # often copied instead: the mean within images
    assert (per_image < torch.tensor(std)).all()


# The audit.


@pytest.fixture
def planted(tmp_path):
    """A data set with exact copies across and within splits, a brightened JPEG copy across splits, and two flat images."""
    root = fill(tmp_path / "pets", classes=("cat", "dog"))
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/traincat1.png").read_bytes())
    (root / "train/dog/copy.png").write_bytes((root / "train/dog/traindog2.png").read_bytes())
    (root / "test/dog/copy.png").write_bytes((root / "test/dog/testdog0.png").read_bytes())
    with Image.open(root / "validation/dog/validationdog0.png") as image:
        image.point(lambda value: 40 + value * 0.7).save(root / "test/dog/similar.jpg", quality=95)
    write(root / "train/cat/red.png", "red")
    write(root / "test/cat/blue.png", "blue")
    return load(tmp_path)


def named(dataset, place):
    return dataset.splits[place[0]].names[place[1]]


def test_byte_identical_files_are_found(planted):
    groups = [[named(planted, place) for place in group] for group in data.duplicates(planted)]
    assert sorted(groups) == [
        ["test/dog/copy.png", "test/dog/testdog0.png"],
        ["train/cat/traincat1.png", "test/cat/copy.png"],
        ["train/dog/copy.png", "train/dog/traindog2.png"],
    ]


def test_near_identical_files_are_found_and_flat_images_are_not(planted):
    pairs = data.near_duplicates(planted)
    assert [(named(planted, one), named(planted, other)) for one, other, _ in pairs] == [
        ("validation/dog/validationdog0.png", "test/dog/similar.jpg")
    ]
    assert data.NEAR_IDENTICAL < pairs[0][2] <= 1.0001
    assert data.near_duplicates(planted, threshold=1.01) == []


def test_near_identical_files_beyond_the_first_block_are_found():
    images = torch.randint(0, 256, (1100, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[1090], images[1080] = images[1050], images[50] // 8 * 8
    splits = [
        data.Split(
            part, torch.zeros(len(part), dtype=torch.int64), [""] * len(part), [f"{len(part)}.{i}" for i in range(len(part))]
        )
        for part in (images, images[:2] ^ 85, images[2:5] ^ 170)
    ]
    pairs = data.near_duplicates(data.Dataset("a", "b", "c", [], *splits))
    expected = [(("train", 1050), ("train", 1090)), (("train", 50), ("train", 1080))]
    assert [pair[:2] for pair in pairs] == expected, "within a block and across two, most similar first"


def test_leaked_test_images(planted):
    def files(**options):
        return [planted.test.names[i] for i in data.leaked(planted, **options).tolist()]

    assert files() == ["test/cat/copy.png", "test/dog/similar.jpg"], "a copy within the test split is not a leak"
    assert files(near=False) == ["test/cat/copy.png"]


def test_the_audit_of_sample_data_finds_its_two_planted_images():
    dataset = data.sample("pikachu")
    assert data.duplicates(dataset) == [[("train", 0), ("test", 0)]]
    assert [pair[:2] for pair in data.near_duplicates(dataset)] == [(("train", 1), ("test", 1))]
    assert data.leaked(dataset).tolist() == [0, 1]
