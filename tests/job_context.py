"""Context of a job that runs without a queue: nothing is reported, reserved or canceled unless a test says so."""

from collections.abc import Callable
from pathlib import Path

from services.models.store import ModelStore
from services.progress import CheckCanceled, Report, ignore_progress, never_canceled
from services.settings import Settings
from worker.lifecycle import JobContext


def job_context(
    volume: Path,
    *,
    job_id: str = "job",
    run: str = "1",
    report: Report = ignore_progress,
    check_canceled: CheckCanceled = never_canceled,
    confirm: Callable[[], None] = lambda: None,
) -> JobContext:
    """Returns the context of one execution of a job on the volume."""
    return JobContext(
        store=ModelStore(volume),
        settings=Settings(models_dir=volume),
        job_id=job_id,
        execution=f"{job_id}.{run}",
        report=report,
        check_canceled=check_canceled,
        confirm=confirm,
        reserve_disk=lambda need: None,
        log=lambda line: None,
        publish_tokens=lambda pieces: None,
    )
