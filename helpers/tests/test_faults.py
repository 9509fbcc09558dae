"""A short run of the fault-injection program: every area, with the same sample of its cases each time."""

import random
import re

import pytest

from helpers.runtime import ROOT
from helpers.tests.faults.__main__ import AREAS, tried
from helpers.tests.faults.child import Effort, Ended, complaint


@pytest.fixture(scope="module")
def effort(tmp_path_factory):
    """One percent of the cases, and two random kills of the command."""
    return Effort(rounds=2, share=0.01, folder=tmp_path_factory.mktemp("faults"), random=random.Random(0))


@pytest.mark.parametrize("area", AREAS)
def test_nothing_is_lost_or_half_written(effort, area):
    cases = tried(area, effort)
    assert len(cases) > 1
    assert [(name, wrong) for name, wrong in cases if wrong] == []


@pytest.mark.parametrize(
    ("ended", "begins"),
    [
        (Ended(-14, "", ""), "it hangs"),
        (Ended(1, "", "Traceback (most recent call last):\nKeyError: 'x'"), "a traceback: KeyError"),
        (Ended(1, "", "One.\nTwo."), "not one clear sentence"),
        (Ended(1, "", ""), "not one clear sentence"),
        (Ended(-11, "", ""), "it ends with status -11"),
    ],
)
def test_a_complaint_says_what_is_wrong_with_the_end_of_a_process(ended, begins):
    assert complaint(ended).startswith(begins)
    assert complaint(Ended(1, "", "The file x is not there; choose another.")) is None
    assert complaint(Ended(0, "done", "")) is None


def test_the_security_page_names_every_fault_area():
    promises = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("| promise |")[2]
    shown = re.findall(r"^\| \w.*? \| faults: (\*.*?\*)(?: ·.*)? \|$", promises, re.MULTILINE)
    assert len(shown) == 8 and set(re.findall(r"\*([^*]+)\*", " ".join(shown))) == set(AREAS)
