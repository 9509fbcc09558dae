"""Saved models, labels for images, and the page in the browser."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.demo.images import read_image
from helpers.demo.labels import classify, features, grad_cam, middle, nearest, overlay, probabilities
from helpers.demo.page import Exhibit, build_page, prepare, start
from helpers.demo.saved import Preprocessing, SavedModel, best_weights, load_model, save_model
from helpers.demo.shipped import evaluate, find_model, list_models, ship, write_card
