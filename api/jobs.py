"""Jobs: ask for one, look at it, follow it, end it."""

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlencode
from uuid import UUID, uuid5

from flask import Response, send_file, url_for
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from api import sse
from api.errors import problems
from api.openapi import FILE, JOB_BODY, JOB_STREAM, PLAIN_TEXT, SECURITY
from api.request_body import parse_job_request
from api.responses import JobAnswer, JobPage, answer, answer_job
from api.state import state
from services.errors import InvalidRequest, JobNotFound, NotReady, ResultsNotFound
from services.jobs.disk_reservations import DiskNeed, DiskUse
from services.jobs.events import Event, follow
from services.jobs.status import ENDED, Job, JobStatus
from services.kinds import JobKind, parse_request
from services.kinds.shared import JobRequest
from services.models.store import LINES, PREDICTIONS
from services.preflight import Plan, preflight

UUID_PATTERN = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

KEY_NAMESPACE = UUID("5f0f3e0c-6d0b-5b0e-9a53-5a0d6b1a7c11")
"""An Idempotency-Key names a job: its id is the UUID (version 5) of the key in this namespace."""

RESULT_FILES = {"lines": (LINES, "application/x-ndjson"), "predictions": (PREDICTIONS, "application/json")}
"""What follows a job's id in the name of each file, and what is in it."""

api = APIBlueprint(
    "jobs",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="jobs")],
    abp_security=SECURITY,
    abp_responses=problems(401, 403, 500),
)


class JobPath(BaseModel):
    """Which job."""

    job_id: str = Field(json_schema_extra={"format": "uuid"})


class Strict(BaseModel):
    """Query parameters: a misspelt one is an error, not ignored."""

    model_config = ConfigDict(extra="forbid")


class SubmitQuery(Strict):
    """How to take a submission."""

    dry_run: bool = Field(default=False, description="Only tell the plan: nothing is queued.")


class SubmitHeader(BaseModel):
    """What makes a submission safe to repeat."""

    idempotency_key: str | None = Field(
        default=None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of yours: the same key gives the same job, however often it is sent.",
    )


class ListQuery(Strict):
    """Which jobs."""

    kind: JobKind | None = None
    status: JobStatus | None = None
    limit: int = Field(default=50, ge=1, le=1000)
    after: str | None = Field(default=None, description="`next` of the page before.")


class ResultsQuery(Strict):
    """Which of a job's files."""

    format: Literal["lines", "predictions"] = Field(
        default="lines",
        description="`lines`: one JSON object a prompt, as they come; `predictions`: one JSON list, at the end.",
    )


class EventsHeader(BaseModel):
    """Where a client left off."""

    last_event_id: str | None = Field(default=None, alias="Last-Event-ID")


class EventsQuery(Strict):
    """Where a client left off, for clients that cannot set headers."""

    last_event_id: str | None = None


@api.post(
    "/jobs",
    openapi_extensions=JOB_BODY,
    responses={200: Plan, 202: JobAnswer, **problems(400, 404, 409, 413, 415, 422, 429, 503, 507)},
)
def submit(query: SubmitQuery, header: SubmitHeader) -> Response:
    """Submit a job.

    The request is checked against the models on the volume before it is queued: what cannot work is refused at once.
    With `dry_run=true` the answer is the plan (200): what would be read and written, memory, disk, warnings.
    """
    request = parse_job_request()
    if query.dry_run:
        return answer(_plan(request))
    key = header.idempotency_key
    job, _ = _submit(request, None if key is None else str(uuid5(KEY_NAMESPACE, key)))
    return answer_job(job, 202)


@api.put(
    "/jobs/<job_id>",
    openapi_extensions=JOB_BODY,
    responses={200: JobAnswer, 202: JobAnswer, **problems(400, 404, 409, 413, 415, 422, 429, 503, 507)},
)
def submit_as(path: JobPath) -> Response:
    """Submit a job under a UUID of your own, safe to repeat.

    The first time answers 202; the same body again 200 with the job as it stands; another body 422.
    """
    if not re.fullmatch(UUID_PATTERN, path.job_id):
        raise InvalidRequest(f"the job id {path.job_id!r} is no UUID", "Make one, with uuidgen for example.")
    job, is_new = _submit(parse_job_request(), path.job_id.lower())
    return answer_job(job, 202 if is_new else 200)


@api.get("/jobs", responses={200: JobPage, **problems(422, 503)})
def jobs(query: ListQuery) -> Response:
    """List jobs, newest first.

    A page's `next` (also as a `Link` header) leads to the page after it.
    """
    found, cursor = state().queue.list(
        kind=query.kind, status=query.status, limit=query.limit, after=query.after
    )
    response = answer(JobPage(jobs=[JobAnswer.of(job) for job in found], next=cursor))
    if cursor is not None:
        parameters = {**query.model_dump(exclude_none=True), "after": cursor}
        response.headers["Link"] = f'<{url_for("jobs.jobs")}?{urlencode(parameters)}>; rel="next"'
    return response


