"""Tasks for the tests of queue and workers: what they do stands in the request's metadata.

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
    """A job that does what its metadata says."""
    return perform(request, _work)


def _work(request: JobRequest, context: JobContext) -> JobResult:
    wishes = request.metadata
    redis = connect(context.settings)
    run_number = redis.rpush("test:runs", f"{context.execution.job_id} {os.getpid()} {os.getppid()}")
    if run_number <= int(wishes.get("killed_runs", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    if run_number <= int(wishes.get("not_ready_runs", 0)):
        raise NotReady("the volume is away")
    if "wrong" in wishes:
        raise WrongModelKind("this is no base model", "Name another.")
    if "broken" in wishes:
        raise ZeroDivisionError("a fault of ours")
    steps = int(wishes.get("steps", 1))
    total = int(wishes.get("total", steps))
    for step in range(steps):
        if "ignores_cancel" not in wishes:
            context.execution.check_canceled()
        context.execution.report(Progress("counting", step + 1, total, "steps"))
        PAUSE.wait(float(wishes.get("step_seconds", 0)))
    context.execution.ensure_current()
    redis.rpush("test:published", context.execution.job_id)
    return JobResult.model_validate({"steps": steps, "target": request.makes})
