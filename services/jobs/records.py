"""Our record of a job in Redis, and its combination with RQ's into one `Job`.

The status is RQ's and is never stored twice, and neither is the result: RQ's until the job is finalized, then ours, compressed.
Our fields, in the hash `graftwerk:job:<id>`: `request`, its `kind` and `models` (for lists), `created_at` (microseconds since
1970), `progress`, `error`, `cancel` (a flag), `execution` (the id of the execution that may publish) and its `worker`, `alone` (a flag:
its worker runs no other job next to it), `memory` (peak of its plan), `charged` and `refunds` (tries, see `resumption.py`),
`waiting_for` in the queue, `waits_for` of the execution, `result`, and of the submission `owner`, `request_id` and `note` (a text of the API about the job). The other keys are indexes: all jobs by age, jobs that are not finalized, expiring records;
`services/jobs/indexes.py` has those of ended jobs.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, OutOfMemoryError, TimeoutError
from rq import Queue
from rq.job import Job as RQJob
from rq.utils import as_text

from services.errors import GraftwerkError, InternalError, JobNotFound, NotReady, QueueFull, WrongAdapterOrder
from services.jobs.rq_fields import (
    FIELDS,
    RQState,
    loads,
    read_positions,
    result_json,
    results_key,
    rq_key,
)
from services.jobs.status import (
    ENDED,
    WAITING,
    Job,
    JobError,
    JobProgress,
    JobStatus,
    WaitingFor,
    read_request,
    read_result,
    read_waiting_for,
    status_of,
    waiting_for,
    worker_died,
)
from services.kinds.shared import JobRequest

T = TypeVar("T")

SERIALIZER = "json"
"""Serializer of queue, workers and every fetch; RQ's default is pickle."""

JOBS_KEY = "graftwerk:jobs"
"""Sorted set of all job ids by creation time in microseconds, no two equal."""

ACTIVE_KEY = "graftwerk:active"
"""Set of the ids of jobs that are not finalized."""

ENDED_KEY = "graftwerk:ended"
"""Sorted set of the ids of finalized jobs by the time (seconds) at which their records expire."""


def rq_queue(redis: Redis, name: str) -> Queue:
    """Returns RQ's queue of this name."""
    return Queue(name, connection=redis, serializer=SERIALIZER)


def record_key(job_id: str) -> str:
    """Returns the key of our hash of a job."""
    return f"graftwerk:job:{job_id}"


def log_key(job_id: str) -> str:
    """Returns the key of the list of lines that a job's executions wrote."""
    return f"graftwerk:log:{job_id}"


def deliveries_key(job_id: str) -> str:
    """Returns the key of the hash of the deliveries of a job's webhook, by their ids."""
    return f"graftwerk:deliveries:{job_id}"


def events_key(job_id: str | None) -> str:
    """Returns the key of the stream of one job's events, or of all events."""
    return "graftwerk:events" if job_id is None else f"graftwerk:events:{job_id}"


def target_key(name: str) -> str:
    """Returns the key of the id of the job that makes the model of this name, ignoring case."""
    return f"graftwerk:target:{name.lower()}"


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Translates errors of redis-py into `NotReady` and `QueueFull`; also a decorator."""
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise NotReady(
            f"Redis does not answer: {str(error).removesuffix('.')}.",
            "Check that it runs, and check REDIS_URL.",
        ) from error
    except OutOfMemoryError as error:
        raise QueueFull(
            f"Redis has no memory left: {str(error).removesuffix('.')}.",
            "Delete ended jobs, or give Redis more memory.",
        ) from error


def transact(redis: Redis, attempt: Callable[[Pipeline], T], *keys: str) -> T:
    """Returns the value of `attempt`, whose writes are one transaction; it is repeated if these keys change meanwhile."""
    callable_ = cast(Callable[[Pipeline], None], attempt)  # redis-py's type loses the return type
    return cast(T, redis.transaction(callable_, *keys, value_from_callable=True))


@dataclass(frozen=True, slots=True)
class Failure:
    """Error in a record; a `final` one is not retried."""

    code: str
    message: str
    hint: str
    final: bool
    order: list[str] | None = None

    @classmethod
    def of(cls, error: GraftwerkError) -> "Failure":
        """Returns the record of an error. An internal error is final too: a retry would only repeat it."""
        final = not error.transient or isinstance(error, InternalError)
        order = error.order if isinstance(error, WrongAdapterOrder) else None
        return cls(error.code, error.message, error.hint, final, order)

    def dumps(self) -> str:
        """Returns the JSON for the hash."""
        fields = {"code": self.code, "message": self.message, "hint": self.hint, "final": self.final}
        return json.dumps(fields if self.order is None else {**fields, "order": self.order})


@dataclass(frozen=True, slots=True)
class Record:
    """Our hash of one job, parsed."""

    request: JobRequest
    created_at: datetime
    progress: JobProgress | None
    failure: Failure | None
    cancel: bool
    execution: str | None
    result: bytes | None = None
    """JSON of the result of a finalized job, compressed."""
    alone: bool = False
    waiting_for: Mapping[JobStatus, WaitingFor] = field(default_factory=dict)

    @classmethod
    def parse(cls, fields: dict[bytes, bytes]) -> "Record | None":
        """Returns the record in the fields of the hash, or None without one."""
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
            result=fields.get(b"result"),
            alone=b"alone" in fields,
            waiting_for=read_waiting_for(fields),
        )

    @property
    def error_code(self) -> str | None:
        """Code of the error, None without one."""
        return self.failure.code if self.failure else None


def read_records(redis: Redis, job_ids: Sequence[str]) -> list[Record | None]:
    """Returns the records of these jobs, in one round trip."""
    with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(record_key(job_id))
        return [Record.parse(fields) for fields in pipe.execute()]


def read_record(redis: Redis, job_id: str) -> Record:
    """Returns one record.

    Raises:
        JobNotFound: the job does not exist.
    """
    record = read_records(redis, [job_id])[0]
    if record is None:
        raise _unknown(job_id)
    return record


def fetch(redis: Redis, job_ids: Iterable[str]) -> list[RQJob | None]:
    """Returns RQ's jobs of these ids, in one round trip."""
    return RQJob.fetch_many(list(job_ids), connection=redis, serializer=SERIALIZER)


