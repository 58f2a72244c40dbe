"""A worker that is killed in the middle of a merge or a conversion, in a process of its own."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from services.kinds import ANY_REQUEST
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.progress import Progress
from tests.job_context import job_context
from worker.lifecycle import JobContext, result_as_json
from worker.models import convert as convert_job
from worker.models import merge as merge_job


def make(request: Any, at: JobContext) -> dict[str, Any]:
    """The result of the request's job."""
    if isinstance(request, ConvertRequest):
        return result_as_json(convert_job.run(request, at))
    assert isinstance(request, MergeRequest)
    return result_as_json(merge_job.run(request, at))


def run_until_killed(root: Path, request: dict[str, Any], stage: str, share: float) -> None:
    """Kill this process once so much of the stage is done."""
    torch.set_num_threads(1)

    def kill(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= share * progress.total:
            os.kill(os.getpid(), signal.SIGKILL)

    make(ANY_REQUEST.validate_python(request), job_context(root, report=kill))
