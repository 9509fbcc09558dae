"""What can be tried: saved models, labels for images, a page."""
# ruff: noqa: F401 (the names that notebooks and the command line use)

from helpers.demo.images import read_image
from helpers.demo.labels import classify, features, grad_cam, nearest, probabilities
from helpers.demo.page import Exhibit, build_page, prepare, start
from helpers.demo.saved import Preprocessing, SavedModel, load_model, save_model, save_run
from helpers.demo.shipped import evaluate, find_model, list_models, ship
