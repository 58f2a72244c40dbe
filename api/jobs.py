"""Jobs: submission, status, events, results, cancellation."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlencode
from uuid import UUID, uuid5

from flask import Response, send_file, url_for
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from api import sse
from api.auth import origin
from api.errors import problems
from api.estimate import with_estimate
from api.openapi import FILE, JOB_BODY, JOB_STREAM, PLAIN_TEXT, PLAN_OR_JOB, SECURITY
from api.planning import plan_of
from api.prefer import PreferHeader, preferred_response
from api.request_body import parse_job_request
from api.responses import JobPage, JobResponse, job_response, job_responses, json_response
from api.state import state
from services.errors import InvalidRequest, JobNotFound, NotReady, ResultsNotFound
from services.jobs.events import Event, follow
from services.jobs.listing import JobFilter
from services.jobs.status import ENDED, Job, JobStatus, UnknownRequest
from services.kinds import JobKind
from services.kinds.shared import JobRequest
from services.models.store import LINES, PREDICTIONS
from services.names import SERVED_NAME_PATTERN

UUID_PATTERN = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

KEY_NAMESPACE = UUID("5f0f3e0c-6d0b-5b0e-9a53-5a0d6b1a7c11")
"""Namespace of Idempotency-Keys: the id of a key's job is the UUID (version 5) of the key in it."""

RESULT_FILES = {"lines": (LINES, "application/x-ndjson"), "predictions": (PREDICTIONS, "application/json")}
"""Suffix after the job's id and media type of each file."""

api = APIBlueprint(
    "jobs",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="jobs")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 429, 500),
)


class JobPath(BaseModel):
    """Path parameter `job_id`."""

    job_id: str = Field(json_schema_extra={"format": "uuid"})


class Query(BaseModel):
    """Root of query parameters: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")


class SubmitQuery(Query):
    """Query parameters of a submission."""

    dry_run: bool = Field(default=False, description="Return the plan and queue nothing.")


class SubmitHeader(PreferHeader):
    """Headers that make a submission safe to repeat and wait for its end."""

    idempotency_key: str | None = Field(
        default=None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text: a repeated submission with the same key returns the same job.",
    )


class ListQuery(Query):
    """Filters and position of a list of jobs."""

    kind: JobKind | None = None
    status: JobStatus | None = None
    model: Annotated[str, Field(pattern=SERVED_NAME_PATTERN)] | None = Field(
        default=None, description="Jobs that read or make this model."
    )
    limit: int = Field(default=50, ge=1, le=1000)
    after: str | None = Field(default=None, description="`next` of the previous page.")


class ResultsQuery(Query):
    """Query parameter `format` of a job's results."""

    format: Literal["lines", "predictions"] = Field(
        default="lines",
        description="`lines`: one JSON object for each prompt, while the job runs; `predictions`: one JSON list, at the end.",
    )


class EventsHeader(BaseModel):
    """Header with the last event that a client received."""

    last_event_id: str | None = Field(default=None, alias="Last-Event-ID")


class EventsQuery(Query):
    """The same as a query parameter, for clients that cannot set headers."""

    last_event_id: str | None = None


@api.post(
    "/jobs",
    openapi_extensions=JOB_BODY,
    responses={
        200: PLAN_OR_JOB,
        202: JobResponse,
        **problems(400, 404, 409, 413, 415, 422, 429, 503, 507),
    },
)
def submit(query: SubmitQuery, header: SubmitHeader) -> Response:
    """Submit a job.

    The request is checked against the models on the volume before it is queued, and refused if it cannot succeed.
    With `dry_run=true` the response is the plan (200): inputs, outputs, memory, disk space, warnings.
    """
    request = parse_job_request()
    if query.dry_run:
        return json_response(with_estimate(plan_of(request), request))
    key = header.idempotency_key
    job, _ = _submit(request, None if key is None else str(uuid5(KEY_NAMESPACE, key)))
    return preferred_response(job, 202)


@api.put(
    "/jobs/<job_id>",
    openapi_extensions=JOB_BODY,
    responses={200: JobResponse, 202: JobResponse, **problems(400, 404, 409, 413, 415, 422, 429, 503, 507)},
)
def submit_as(path: JobPath, header: PreferHeader) -> Response:
    """Submit a job under a UUID that the client chooses; safe to repeat.

    The first submission returns 202, the same body again 200 with the current job, another body 422.
    """
    if not re.fullmatch(UUID_PATTERN, path.job_id):
        raise InvalidRequest(
            f"The job id {path.job_id!r} is not a valid UUID.", "Generate one, with uuidgen for example."
        )
    job, is_new = _submit(parse_job_request(), path.job_id.lower())
    return preferred_response(job, 202 if is_new else 200)


@api.get("/jobs", responses={200: JobPage, **problems(422, 503)})
def jobs(query: ListQuery) -> Response:
    """List jobs, newest first.

    `next` (also as a `Link` header) leads to the next page; `total` counts the selected jobs of all pages.
    """
    selected = JobFilter(query.kind, query.status, query.model)
    found, cursor = state().queue.list(selected, limit=query.limit, after=query.after)
    total = state().queue.count(selected)
    response = json_response(JobPage(jobs=job_responses(found), next=cursor, total=total))
    if cursor is not None:
        parameters = {**query.model_dump(exclude_none=True), "after": cursor}
        response.headers["Link"] = f'<{url_for("jobs.jobs")}?{urlencode(parameters)}>; rel="next"'
    return response


