"""Duplicate images: byte-identical and near-identical ones, within and across splits."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.data.datasets import Dataset

THUMBNAIL = 32
# Chosen by inspecting every Pikachu pair above 0.87. All pairs from 0.9405 up show the same picture (another file, another
# size, an adjacent film frame); the most similar ones that do not are small figures alone on black, at 0.9280.
NEAR_IDENTICAL = 0.935

Place = tuple[str, int]  # a split's name and an index in it


def duplicates(dataset: Dataset) -> list[list[Place]]:
    """Groups of byte-identical files, each a list of (split, index), within and across splits."""
    groups = defaultdict(list)
    for name, split in dataset.splits.items():
        for index, digest in enumerate(split.digests):
            groups[digest].append((name, index))
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(dataset: Dataset, threshold: float = NEAR_IDENTICAL) -> list[tuple[Place, Place, float]]:
    """Pairs of different files that show the same picture: (place, other place, similarity), most similar first.

    Similarity is the cosine between two small grey thumbnails, each with its mean subtracted: it ignores file format, size,
    brightness and contrast. It misses mirrored copies and other crops of a picture, so the list is a lower bound.
    """
    places = [(name, index) for name, split in dataset.splits.items() for index in range(len(split))]
    digests = [digest for split in dataset.splits.values() for digest in split.digests]
    parts = [part for split in dataset.splits.values() for part in split.images.split(256)]
    small = [F.interpolate(part.float().mean(1, keepdim=True), THUMBNAIL, mode="area") for part in parts]
    grey = torch.cat(small).flatten(1)
    features = F.normalize(grey - grey.mean(1, keepdim=True), eps=1.0)  # zeros for an image of one colour
    pairs = []
    for start in range(0, len(features), 1024):
        similarity = features[start : start + 1024] @ features[start:].T
        for row, column in (similarity > threshold).triu(1).nonzero().tolist():
            first, second = start + row, start + column
            if digests[first] != digests[second]:
                pairs.append((places[first], places[second], similarity[row, column].item()))
    return sorted(pairs, key=lambda pair: -pair[2])


def leaked(dataset: Dataset, *, near: bool = True) -> Tensor:
    """int64 (N,), sorted: test images that are also in train or validation, byte-identical or, with `near`, near-identical."""
    groups = duplicates(dataset)
    if near:
        groups += [[first, second] for first, second, _ in near_duplicates(dataset)]
    crossing = [group for group in groups if any(split != "test" for split, _ in group)]
    indices = {index for group in crossing for split, index in group if split == "test"}
    return torch.tensor(sorted(indices), dtype=torch.int64)
