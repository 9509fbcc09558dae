"""Kills, damaged files, full disks, hostile input: nothing may be lost or half written. `python -m helpers.tests.faults`."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before torch is imported: CUDA does not survive the forks
