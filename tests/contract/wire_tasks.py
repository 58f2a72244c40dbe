"""Task for the tests of queue and workers, controlled by the request's metadata.

Each run adds a line to the Redis list `test:runs`, so that a test can count them.
"""

import os
import signal
import threading
from typing import Any

from services.errors import NotReady, WrongModelKind
from services.jobs.queue import connect
from services.kinds.shared import JobRequest, JobResult
from services.progress import Progress
from worker.lifecycle import JobContext, perform

PAUSE = threading.Event()


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Runs a job as its metadata says."""
    return perform(request, _work)


def _work(request: JobRequest, context: JobContext) -> JobResult:
    options = request.metadata
    redis = connect(context.settings)
    run_number = redis.rpush("test:runs", f"{context.execution.job_id} {os.getpid()} {os.getppid()}")
    if run_number <= int(options.get("killed_runs", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    if run_number <= int(options.get("not_ready_runs", 0)):
        raise NotReady("The volume is not mounted.")
    if "wrong" in options:
        raise WrongModelKind("This is not a base model.", "Name another.")
    if "broken" in options:
        raise ZeroDivisionError("internal fault")
    context.execution.require_memory(int(options.get("needed_bytes", 0)))
    steps = int(options.get("steps", 1))
    total = int(options.get("total", steps))
    for step in range(steps):
        if "ignores_cancel" not in options:
            context.execution.check_canceled()
        if "uses_volume" in options:
            (context.store.root / f"step-{step}").write_bytes(b"")
        context.execution.report(Progress("counting", step + 1, total, "steps"))
        PAUSE.wait(float(options.get("step_seconds", 0)))
    context.execution.ensure_current()
    redis.rpush("test:published", context.execution.job_id)
    return JobResult.model_validate({"steps": steps, "target": request.makes})
