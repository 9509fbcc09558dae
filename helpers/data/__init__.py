"""What goes in: images with labels, in splits and batches."""

from helpers.data.audit import NEAR_IDENTICAL, THUMBNAIL, Place, duplicates, leaked, near_duplicates
from helpers.data.augment import COPIES, render, resize, sample_mirrors, sample_views
from helpers.data.batching import AUGMENTS, View, batches, images_shown
from helpers.data.cifar import CIFAR100_SUPERCLASSES, cifar100_superclasses
from helpers.data.datasets import NAMES, Dataset, Split, channel_statistics, load, names, stored_size, stratified
from helpers.data.photographs import decode_photograph
from helpers.data.samples import SAMPLE_CLASSES, SAMPLE_COUNTS, sample

__all__ = [
    "AUGMENTS",
    "CIFAR100_SUPERCLASSES",
    "COPIES",
    "Dataset",
    "NAMES",
    "NEAR_IDENTICAL",
    "Place",
    "SAMPLE_CLASSES",
    "SAMPLE_COUNTS",
    "Split",
    "THUMBNAIL",
    "View",
    "batches",
    "channel_statistics",
    "cifar100_superclasses",
    "decode_photograph",
    "duplicates",
    "images_shown",
    "leaked",
    "load",
    "names",
    "near_duplicates",
    "render",
    "resize",
    "sample",
    "sample_mirrors",
    "sample_views",
    "stored_size",
    "stratified",
]
