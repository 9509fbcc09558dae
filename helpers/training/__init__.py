"""How it is trained: recipes, the loop, the perturbed step, checkpoints."""

from helpers.training.evaluation import EVALUATION_BATCH, accuracy_at, evaluate, predict, score
from helpers.training.layout import Arrangement, choose_arrangement, prepare
from helpers.training.loop import (
    FIRST_EPOCHS,
    OUT_OF_TIME,
    Diverged,
    Fit,
    Options,
    estimate_epochs,
    fit,
    training_batches,
)
from helpers.training.perturbation import AdversarialModelPerturbation
from helpers.training.recipe import OPTIMIZERS, PACES, SCHEDULES, Recipe, completed, learning_rate
from helpers.training.step import Learner, autocast, make_optimizer, make_scaler, train_epoch

__all__ = [
    "AdversarialModelPerturbation",
    "Arrangement",
    "Diverged",
    "EVALUATION_BATCH",
    "FIRST_EPOCHS",
    "Fit",
    "Learner",
    "OPTIMIZERS",
    "OUT_OF_TIME",
    "Options",
    "PACES",
    "Recipe",
    "SCHEDULES",
    "accuracy_at",
    "autocast",
    "choose_arrangement",
    "completed",
    "estimate_epochs",
    "evaluate",
    "fit",
    "learning_rate",
    "make_optimizer",
    "make_scaler",
    "predict",
    "prepare",
    "score",
    "train_epoch",
    "training_batches",
]
