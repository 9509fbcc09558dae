"""One thread for each worker of pytest-xdist: workers that each used every core would wait for one another."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
