"""Indexes of finalized jobs by kind, status and model: sorted sets of ids by creation time.

The status of an ended job never changes, so finalization adds a job in the transaction that takes it out of
`graftwerk:active`, and no crash can leave a job in neither. Jobs that are not finalized are few, and are read each time
(`services/jobs/open_jobs.py`). The sizes of the sets are the counters of ended jobs.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.jobs.records import (
    ACTIVE_KEY,
    ENDED_KEY,
    JOBS_KEY,
    Record,
    deliveries_key,
    events_key,
    log_key,
    read_records,
    record_key,
    transact,
)
from services.jobs.rq_fields import rq_key
from services.jobs.status import ENDED, JobStatus, status_of
from services.kinds import KINDS
from services.kinds.shared import JobRequest

KINDS_KEY = "graftwerk:kinds"
"""Set of the kinds of finalized jobs: records of another version may be of a kind that this one does not know."""

LOCK_KEY = "graftwerk:indexing"
LOCK_SECONDS = 60

BATCH = 100
"""Number of jobs that one transaction indexes."""


@dataclass(frozen=True, slots=True)
class IndexFields:
    """Fields of a job by which lists filter; names of models are in lower case, as names ignore case."""

    kind: str
    models: frozenset[str]

    @classmethod
    def of(cls, request: JobRequest) -> "IndexFields":
        """Returns the fields of a request: its kind and the models that it reads or makes."""
        names = [*request.reads, request.makes or ""]
        return cls(request.kind, frozenset(name.lower() for name in names if name))

    @classmethod
    def parse(cls, kind: bytes | None, models: bytes | None) -> "IndexFields | None":
        """Returns the fields as a record has them, None if it does not."""
        if kind is None or models is None:
            return None
        return cls(as_text(kind), frozenset(json.loads(models)))

    def write(self, pipe: Pipeline, job_id: str) -> None:
        """Writes the fields to the record of a job."""
        pipe.hset(record_key(job_id), mapping={"kind": self.kind, "models": json.dumps(sorted(self.models))})


def ended_key(kind: str, status: JobStatus, model: str | None = None) -> str:
    """Returns the key of the set of the finalized jobs of a kind with a status, of all models or of one."""
    return f"graftwerk:ended:{kind}:{status}" + (f":{model}" if model is not None else "")


def add(pipe: Pipeline, job_id: str, fields: IndexFields, status: JobStatus, created_us: int) -> None:
    """Adds a finalized job to the indexes."""
    pipe.sadd(KINDS_KEY, fields.kind)
    for model in (None, *fields.models):
        pipe.zadd(ended_key(fields.kind, status, model), {job_id: created_us})


def known_kinds(redis: Redis) -> list[str]:
    """Returns the kinds that finalized jobs may have."""
    return sorted({*KINDS, *(as_text(kind) for kind in redis.smembers(KINDS_KEY))})


def count_ended(redis: Redis) -> Counter[tuple[str, JobStatus]]:
    """Returns the numbers of finalized jobs by kind and status."""
    ensure_complete(redis)
    return _count(redis)[0]


def ensure_complete(redis: Redis) -> None:
    """Indexes the finalized jobs that are not indexed: an earlier version ran them.

    Each job is in exactly one of two places, `graftwerk:active` and the sets of ended jobs; the numbers show if one is not.
    """
    if _count(redis)[1] == 0:
        return
    with redis.lock(LOCK_KEY, timeout=LOCK_SECONDS):
        if _count(redis)[1]:  # another process may have built them meanwhile
            _build(redis)


def read_fields(redis: Redis, job_ids: Sequence[str]) -> list[IndexFields | None]:
    """Returns the index fields of these jobs; None for those that have no record, or one of an earlier version."""
    with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(record_key(job_id), "kind", "models")
        return [IndexFields.parse(*values) for values in pipe.execute()]


def forget(redis: Redis, job_ids: Sequence[str]) -> None:
    """Deletes our keys of these jobs and their places in all indexes; RQ's keys expire by themselves."""
    for batch in _batches(job_ids):
        found = read_fields(redis, batch)
        with redis.pipeline() as pipe:
            for job_id, fields in zip(batch, found, strict=True):
                _forget(pipe, job_id, fields)
            pipe.execute()


def _forget(pipe: Pipeline, job_id: str, fields: IndexFields | None) -> None:
    pipe.delete(record_key(job_id), log_key(job_id), events_key(job_id), deliveries_key(job_id))
    pipe.zrem(JOBS_KEY, job_id)
    pipe.zrem(ENDED_KEY, job_id)
    pipe.srem(ACTIVE_KEY, job_id)
    # without a record the kind is not known, and the counts must be right all the same
    kinds = KINDS if fields is None else (fields.kind,)
    models = () if fields is None else fields.models
    for kind, status, model in product(kinds, ENDED, (None, *models)):
        pipe.zrem(ended_key(kind, status, model), job_id)


def _count(redis: Redis) -> tuple[Counter[tuple[str, JobStatus]], int]:
    """Returns the numbers of indexed jobs, and that of the jobs that are in no index."""
    keys = list(product(known_kinds(redis), sorted(ENDED)))
    with redis.pipeline() as pipe:
        pipe.zcard(JOBS_KEY)
        pipe.scard(ACTIVE_KEY)
        for kind, status in keys:
            pipe.zcard(ended_key(kind, status))
        jobs, active, *ended = pipe.execute()
    return Counter(dict(zip(keys, ended, strict=True))), jobs - active - sum(ended)


def _build(redis: Redis) -> None:
    entries: Any = redis.zrange(JOBS_KEY, 0, -1, withscores=True)
    scores = {as_text(job_id): int(score) for job_id, score in entries}
    for batch in _batches(list(scores)):
        keys = [key for job_id in batch for key in (record_key(job_id), rq_key(job_id))]
        attempt = partial(_index, redis, {job_id: scores[job_id] for job_id in batch})
        forget(redis, transact(redis, attempt, ACTIVE_KEY, *keys))


def _index(redis: Redis, scores: Mapping[str, int], pipe: Pipeline) -> list[str]:
    """Indexes those of these jobs that are finalized; returns those whose records have expired."""
    ids = list(scores)
    active = redis.smismember(ACTIVE_KEY, ids)
    statuses, records = _read_statuses(redis, ids), read_records(redis, ids)
    pipe.multi()
    gone = []
    for job_id, is_active, rq_status, record in zip(ids, active, statuses, records, strict=True):
        if is_active:
            continue
        if record is None or rq_status is None:
            gone.append(job_id)
        else:
            _index_ended(
                pipe, job_id, record, status_of(as_text(rq_status), record.error_code), scores[job_id]
            )
    return gone


def _index_ended(pipe: Pipeline, job_id: str, record: Record, status: JobStatus, created_us: int) -> None:
    fields = IndexFields.of(record.request)
    fields.write(pipe, job_id)
    pipe.persist(record_key(job_id))
    if status in ENDED:
        add(pipe, job_id, fields, status, created_us)
    else:
        pipe.sadd(ACTIVE_KEY, job_id)


def _read_statuses(redis: Redis, job_ids: Sequence[str]) -> list[bytes | None]:
    with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hget(rq_key(job_id), "status")
        found: list[bytes | None] = pipe.execute()
    return found


def _batches(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (job_ids[start : start + BATCH] for start in range(0, len(job_ids), BATCH))
