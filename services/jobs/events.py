"""Events of jobs: one Redis stream per job and one for all jobs.

The id of an event is that of its stream entry, so that a reader who lost the connection resumes after the last event
it has read.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.errors import InvalidRequest, JobNotFound
from services.jobs.records import events_key, reaching_redis, read_job
from services.jobs.status import ENDED, Job, JobProgress
from services.kinds.generate import TokenPiece

EVENTS_KEPT = 4000
"""Approximate length to which each stream is trimmed."""

LARGE_RESULT_BYTES = 32 * 1024
"""Size of an event above which the stream for all jobs carries it without its result."""

FIRST = "0-0"
"""Id before that of every event."""

_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_ID_PARTS_END = 2**64
"""First number that Redis does not take as a part of an id."""


class Event(NamedTuple):
    """One event; `data` is JSON."""

    id: str
    name: str
    data: str


def publish_status(redis: Redis, job: Job) -> None:
    """Publishes the job with its present status."""
    _publish(redis, job.id, "status", job.model_dump(mode="json"))


def append_status(pipe: Pipeline, job: Job) -> None:
    """Adds the event of `publish_status` to a transaction."""
    _append(pipe, job.id, "status", job.model_dump(mode="json"))


def publish_progress(redis: Redis, job_id: str, progress: JobProgress) -> None:
    """Publishes the progress of a job."""
    _publish(redis, job_id, "progress", {"id": job_id, "progress": progress.model_dump(mode="json")})


def publish_tokens(redis: Redis, job_id: str, pieces: Sequence[TokenPiece]) -> None:
    """Appends `token` events to the job's own stream; the stream for all jobs carries no text."""
    with redis.pipeline(transaction=False) as pipe:
        for piece in pieces:
            data = json.dumps({"id": job_id, **piece.model_dump(mode="json", exclude_unset=True)})
            pipe.xadd(events_key(job_id), {"name": "token", "data": data}, maxlen=EVENTS_KEPT)
        pipe.execute()


def _publish(redis: Redis, job_id: str, name: str, data: dict[str, Any]) -> None:
    with redis.pipeline(transaction=False) as pipe:
        _append(pipe, job_id, name, data)
        pipe.execute()


def _append(pipe: Pipeline, job_id: str, name: str, data: dict[str, Any]) -> None:
    text = json.dumps(data)
    shared = json.dumps({**data, "result": None}) if len(text) > LARGE_RESULT_BYTES else text
    pipe.xadd(events_key(job_id), {"name": name, "data": text}, maxlen=EVENTS_KEPT)
    pipe.xadd(events_key(None), {"name": name, "data": shared}, maxlen=EVENTS_KEPT)


@reaching_redis()
def follow(
    redis: Redis, job_id: str | None, *, last_id: str | None, keepalive_seconds: int = 10
) -> Iterator[Event | None]:
    """Returns an iterator over the events of one job until its end, or over those of all jobs (`job_id` None) forever.

    It yields None after each `keepalive_seconds` without an event, and the end of a job even if its event was lost.

    Args:
        redis: the connection; its socket timeout must be longer than `keepalive_seconds`.
        job_id: the job, None for all jobs.
        last_id: id after which the events begin; None begins with the job's first event, for all jobs with the next.
        keepalive_seconds: longest time without a value.

    Raises:
        JobNotFound: the job does not exist.
        InvalidRequest: `last_id` is not the id of an event.
        NotReady: Redis does not answer.
    """
    if last_id is not None and not _is_id(last_id):
        raise InvalidRequest(
            f"Last-Event-ID {last_id!r} is not the id of an event.",
            'Ids look like "1700000000000-0".',
        )
    if job_id is None:
        return _follow_all(redis, last_id or newest_id(redis, None), keepalive_seconds)
    return _follow_job(redis, read_job(redis, job_id), last_id or FIRST, keepalive_seconds)


@reaching_redis()
def keeps_all_events(redis: Redis, job_id: str) -> bool:
    """Returns True if none of a job's events was trimmed, which leaves at least `EVENTS_KEPT`. Raises NotReady."""
    return int(redis.xlen(events_key(job_id))) < EVENTS_KEPT


def _is_id(text: str) -> bool:
    parts = _ID.fullmatch(text)
    return parts is not None and all(int(part) < _ID_PARTS_END for part in parts.groups())


def _follow_all(redis: Redis, position: str, keepalive_seconds: int) -> Iterator[Event | None]:
    while True:
        events = _read(redis, events_key(None), position, keepalive_seconds)
        if not events:
            yield None
        for event in events:
            yield event
            position = event.id


def _follow_job(redis: Redis, job: Job, position: str, keepalive_seconds: int) -> Iterator[Event | None]:
    while True:
        # An ended job's stream is not waited for: no further event comes.
        wait_seconds = None if job.status in ENDED else keepalive_seconds
        events = _read(redis, events_key(job.id), position, wait_seconds)
        for event in events:
            yield event
            position = event.id
            if event.name == "status" and json.loads(event.data)["status"] in ENDED:
                return
        if not events and job.status in ENDED:
            yield _status_event(position, job)
            return
        if not events:
            yield None
            try:
                job = read_job(redis, job.id)
            except JobNotFound:
                return


def _status_event(position: str, job: Job) -> Event:
    return Event(position, "status", job.model_dump_json())


@reaching_redis()
def newest_id(redis: Redis, job_id: str | None) -> str:
    """Returns the id of the newest event of one job, or of all jobs (`job_id` None)."""
    newest = redis.xrevrange(events_key(job_id), count=1)
    return as_text(newest[0][0]) if newest and newest[0][0] else FIRST


@reaching_redis()
def _read(redis: Redis, key: str, position: str, wait_seconds: int | None) -> list[Event]:
    block = None if wait_seconds is None else wait_seconds * 1000
    streams: Any = redis.xread({key: position}, count=500, block=block)
    entries = dict(streams).get(key.encode(), []) if streams else []
    return [Event(as_text(id), as_text(fields[b"name"]), as_text(fields[b"data"])) for id, fields in entries]
