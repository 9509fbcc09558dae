"""`python -m helpers.tests.faults [--rounds N] [--seed S] [--minutes M]`: a table of areas, cases and failures."""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from helpers.tests.faults import inputs, state, writing
from helpers.tests.faults.child import Child, Effort, command

AREAS = {
    "kills and errors at system calls": writing.system_calls,
    "full and read-only disks": writing.full_disks,
    "a mirror that vanishes": writing.vanishing_mirrors,
    "two at once": writing.two_at_once,
    "damaged checkpoints": state.damaged_checkpoints,
    "damaged records": state.damaged_records,
    "damaged models": state.damaged_models,
    "numbers that go wrong": state.wrong_numbers,
    "hostile images": inputs.images,
    "servers that misbehave": inputs.servers,
    "command lines": inputs.command_lines,
    "random kills in forks": writing.forked_kills,
    "random kills of the real command": writing.random_kills,
}


def prepare(folder: Path) -> Path:
    """An undisturbed run, its model and an image: what every area starts from."""
    folder.mkdir()
    torch.set_num_threads(1)
    (folder / "image.png").write_bytes(inputs.picture())
    options = ("--results-dir", folder, "--checkpoint-dir", folder / "checkpoints")
    again = ("save", writing.EXPERIMENT, folder / "model", "--profile", "smoke", *options)
    for work in (writing.run_in(folder), command(*again)):
        ended = Child(work).wait(300)
        assert ended.status == 0, ended.err
    return folder


def tried(area: str, effort: Effort, minutes: float = 90) -> list[tuple[str, str | None]]:
    """The cases of an area, each with what went wrong, or None; none starts once so many minutes are over."""
    whole, end, done = effort.folder / "whole", time.monotonic() + 60 * minutes, []
    whole = whole if whole.exists() else prepare(whole)
    with contextlib.redirect_stdout(io.StringIO()):
        for case in AREAS[area](effort, whole):
            done.append(case)
            if time.monotonic() > end:
                return [*done, (f"stopped after {minutes:g} minutes", None)]
    return done


def main() -> int:
    """Try every area; returns the exit status: 1 where anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.tests.faults", description="Look for a fault that loses something."
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="random kills of the real command; below 200, fewer of all else"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=90, help="an area stops once it has taken this long")
    parser.add_argument("--area", choices=AREAS, help="this one alone")
    options = parser.parse_args()
    failures, rows = [], []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        effort = Effort(options.rounds, min(1.0, options.rounds / 200), Path(folder), random.Random(options.seed))
        for area in [options.area] if options.area else AREAS:
            start = time.monotonic()
            done = tried(area, effort, options.minutes)
            failed = [f"{area} · {name}: {wrong}" for name, wrong in done if wrong]
            failures += failed
            rows.append(f"{area:36} {len(done):6} {len(failed):9}")
            print(f"{rows[-1]}  {time.monotonic() - start:6.0f} s", flush=True)
    print("\n".join([f"\n{'area':36} {'cases':>6} {'failures':>9}", *rows, *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
