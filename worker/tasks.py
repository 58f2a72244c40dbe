"""Names on the wire: the functions that RQ calls, with the request as a JSON object.

`run_job` runs jobs of every kind except those of the inference worker, which calls no function for its jobs. The
other names are those under which version 0.1.0 queued jobs: they stay, so that its jobs run after an upgrade.
"""

from importlib import import_module
from typing import Any

from services.kinds import module_name
from services.kinds.shared import JobRequest, JobResult
from worker.lifecycle import JobContext, Work, perform


def run_job(payload: dict[str, Any]) -> dict[str, Any]:
    """Runs the job of a request and returns its result."""
    return perform(payload, _run)


import_model = convert = merge = verify = extend_tokenizer = run_job


def handler_of(kind: str) -> Work:
    """Returns the function that runs jobs of this kind: `run` of the kind's module in `worker/models/`."""
    handler: Work = import_module(f"worker.models.{module_name(kind)}").run
    return handler


def _run(request: JobRequest, context: JobContext) -> JobResult:
    return handler_of(request.kind)(request, context)
