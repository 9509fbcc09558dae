"""Under pytest a notebook runs on generated sample data, draws no progress bar and leaves `results/` alone."""

import os

os.environ.setdefault("PROFILE", "smoke")
os.environ["CI"] = "true"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each used every core would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