@api.get("/jobs/<job_id>", responses={200: JobResponse, 202: JobResponse, **problems(404, 503)})
def job(path: JobPath, header: PreferHeader) -> Response:
    """Get a job.

    Until it has ended, `Retry-After` says how many seconds to wait before the next request. With `Prefer: wait=N` the
    response comes when the job has ended, or after N seconds with 202.
    """
    return preferred_response(state().queue.get(job_id_of(path)), 200)


@api.get("/jobs/<job_id>/events", responses={200: JOB_STREAM, **problems(404, 422, 503)})
def job_events(path: JobPath, query: EventsQuery, header: EventsHeader) -> Response:
    """Follow a job by server-sent events.

    `status` events carry the whole job, `progress` events its progress, `token` events the new text of a generate job.
    The stream ends with the job. A client that lost the connection resumes with the header `Last-Event-ID` or the
    parameter `last_event_id`.
    """
    last_id = header.last_event_id or query.last_event_id
    return sse.event_stream(_frames(follow(state().queue.streams, job_id_of(path), last_id=last_id)))


@api.get("/events", responses={200: JOB_STREAM, **problems(422, 503)})
def all_events(query: EventsQuery, header: EventsHeader) -> Response:
    """Follow all jobs in one stream of server-sent events, beginning now."""
    last_id = header.last_event_id or query.last_event_id
    return sse.event_stream(_frames(follow(state().queue.streams, None, last_id=last_id)))


@api.get("/jobs/<job_id>/log", responses={200: PLAIN_TEXT, **problems(404, 503)})
def log(path: JobPath) -> Response:
    """Get the log of a job as lines of text."""
    response = Response(state().queue.log(job_id_of(path)), mimetype="text/plain")
    response.headers["Cache-Control"] = "no-store"
    return response


@api.get("/jobs/<job_id>/results", responses={200: FILE, 206: FILE, **problems(404, 416, 422, 503)})
def results(path: JobPath, query: ResultsQuery) -> Response:
    """Download the results of a generate job with a `prompts_file`, also while it runs.

    Ranges are supported, so that a reader can resume. The files remain when the job is deleted.
    """
    job_id = job_id_of(path)
    suffix, mimetype = RESULT_FILES[query.format]
    file = state().store.result(job_id + suffix)
    if not file.is_file():
        state().queue.get(job_id)  # raises JobNotFound for an unknown job
        raise ResultsNotFound(
            f"Job {job_id} has no file {file.name}.",
            "Generate jobs with a prompts_file write results; the predictions are written when the job has succeeded.",
        )
    response = send_file(file, mimetype, as_attachment=True, download_name=file.name, conditional=True)
    response.headers["Cache-Control"] = "no-store"
    return response


@api.post("/jobs/<job_id>/cancel", responses={202: JobResponse, **problems(404, 409, 503)})
def cancel(path: JobPath) -> Response:
    """Cancel a job: a queued one at once, a running one at its next step."""
    return job_response(state().queue.cancel(job_id_of(path)), 202)


@api.post("/jobs/<job_id>/retry", responses={202: JobResponse, **problems(404, 409, 422, 429, 503, 507)})
def retry(path: JobPath) -> Response:
    """Run the request of an ended job again, as a new job."""
    queue = state().queue
    ended = queue.get(job_id_of(path))
    if isinstance(ended.request, UnknownRequest):
        raise InvalidRequest(
            f"Job {ended.id} is of another version, which this one cannot run.", "Submit it again."
        )
    if ended.status not in ENDED:
        return job_response(queue.retry(ended.id), 202)  # refused
    plan = plan_of(ended.request)
    retried = queue.retry(ended.id, need=plan.disk_need, memory_bytes=plan.peak_memory_bytes, origin=origin())
    return job_response(retried, 202)


@api.delete("/jobs/<job_id>", responses={204: None, **problems(404, 409, 503)})
def delete(path: JobPath) -> Response:
    """Delete the record of an ended job. The models that it made remain."""
    state().queue.delete(job_id_of(path))
    return Response(status=204)


def job_id_of(path: JobPath) -> str:
    """Returns the id in a path; raises JobNotFound if it is not a UUID."""
    if not re.fullmatch(UUID_PATTERN, path.job_id):
        raise JobNotFound(f"There is no job {path.job_id!r}.", "The id of a job is a UUID.")
    return path.job_id.lower()


def _submit(request: JobRequest, job_id: str | None) -> tuple[Job, bool]:
    # a repeated submission returns its job without a new check: its target may exist by now
    is_new = job_id is None or not _is_known(job_id)
    if not is_new:
        return state().queue.submit(request, job_id, origin=origin())
    plan = plan_of(request)
    return state().queue.submit(
        request, job_id, need=plan.disk_need, memory_bytes=plan.peak_memory_bytes, origin=origin()
    )


def _is_known(job_id: str) -> bool:
    try:
        state().queue.get(job_id)
    except JobNotFound:
        return False
    return True


def _frames(events: Iterator[Event | None]) -> Iterator[str]:
    yield sse.comment("graftwerk")
    try:
        yield from (sse.KEEPALIVE if event is None else _frame(event) for event in events)
    except NotReady as error:
        # the status is sent already: the stream ends, and its client reconnects with the last id it received
        yield sse.comment(error.code)


def _frame(event: Event) -> str:
    return sse.frame(event.data, id=event.id, event=event.name)
