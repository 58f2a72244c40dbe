"""What Redis holds of a job beside RQ's own keys, and how both are read as one `Job`.

Status and result are RQ's and are never stored twice. Ours, in the hash `graftwerk:job:<id>`: `request`,
`created_at` (microseconds since 1970), `progress`, `error`, `cancel` (a flag) and `execution` (the id of
the run that may publish). The rest are indexes: all jobs by age, those not yet settled, those to forget.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, OutOfMemoryError, TimeoutError
from rq import Queue
from rq.job import Job as RQJob
from rq.utils import as_text

from services.errors import GraftwerkError, InternalError, JobAbandoned, JobNotFound, NotReady, QueueFull
from services.jobs.status import (
    ENDED,
    WAITING,
    Job,
    JobError,
    JobProgress,
    read_request,
    read_result,
    status_of,
)
from services.kinds.shared import JobRequest

T = TypeVar("T")

SERIALIZER = "json"
"""On the queue, in the worker and for every fetch: RQ's default is pickle."""

JOBS_KEY = "graftwerk:jobs"
"""Sorted set of all job ids by creation, in microseconds, no two alike."""

ACTIVE_KEY = "graftwerk:active"
"""Set of the job ids whose end has not been settled: published, cascaded, claims released."""

ENDED_KEY = "graftwerk:ended"
"""Sorted set of the ids of settled jobs by the time (seconds) at which they are forgotten."""


def rq_queue(redis: Redis, name: str) -> Queue:
    """Returns RQ's queue of this name."""
    return Queue(name, connection=redis, serializer=SERIALIZER)


def record_key(job_id: str) -> str:
    """Our hash of one job."""
    return f"graftwerk:job:{job_id}"


def log_key(job_id: str) -> str:
    """The list of lines that a job's runs wrote."""
    return f"graftwerk:log:{job_id}"


def events_key(job_id: str | None) -> str:
    """The stream of one job's events, or of everybody's."""
    return "graftwerk:events" if job_id is None else f"graftwerk:events:{job_id}"


def target_key(name: str) -> str:
    """Who is about to make the model of this name; names differ in more than letter case."""
    return f"graftwerk:target:{name.lower()}"


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Around (or on) what needs Redis: the doors know `NotReady`, not redis-py's errors."""
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise NotReady(f"Redis does not answer: {error}", "Check that it runs and REDIS_URL.") from error
    except OutOfMemoryError as error:
        raise QueueFull(
            f"Redis has no memory left: {error}", "Delete ended jobs, or give Redis more memory."
        ) from error


def transact(redis: Redis, attempt: Callable[[Pipeline], T], *keys: str) -> T:
    """What `attempt` gives, its writes made in one step; repeated while somebody changes these keys."""
    callable_ = cast(Callable[[Pipeline], None], attempt)  # redis-py's own type forgets what it returns
    return cast(T, redis.transaction(callable_, *keys, value_from_callable=True))


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it stands in the record; `final` ones are not tried again."""

    code: str
    message: str
    hint: str
    final: bool

    @classmethod
    def of(cls, error: GraftwerkError) -> "Failure":
        """The record of an error. A fault of our own is final too: it would only happen again."""
        final = not error.transient or isinstance(error, InternalError)
        return cls(error.code, error.message, error.hint, final)

    def dumps(self) -> str:
        """The JSON in the hash."""
        return json.dumps(
            {"code": self.code, "message": self.message, "hint": self.hint, "final": self.final}
        )


@dataclass(frozen=True, slots=True)
class Record:
    """Our hash of one job, parsed."""

    request: JobRequest
    created_at: datetime
    progress: JobProgress | None
    failure: Failure | None
    cancel: bool
    execution: str | None

    @classmethod
    def parse(cls, fields: dict[bytes, bytes]) -> "Record | None":
        """The record in the fields of the hash, or None where there is none."""
        if b"request" not in fields:
            return None
        error = fields.get(b"error")
        return cls(
            request=read_request(json.loads(fields[b"request"])),
            created_at=datetime.fromtimestamp(int(fields[b"created_at"]) / 1e6, tz=UTC),
            progress=JobProgress.model_validate_json(fields[b"progress"]) if b"progress" in fields else None,
            failure=Failure(**json.loads(error)) if error is not None else None,
            cancel=b"cancel" in fields,
            execution=fields[b"execution"].decode() if b"execution" in fields else None,
        )


def read_records(redis: Redis, job_ids: Sequence[str]) -> list[Record | None]:
    """The records of these jobs, in one round trip."""
    with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(record_key(job_id))
        return [Record.parse(fields) for fields in pipe.execute()]


def read_record(redis: Redis, job_id: str) -> Record:
    """One record. Raises JobNotFound."""
    record = read_records(redis, [job_id])[0]
    if record is None:
        raise _unknown(job_id)
    return record


def fetch(redis: Redis, job_ids: Iterable[str]) -> list[RQJob | None]:
    """RQ's side of these jobs, in one round trip."""
    return RQJob.fetch_many(list(job_ids), connection=redis, serializer=SERIALIZER)


