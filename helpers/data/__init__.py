"""Labelled images, in splits and batches."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.data.audit import NEAR_IDENTICAL, duplicates, leaked, near_duplicates
from helpers.data.augment import COPIES, render, resize, sample_mirrors, sample_views
from helpers.data.batching import AUGMENTS, View, batches, images_shown
from helpers.data.cifar import CIFAR100_SUPERCLASSES, cifar100_superclasses
from helpers.data.datasets import NAMES, Dataset, Split, channel_statistics, load, names, stored_size, stratified
from helpers.data.samples import SAMPLE_CLASSES, sample
