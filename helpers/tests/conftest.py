"""One thread for each worker of pytest-xdist, and nothing of hypothesis in the working folder."""

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
