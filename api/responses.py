"""Schemas of responses, and their conversion to HTTP responses."""

from collections.abc import Collection, Mapping, Sequence

from flask import Response
from pydantic import BaseModel, Field, RootModel

from api.state import state
from services.jobs.status import ENDED, Job, WaitingFor
from services.jobs.waiting import read_volume_problem
from services.kinds import KINDS, AnyRequest
from services.kinds.model_summary import ModelSummary


class JobBody(RootModel[AnyRequest]):
    """A request of any kind, selected by its `kind`."""


class JobResponse(Job):
    """A job with its links."""

    warnings: list[str] = Field(
        default=[],
        description="Problems that do not stop the job, for example that no worker runs jobs of its kind at the moment.",
    )
    links: dict[str, str] = Field(
        description="`self`, `events`, `log`; `cancel` until the job has ended, `retry` afterwards.",
        examples=[{"self": "/api/jobs/…", "events": "/api/jobs/…/events", "cancel": "/api/jobs/…/cancel"}],
    )

    @classmethod
    def of(cls, job: Job, served_queues: Collection[str], volume_problem: str = "") -> "JobResponse":
        """Returns the job with its links and what it waits for, and a warning if no living worker serves its queue."""
        own = f"/api/jobs/{job.id}"
        action = "retry" if job.status in ENDED else "cancel"
        links = {"self": own, "events": f"{own}/events", "log": f"{own}/log", action: f"{own}/{action}"}
        warnings = _warnings(job, served_queues)
        waiting_for = job.waiting_for
        if job.status == "queued" and waiting_for is None:
            waiting_for = _waiting_for(warnings, volume_problem)
        return cls.model_validate(
            {**dict(job), "waiting_for": waiting_for, "warnings": warnings, "links": links}
        )


def _waiting_for(warnings: Sequence[str], volume_problem: str) -> WaitingFor | None:
    if warnings:
        return WaitingFor(what="worker", message=warnings[0])
    return WaitingFor(what="volume", message=volume_problem) if volume_problem else None


def _warnings(job: Job, served_queues: Collection[str]) -> list[str]:
    kind = KINDS.get(job.kind)  # None in a record of a newer version
    if job.status != "queued" or kind is None or kind.queue in served_queues:
        return []
    return [f"No {kind.queue} worker is alive. The job waits until one starts."]


def job_responses(jobs: Sequence[Job]) -> list[JobResponse]:
    """Returns jobs as the API shows them; the workers are read once, and only if a job is queued."""
    is_any_queued = any(job.status == "queued" for job in jobs)
    served_queues = {worker.queue for worker in state().queue.workers()} if is_any_queued else set()
    volume_problem = read_volume_problem(state().queue.redis) if is_any_queued else ""
    return [JobResponse.of(job, served_queues, volume_problem) for job in jobs]


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[JobResponse]
    next: str | None = Field(description="Value of `after` for the next page; null on the last one.")
    total: int = Field(description="Number of selected jobs on all pages.")


class ModelList(BaseModel):
    """The models on the volume, by name."""

    models: list[ModelSummary]


def json_response(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a model as a JSON response that is never cached."""
    response = Response(model.model_dump_json(by_alias=True), status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers.update(headers or {})
    return response


def job_response(job: Job, status: int = 200) -> Response:
    """Returns a job, with `Retry-After` until it has ended, and `Location` if the status is 202."""
    response = json_response(job_responses([job])[0], status)
    if job.status not in ENDED:
        response.headers["Retry-After"] = "1"
    if status == 202:
        response.headers["Location"] = f"/api/jobs/{job.id}"
    return response
