"""`Prefer: wait=N` (RFC 7240): a response that waits for the end of a job."""

import time
from contextlib import suppress

from flask import Response, request
from pydantic import BaseModel, Field
from werkzeug.http import parse_dict_header

from api.disconnect import disconnect_check
from api.responses import job_response
from api.state import state
from services.errors import JobNotFound
from services.jobs.events import follow, newest_id
from services.jobs.status import ENDED, Job

MAX_WAIT_SECONDS = 60

CHECK_SECONDS = 1
"""Interval at which deadline and client are checked while no event arrives."""


class PreferHeader(BaseModel):
    """Header with which a client waits for the end of a job."""

    prefer: str | None = Field(
        default=None,
        alias="Prefer",
        description="`wait=N`: respond when the job has ended (200), or after N seconds (at most 60) with 202.",
    )


def preferred_response(job: Job, status: int) -> Response:
    """Returns a job with this status, or as the client prefers: 200 once it has ended, 202 when its time is over."""
    seconds = _wait_seconds(request.headers.get("Prefer", ""))
    if seconds is None:
        return job_response(job, status)
    job = _wait(job, seconds)
    response = job_response(job, 200 if job.status in ENDED else 202)
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


def _wait_seconds(header: str) -> int | None:
    """Returns the seconds to wait; None without a valid `wait`, which RFC 7240 says to ignore."""
    value = parse_dict_header(header.lower()).get("wait")
    if value is None or not value.isascii() or not value.isdigit():
        return None
    return min(int(value[:9]), MAX_WAIT_SECONDS)


def _wait(job: Job, seconds: int) -> Job:
    """Returns the job when it has ended, when the time is over, or when the client has gone."""
    if job.status in ENDED:
        return job
    queue, deadline = state().queue, time.monotonic() + seconds
    is_disconnected = disconnect_check(request.environ.get("gunicorn.socket"))
    position = newest_id(queue.redis, job.id)
    job = queue.get(job.id)  # after the position: an end is in the job or in a later event
    with suppress(JobNotFound):  # deleted meanwhile: the last state is returned
        if job.status in ENDED or seconds == 0:
            return job
        for event in follow(queue.streams, job.id, last_id=position, keepalive_seconds=CHECK_SECONDS):
            if event is not None and event.name == "status":
                job = queue.get(job.id)
            if job.status in ENDED or time.monotonic() >= deadline or is_disconnected():
                break
    return job
