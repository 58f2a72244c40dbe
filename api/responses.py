"""What the views answer with: the shapes of the document, and how a shape becomes a response."""

from collections.abc import Mapping

from flask import Response
from pydantic import BaseModel, Field, RootModel

from services.jobs.status import ENDED, Job
from services.kinds import AnyRequest
from services.kinds.model_summary import ModelSummary


class JobBody(RootModel[AnyRequest]):
    """A request of any kind, told apart by its `kind`."""


class JobAnswer(Job):
    """A job, and where to go from it."""

    links: dict[str, str] = Field(
        description="`self`, `events`, `log`; `cancel` while it may be canceled, `retry` once it has ended.",
        examples=[{"self": "/api/jobs/…", "events": "/api/jobs/…/events", "cancel": "/api/jobs/…/cancel"}],
    )

    @classmethod
    def of(cls, job: Job) -> "JobAnswer":
        """The job with its links."""
        here = f"/api/jobs/{job.id}"
        action = "retry" if job.status in ENDED else "cancel"
        links = {"self": here, "events": f"{here}/events", "log": f"{here}/log", action: f"{here}/{action}"}
        return cls.model_validate({**job.model_dump(), "links": links})


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobAnswer]
    next: str | None = Field(description="Give it as `after` to read on; null on the last page.")


class ModelList(BaseModel):
    """The models on the volume, by name."""

    models: list[ModelSummary]


def answer(shape: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A shape as a JSON response; what changes by the second is never cached."""
    response = Response(shape.model_dump_json(by_alias=True), status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers.update(headers or {})
    return response


def answer_job(job: Job, status: int = 200) -> Response:
    """A job, with `Retry-After` while it has not ended and `Location` where it is new."""
    response = answer(JobAnswer.of(job), status)
    if job.status not in ENDED:
        response.headers["Retry-After"] = "1"
    if status == 202:
        response.headers["Location"] = f"/api/jobs/{job.id}"
    return response
