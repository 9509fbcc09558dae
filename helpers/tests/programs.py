"""Programs in processes of their own, from a server that has imported everything once: torch takes seconds to import."""

import multiprocessing
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.training import loop

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["helpers.__main__", "helpers.tests.training.test_processes"])


def start(arguments: list[str], said: Path, before: Callable[[], object] = lambda: None) -> multiprocessing.Process:
    """`python -m helpers …`, after what comes `before` in its process; what it prints goes into the file `said`."""
    process = CONTEXT.Process(target=_program, args=(arguments, said, before))
    process.start()
    return process


def hold_at_the_first_checkpoint() -> None:
    """Have this process wait for a signal as soon as it has written a checkpoint."""
    save = loop.save_checkpoint
    loop.save_checkpoint = lambda *arguments: (save(*arguments), signal.pause())


def _program(arguments: list[str], said: Path, before: Callable[[], object]) -> None:
    sys.stdout = sys.stderr = open(said, "w", buffering=1)
    before()
    sys.argv = ["helpers", *arguments]
    runpy.run_module("helpers", run_name="__main__")
