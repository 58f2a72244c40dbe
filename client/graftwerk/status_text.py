"""State of a job in a few words, and the color of each status."""

from graftwerk.models import Job

COLOR_OF = {"queued": "dim", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}


def state_of(job: Job) -> str:
    """Returns what is known beyond the status: the code of the error, the reason for waiting, stage and share."""
    if job.error is not None and job.status == "failed":
        return job.error.code
    if job.status == "queued" and job.waiting_for is not None:
        return f"waiting for {job.waiting_for.what}"
    if job.status == "queued" and job.queue_position is not None:
        return f"position {job.queue_position}"
    if job.status == "running" and job.progress is not None:
        share = "" if job.progress.fraction is None else f" {job.progress.fraction:.0%}"
        return f"{job.progress.stage}{share}"
    return ""
