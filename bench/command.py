"""A measured command: seconds of the clock and of the processor, and the peak memory of its processes."""

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from bench.memory import Peak

SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}


def measure_command(command: Sequence[str], *, prints_json: bool) -> dict[str, Any]:
    """Returns seconds of one run by the clock and of the processor, and peaks of anonymous and resident memory over its processes in MB.

    `work_seconds` is what the command prints as JSON in its last line, with all else that it prints there, or the wall seconds.
    """
    os.sync()
    before = _processor_seconds()
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | SETTINGS
    )
    with Peak(process.pid) as peak:
        output, errors = process.communicate()
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {errors[-2000:]}")
    printed = json.loads(output.splitlines()[-1]) if prints_json else {"work_seconds": seconds}
    return {
        "seconds": seconds, "processor_seconds": _processor_seconds() - before, "anonymous_mb": peak.anonymous / 2**20, "resident_mb": peak.resident / 2**20, **printed,
    }  # fmt: skip


def _processor_seconds() -> float:
    """Returns the processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
