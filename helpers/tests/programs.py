"""Programs in separate processes, forked from a server that has already imported torch, which takes seconds."""

import multiprocessing
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.training import loop

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["helpers.__main__", "helpers.tests.training.test_processes"])


def start(arguments: list[str], output: Path, before: Callable[[], object] = lambda: None) -> multiprocessing.Process:
    """Start `python -m helpers …` in a new process, which calls `before` first; its output goes into the file `output`."""
    process = CONTEXT.Process(target=_program, args=(arguments, output, before))
    process.start()
    return process


def folders(folder: Path) -> list[str]:
    """The options that have a command keep its records and its checkpoints in a folder."""
    return ["--results-dir", str(folder), "--checkpoint-dir", str(folder / "checkpoints")]


def hold_at_the_first_checkpoint() -> None:
    """Make this process wait for a signal as soon as it has written a checkpoint."""
    save = loop.save_checkpoint
    loop.save_checkpoint = lambda *arguments: (save(*arguments), signal.pause())


def _program(arguments: list[str], output: Path, before: Callable[[], object]) -> None:
    sys.stdout = sys.stderr = open(output, "w", buffering=1)
    before()
    sys.argv = ["helpers", *arguments]
    runpy.run_module("helpers", run_name="__main__")
