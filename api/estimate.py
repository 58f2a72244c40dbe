"""Estimate of the time that a planned job would take: that of similar jobs, in proportion to the size of the output."""

from statistics import median

from api.state import state
from services.jobs.listing import JobFilter
from services.jobs.status import Job
from services.kinds.made_model import MadeModel
from services.kinds.shared import JobRequest
from services.preflight import Plan

COMPARED_JOBS = 20
"""Newest succeeded jobs of the kind that are looked at."""

SIMILAR = 10
"""Largest factor between the sizes of outputs for which times are comparable: small models take constant times."""


def with_estimate(plan: Plan, request: JobRequest) -> Plan:
    """Returns the plan with the time that the job would take; None where no similar job has succeeded."""
    if not plan.output_bytes:
        return plan
    jobs, _ = state().queue.list(JobFilter(plan.kind, "succeeded"), limit=COMPARED_JOBS)
    seconds = [found for job in jobs if (found := _scaled_seconds(job, plan, request)) is not None]
    return plan.model_copy(update={"estimated_seconds": round(median(seconds), 1) if seconds else None})


def _scaled_seconds(job: Job, plan: Plan, request: JobRequest) -> float | None:
    size = _computed_bytes(job)
    is_similar = size * SIMILAR >= plan.output_bytes and plan.output_bytes * SIMILAR >= size
    if not size or not is_similar or _output_format(job.request) != _output_format(request):
        return None
    if job.started_at is None or job.finished_at is None:
        return None
    return (job.finished_at - job.started_at).total_seconds() * plan.output_bytes / size


def _computed_bytes(job: Job) -> int:
    """Returns the size of the model that a job has made; 0 if it took an identical one or continued a killed execution."""
    result = job.result
    if not isinstance(result, MadeModel) or getattr(result, "same_as", None):
        return 0
    resumed = getattr(result, "resumed", None)
    return 0 if resumed is not None and resumed.tensors else result.model.size_bytes


def _output_format(request: JobRequest) -> str | None:
    return getattr(request, "output_format", None)
