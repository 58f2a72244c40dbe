"""A worker that is killed in the middle of a merge or a conversion, in a process of its own."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from services.kinds import ANY_REQUEST
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.models.store import ModelStore
from services.progress import Progress
from services.settings import Settings
from worker.lifecycle import JobContext
from worker.models.merge import run_convert, run_merge


def context(root: Path, run: int, report: Any) -> JobContext:
    """What a worker hands to a task, without a queue: the run-th execution of the job "job"."""

    def ignore(*_: object) -> None:
        """Nobody watches."""

    return cast(
        JobContext,
        SimpleNamespace(
            store=ModelStore(root), settings=Settings(models_dir=root), job_id="job", execution=f"job.{run}",
            report=report, check_canceled=ignore, confirm=ignore, reserve_disk=ignore, log=ignore,
        ),
    )  # fmt: skip


def make(request: Any, at: JobContext) -> dict[str, Any]:
    """The result of the request's job."""
    if isinstance(request, ConvertRequest):
        return dict(run_convert(request, at))
    assert isinstance(request, MergeRequest)
    return dict(run_merge(request, at))


def run_until_killed(root: Path, request: dict[str, Any], stage: str, share: float) -> None:
    """Kill this process once so much of the stage is done."""
    torch.set_num_threads(1)

    def kill(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= share * progress.total:
            os.kill(os.getpid(), signal.SIGKILL)

    make(ANY_REQUEST.validate_python(request), context(root, 1, kill))