def read_jobs(redis: Redis, job_ids: Sequence[str]) -> list[Job | None]:
    """Returns these jobs; None for those that are unknown or have expired."""
    # RQ's side is read first: our error is recorded before RQ sets "failed", so that this order never shows a failed
    # job without its error.
    with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(rq_key(job_id), FIELDS)
            pipe.hgetall(record_key(job_id))
        replies = pipe.execute()
    states = [RQState.parse(values) for values in replies[::2]]
    records = [Record.parse(fields) for fields in replies[1::2]]
    found = {
        job_id: (state, record)
        for job_id, state, record in zip(job_ids, states, records, strict=True)
        if state is not None and record is not None
    }
    results, positions = _read_results(redis, found), _read_positions(redis, found)
    jobs = {
        job_id: _view(job_id, state, record, results.get(job_id), positions.get(job_id))
        for job_id, (state, record) in found.items()
    }
    return [jobs.get(job_id) for job_id in job_ids]


def read_job(redis: Redis, job_id: str) -> Job:
    """Returns one job.

    Raises:
        JobNotFound: the job does not exist.
    """
    job = read_jobs(redis, [job_id])[0]
    if job is None:
        raise _unknown(job_id)
    return job


def active_ids(redis: Redis) -> list[str]:
    """Returns the ids of the jobs that are not finalized, in no order."""
    return [as_text(member) for member in redis.smembers(ACTIVE_KEY)]


def _unknown(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"There is no job {job_id!r}.",
        "It may have expired: ended jobs are kept for JOB_RETENTION_SECONDS.",
    )


def _read_results(redis: Redis, found: dict[str, tuple[RQState, Record]]) -> dict[str, bytes]:
    """Returns the results of succeeded jobs, as JSON."""
    succeeded = [job_id for job_id, (state, record) in found.items() if _status(state, record) == "succeeded"]
    kept = {job_id: found[job_id][1].result for job_id in succeeded}
    # Finalization moves a result from RQ's stream into our record, so the stream is read first.
    moving = [job_id for job_id, result in kept.items() if result is None]
    with redis.pipeline(transaction=False) as pipe:
        for job_id in moving:
            pipe.xrevrange(results_key(job_id), count=1)
            pipe.hget(record_key(job_id), "result")
        replies = pipe.execute()
    texts = {job_id: zlib.decompress(result) for job_id, result in kept.items() if result is not None}
    for job_id, entries, result in zip(moving, replies[::2], replies[1::2], strict=True):
        text = result_json(entries) if result is None else zlib.decompress(result)
        if text is not None:
            texts[job_id] = text
    return texts


def _read_positions(redis: Redis, found: dict[str, tuple[RQState, Record]]) -> dict[str, int]:
    queued = {
        job_id: state.queue
        for job_id, (state, record) in found.items()
        if state.status == "queued" and _status(state, record) == "queued"
    }
    return read_positions(redis, queued) if queued else {}


def _status(state: RQState, record: Record) -> JobStatus:
    return status_of(state.status, record.error_code)


def _view(job_id: str, state: RQState, record: Record, result: bytes | None, position: int | None) -> Job:
    status = _status(state, record)
    failed = status in ("failed", "canceled")
    return Job(
        id=job_id,
        kind=record.request.kind,
        status=status,
        created_at=record.created_at,
        started_at=None if state.status in WAITING else state.started_at,
        finished_at=state.ended_at if status in ENDED else None,
        after=[str(id) for id in record.request.after],
        queue_position=position,
        waiting_for=waiting_for(status, state.status, record.waiting_for),
        progress=record.progress.completed()
        if record.progress and status == "succeeded"
        else record.progress,
        request=record.request,
        result=read_result(record.request.kind, loads(result)),
        error=_error(record.failure) if failed else None,
        metadata=record.request.metadata,
    )


def _error(failure: Failure | None) -> JobError:
    if failure is None:
        failure = Failure.of(worker_died())
    return JobError(code=failure.code, message=failure.message, hint=failure.hint, order=failure.order)