@api.get("/jobs/<job_id>", responses={200: JobAnswer, **problems(404, 503)})
def job(path: JobPath) -> Response:
    """Look at a job.

    Until it has ended, the answer carries `Retry-After`: how many seconds to wait before the next look.
    """
    return answer_job(state().queue.get(_known_form(path)))


@api.get("/jobs/<job_id>/events", responses={200: JOB_STREAM, **problems(404, 422, 503)})
def job_events(path: JobPath, query: EventsQuery, header: EventsHeader) -> Response:
    """Follow a job by server-sent events.

    `status` events carry the whole job, `progress` events its progress, `token` events the text of a generate job
    as it grows. The stream ends with the job; a client that lost it goes on with the header `Last-Event-ID`, or the parameter `last_event_id`.
    """
    last_id = header.last_event_id or query.last_event_id
    return sse.event_stream(_frames(follow(state().queue.redis, _known_form(path), last_id=last_id)))


@api.get("/events", responses={200: JOB_STREAM, **problems(422, 503)})
def all_events(query: EventsQuery, header: EventsHeader) -> Response:
    """Follow all jobs in one stream of server-sent events, from now on."""
    last_id = header.last_event_id or query.last_event_id
    return sse.event_stream(_frames(follow(state().queue.redis, None, last_id=last_id)))


@api.get("/jobs/<job_id>/log", responses={200: PLAIN_TEXT, **problems(404, 503)})
def log(path: JobPath) -> Response:
    """Read what a job has written: a line of text each."""
    response = Response(state().queue.log(_known_form(path)), mimetype="text/plain")
    response.headers["Cache-Control"] = "no-store"
    return response


@api.get("/jobs/<job_id>/results", responses={200: FILE, 206: FILE, **problems(404, 416, 422, 503)})
def results(path: JobPath, query: ResultsQuery) -> Response:
    """Download what a generate job with a `prompts_file` writes, also while it runs.

    Ranges are answered, so that a reader can go on where it was. The files outlive the job's record.
    """
    job_id = _known_form(path)
    suffix, mimetype = RESULT_FILES[query.format]
    file = state().store.result(job_id + suffix)
    if not file.is_file():
        state().queue.get(job_id)  # an unknown job is the better answer
        raise ResultsNotFound(
            f"job {job_id} has left no file {file.name}",
            "Only generate jobs with a prompts_file do; the predictions are there when it has succeeded.",
        )
    response = send_file(file, mimetype, as_attachment=True, download_name=file.name, conditional=True)
    response.headers["Cache-Control"] = "no-store"
    return response


@api.post("/jobs/<job_id>/cancel", responses={202: JobAnswer, **problems(404, 409, 503)})
def cancel(path: JobPath) -> Response:
    """Cancel a job that waits (at once) or runs (at its next step)."""
    return answer_job(state().queue.cancel(_known_form(path)), 202)


@api.post("/jobs/<job_id>/retry", responses={202: JobAnswer, **problems(404, 409, 422, 429, 503, 507)})
def retry(path: JobPath) -> Response:
    """Run the request of an ended job again, as a new job."""
    queue = state().queue
    ended = queue.get(_known_form(path))
    room = _room(_plan(parse_request(ended.request))) if ended.status in ENDED else None
    return answer_job(queue.retry(ended.id, room=room), 202)


@api.delete("/jobs/<job_id>", responses={204: None, **problems(404, 409, 503)})
def delete(path: JobPath) -> Response:
    """Forget an ended job. The models that it made stay."""
    state().queue.delete(_known_form(path))
    return Response(status=204)


def _known_form(path: JobPath) -> str:
    if not re.fullmatch(UUID_PATTERN, path.job_id):
        raise JobNotFound(f"there is no job {path.job_id!r}", "A job's id is a UUID.")
    return path.job_id.lower()


def _plan(request: JobRequest) -> Plan:
    promised = state().queue.promised([str(job_id) for job_id in request.after])
    claims = DiskUse(reserved_bytes=state().queue.reserved_bytes(state().store.staged_bytes))
    return preflight(request, state().store, promised, served=state().served(request), claims=claims)


def _room(plan: Plan) -> DiskNeed:
    return plan.room(state().store.staged_bytes)


def _submit(request: JobRequest, job_id: str | None) -> tuple[Job, bool]:
    # a repeated submission is answered by the job it made: by now its target may exist, which is no conflict
    is_new = job_id is None or not _is_known(job_id)
    room = _room(_plan(request)) if is_new else None
    return state().queue.submit(request, job_id, room=room)


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
