"""A short run of the chaos driver; only where the processes run on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

SHORT = ("--seed", "117", "--minutes", "0.3", "--jobs", "22", "--plain-volume")
"""22 jobs, two of them canceled; the generate worker with seven streams, a job process and Redis are killed."""

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(700)  # a minute on two quiet cores
def test_a_short_run_of_faults_accounts_for_everything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *SHORT], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=660,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "| all, each with one end | 22 |" in done.stdout
    assert "Problems: 0." in done.stdout