def read_jobs(redis: Redis, job_ids: Sequence[str]) -> list[Job | None]:
    """These jobs as the API returns them; None for those that are unknown or have expired."""
    # RQ's side is read first: a failure of ours is recorded before RQ says "failed", so that this
    # order can never show a failed job without its error.
    pairs = zip(job_ids, fetch(redis, job_ids), read_records(redis, job_ids), strict=True)
    return [None if rq is None or record is None else _view(rq, record) for _, rq, record in pairs]


def read_job(redis: Redis, job_id: str) -> Job:
    """One job as the API returns it. Raises JobNotFound."""
    job = read_jobs(redis, [job_id])[0]
    if job is None:
        raise _unknown(job_id)
    return job


def active_ids(redis: Redis) -> list[str]:
    """The ids of the jobs that have not been settled, in no order."""
    return [as_text(member) for member in redis.smembers(ACTIVE_KEY)]


def forget(pipe: Pipeline, job_id: str) -> None:
    """Delete all that is ours of a job (RQ's keys expire by themselves)."""
    pipe.delete(record_key(job_id), log_key(job_id), events_key(job_id))
    pipe.zrem(JOBS_KEY, job_id)
    pipe.zrem(ENDED_KEY, job_id)
    pipe.srem(ACTIVE_KEY, job_id)


def _unknown(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"there is no job {job_id!r}", "It may have expired: ended jobs are kept for JOB_RETENTION_SECONDS."
    )


def _view(rq: RQJob, record: Record) -> Job:
    rq_status = rq.get_status(refresh=False).value
    status = status_of(rq_status, record.failure.code if record.failure else None)
    ended = status in ENDED
    failed = status in ("failed", "canceled")
    return Job(
        id=rq.id,
        kind=record.request.kind,
        status=status,
        created_at=record.created_at,
        started_at=None if rq_status in WAITING else rq.started_at,
        finished_at=rq.ended_at if ended else None,
        after=[str(id) for id in record.request.after],
        queue_position=_position(rq) if rq_status == "queued" and not ended else None,
        progress=record.progress.completed()
        if record.progress and status == "succeeded"
        else record.progress,
        request=record.request,
        result=read_result(record.request.kind, rq.return_value()) if status == "succeeded" else None,
        error=_error(record.failure) if failed else None,
        metadata=record.request.metadata,
    )


def _position(rq: RQJob) -> int | None:
    """Place in its queue, counted from 1; None between the queue and the worker's start."""
    index = rq.get_position()
    return None if index is None else index + 1


def _error(failure: Failure | None) -> JobError:
    if failure is None:
        failure = Failure.of(JobAbandoned("the worker process died while the job ran, and no retry is left"))
    return JobError(code=failure.code, message=failure.message, hint=failure.hint)
