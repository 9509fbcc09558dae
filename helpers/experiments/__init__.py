"""Experiments: the plan, its runs and their records."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.experiments import recipes, records, search
from helpers.experiments.plan import EXPERIMENTS, Experiment
from helpers.experiments.records import folder_for, obtain_all, predictions
from helpers.experiments.runner import checkpoint_path, find, load_data, load_data_or_sample, peak_memory, recipe_for, run
