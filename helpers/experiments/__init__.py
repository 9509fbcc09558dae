"""What is run: the plan, its runs and their records."""

from helpers.experiments import recipes, records, search
from helpers.experiments.plan import EXPERIMENTS, Experiment
from helpers.experiments.records import folder_for, obtain_all, predictions
from helpers.experiments.runner import checkpoint_path, find, load_data, load_data_or_sample, peak_memory, recipe_for, run

__all__ = ["EXPERIMENTS", "Experiment", "find", "recipe_for", "recipes", "search"]
__all__ += ["checkpoint_path", "load_data", "load_data_or_sample", "peak_memory", "run"]
__all__ += ["folder_for", "obtain_all", "predictions", "records"]
