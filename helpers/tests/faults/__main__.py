"""`python -m helpers.tests.faults [--rounds N] [--seed S] [--area A]`: a table of areas, cases and failures."""

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from helpers.tests.faults import inputs, state, writing
from helpers.tests.faults.child import EXPERIMENT, Child, Effort, command, smallest

MINUTES = 90  # after this, an area starts no new case
AREAS = {
    "kills and errors at system calls": writing.system_calls,
    "random kills of the real command": writing.random_kills,
    "full and read-only disks": writing.full_disks,
    "a mirror that vanishes": writing.vanishing_mirrors,
    "two processes at once": writing.two_at_once,
    "damaged checkpoints": state.damaged_checkpoints,
    "damaged records": state.damaged_records,
    "damaged models": state.damaged_models,
    "damaged data": state.damaged_data,
    "invalid numbers": state.wrong_numbers,
    "hostile images": inputs.images,
    "servers that misbehave": inputs.servers,
    "command lines": inputs.command_lines,
}


def prepare(folder: Path) -> None:
    """Make what every area starts from: an undisturbed run, its model and an image."""
    folder.mkdir()
    torch.set_num_threads(1)
    (folder / "image.png").write_bytes(inputs.picture())
    writing.run_in(folder.with_name("warm"))()  # does the late imports here, so that no child has to
    for work in (writing.run_in(folder), command(*writing.arguments(folder, "save", EXPERIMENT, folder / "model"))):
        ended = Child(work).wait()
        assert ended.status == 0, ended


def tried(area: str, effort: Effort) -> list[tuple[str, str | None]]:
    """Try the cases of an area: the name of each, and what went wrong, or None."""
    whole, end, done = effort.folder / "whole", time.monotonic() + 60 * MINUTES, []
    with contextlib.redirect_stdout(io.StringIO()), smallest():
        if not whole.exists():
            prepare(whole)
        for case in AREAS[area](effort, whole):
            done.append(case)
            if time.monotonic() > end:
                return [*done, ("the rest", f"not tried within {MINUTES} minutes")]
    return done


def main() -> int:
    """Try every area; returns the exit status: 1 if anything failed."""
    about = "Inject faults and check that nothing is lost or half written."
    parser = argparse.ArgumentParser(prog="python -m helpers.tests.faults", description=about)
    rounds = "random kills of the real command; below 200, the other areas try fewer cases too"
    parser.add_argument("--rounds", type=int, default=200, help=rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--area", choices=AREAS, help="try only this area")
    options = parser.parse_args()
    os.environ["CI"] = "true"  # no progress bars
    print(f"{'area':36} {'cases':>6} {'failures':>9}")
    failures = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        effort = Effort(options.rounds, min(1.0, options.rounds / 200), Path(folder), random.Random(options.seed))
        for area in [options.area] if options.area else AREAS:
            start, done = time.monotonic(), tried(area, effort)
            failed = [f"{area} · {name}: {wrong}" for name, wrong in done if wrong]
            print(f"{area:36} {len(done):6} {len(failed):9}  {time.monotonic() - start:6.0f} s", flush=True)
            failures += failed
    print("\n".join([f"{len(failures)} failures", *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
