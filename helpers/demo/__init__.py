"""What can be tried: saved models, labels for images, a page."""

from helpers.demo.images import read_image
from helpers.demo.labels import classify, features, grad_cam, nearest, probabilities
from helpers.demo.page import Exhibit, build_page, prepare, start
from helpers.demo.saved import Preprocessing, SavedModel, load_model, save_model, save_run
from helpers.demo.shipped import evaluate, find_model, list_models, ship

__all__ = [
    "Exhibit",
    "Preprocessing",
    "SavedModel",
    "build_page",
    "classify",
    "evaluate",
    "features",
    "find_model",
    "grad_cam",
    "list_models",
    "load_model",
    "nearest",
    "prepare",
    "probabilities",
    "read_image",
    "save_model",
    "save_run",
    "ship",
    "start",
]
