"""The short form of the fault program: every area, a sample of its cases, the same ones each time.

The real command is killed in `test_experiments.py`; here it is its forks, which spare the seconds of a start.
"""

import random

import pytest

from helpers.tests.faults.__main__ import AREAS, prepare, tried
from helpers.tests.faults.child import Effort, Ended, complaint

KNOWN = set()  # names of cases that fail, are real, and are not mended yet


@pytest.fixture(scope="module")
def effort(tmp_path_factory):
    """A hundredth of the cases, and an undisturbed run to start from."""
    found = Effort(rounds=0, share=0.01, folder=tmp_path_factory.mktemp("faults"), random=random.Random(0))
    prepare(found.folder / "whole")
    return found


@pytest.mark.parametrize("area", [area for area in AREAS if "real command" not in area])
def test_nothing_is_lost_or_half_written(effort, area):
    cases = tried(area, effort)
    assert len(cases) > 1
    assert [(name, wrong) for name, wrong in cases if wrong and name not in KNOWN] == []


@pytest.mark.parametrize(
    ("ended", "begins"),
    [
        (Ended(None, "", ""), "it hangs"),
        (Ended(1, "", "Traceback (most recent call last):\nKeyError: 'x'"), "a traceback: KeyError"),
        (Ended(1, "", "One.\nTwo."), "not one clear sentence"),
        (Ended(1, "", ""), "not one clear sentence"),
        (Ended(-11, "", ""), "it ends with status -11"),
    ],
)
def test_what_is_complained_about(ended, begins):
    assert complaint(ended).startswith(begins)
    assert complaint(Ended(1, "", "The file x is not there; choose another.")) is None
    assert complaint(Ended(0, "done", "")) is None
