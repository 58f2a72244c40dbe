"""Short runs of the driver for tests, each in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

STREAMS = 7
KILLS = ("kill a worker/generate", "kill an engine's process/engine")
"""Faults that each hit seven jobs that are writing text."""


def run(*options: str, seconds: float = 660) -> str:
    """Returns the report of a run on a plain volume, which must have accounted for everything."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--plain-volume", *options], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "Problems: 0." in done.stdout
    return done.stdout


def kill_under_seven_streams(engine: str) -> None:
    """Kills the generate worker, then the process of its engine, while seven streams are written, and nothing else.

    By the account of the driver each job has one end and the text of the undisturbed run, and no process, staging folder
    or socket is left.
    """
    faults = [part for kill in KILLS for part in ("--fault", kill)]
    report = run("--engine", engine, "--minutes", "0.1", "--jobs", str(len(KILLS) * STREAMS), *faults)
    for kill in KILLS:
        row = re.search(rf"^\| {kill.partition('/')[0]} \| (\d+) \| (\d+) \| (\d+) \|", report, re.MULTILINE)
        assert row is not None, report
        assert [int(number) for number in row.groups()] == [1, STREAMS, STREAMS], report
    assert f"| succeeded | {len(KILLS) * STREAMS} |" in report
