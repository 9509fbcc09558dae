"""Kills, damaged files, full disks, hostile input: nothing may be lost or half written. `python -m helpers.tests.faults`."""
