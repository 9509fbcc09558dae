"""Blocks, networks by name, and (in `inspect`) their sizes and costs."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.models import inspect
from helpers.models.blocks import BasicBlock, Bottleneck, EarlyConcatenation, Res2NetBlock, SplitBranches, WideBlock
from helpers.models.inspect import count_macs, count_parameters, layer_table
from helpers.models.registry import MODELS, build
from helpers.models.resnet import SLIM, SLIM_STEM, Description, Stage, Stem, slim_resnet, zero_last_batchnorm
