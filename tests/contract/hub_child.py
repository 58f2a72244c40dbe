"""A worker that is killed in the middle of a download, in a process of its own."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.kinds.import_ import ImportRequest
from services.progress import Progress
from services.settings import Settings
from tests.job_context import job_context
from worker.lifecycle import JobContext
from worker.models import import_


def hub_context(
    root: Path, endpoint: str, *, settings: dict[str, Any] | None = None, **more: Any
) -> JobContext:
    """Context of an execution on a volume, with the Hub at this address."""
    given = {"models_dir": root, "hub_enabled": True, "hf_endpoint": endpoint} | (settings or {})
    return replace(job_context(root, **more), settings=Settings(**given))


def import_until_killed(root: Path, endpoint: str, request: dict[str, Any], share: float, run: str) -> None:
    """Kills this process once so much is downloaded."""

    def kill(progress: Progress) -> None:
        if progress.stage == "downloading" and progress.done >= share * progress.total:
            os.kill(os.getpid(), signal.SIGKILL)

    import_.run(ImportRequest.model_validate(request), hub_context(root, endpoint, run=run, report=kill))
