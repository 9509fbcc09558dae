"""Under pytest a notebook runs on generated sample data, draws no progress bar and leaves `results/` alone."""

import os

os.environ.setdefault("PROFILE", "smoke")
os.environ["CI"] = "true"
