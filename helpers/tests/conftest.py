"""One thread for each worker of pytest-xdist, the slowest tests first, and nothing of hypothesis in the working folder."""

import os
import tempfile

from hypothesis import configuration, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each used every core would wait for one another
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))
settings.register_profile("house", database=None, deadline=None, derandomize=True, max_examples=25)
settings.load_profile("house")

# The first ones fork: autograd cannot go on in a fork of a process in which it has started threads.
FIRST = ("test_faults", "test_processes", "05_", "test_layout", "test_experiments", "04_", "06_", "03_", "07_", "test_queue")
FIRST += ("test_bench", "09_", "test_colab", "08_", "01_", "02_", "test_search", "test_claims", "test_fake_gpu", "test_cifar")


def pytest_configure(config):
    """Keep xdist from beginning with the files of most tests, whatever they take: one core would be idle at the end."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((place for place, name in enumerate(FIRST) if name in item.nodeid), len(FIRST)))
