"""Training: recipes, the loop, perturbed steps, checkpoints."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.training.evaluation import evaluate, predict, score
from helpers.training.layout import choose_channels_last, prepare
from helpers.training.loop import OUT_OF_TIME, Diverged, Fit, fit, training_batches
from helpers.training.perturbation import AdversarialModelPerturbation
from helpers.training.recipe import OPTIMIZERS, SCHEDULES, Recipe, completed, learning_rate
from helpers.training.step import Learner, make_optimizer, train_epoch
