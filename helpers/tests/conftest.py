"""One thread for each worker of pytest-xdist, forks before threads, and nothing of hypothesis in the working folder."""

import os
import tempfile

import torch
from hypothesis import configuration, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each used every core would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))
settings.register_profile("house", database=None, deadline=None, derandomize=True, max_examples=25)
settings.load_profile("house")


def pytest_collection_modifyitems(items):
    """Run the tests that fork first: autograd cannot go on in a fork of a process in which it has started threads."""
    items.sort(key=lambda item: "test_faults" not in item.nodeid)
