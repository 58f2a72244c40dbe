"""Ended jobs in Redis in any number: jobs that version 0.1.0 ran, finalized by this version and copied."""

import json
import random
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from rq.job import Job as RQJob
from rq.results import Result
from rq.utils import now, utcformat

from services.jobs.finalization import finalize
from services.jobs.indexes import IndexFields, add
from services.jobs.queue import JobQueue
from services.jobs.records import ENDED_KEY, JOBS_KEY, Failure, log_key, record_key
from services.jobs.rq_fields import rq_key
from services.jobs.status import JobStatus
from services.kinds import parse_request
from services.settings import Settings
from tests.upgrade_recording import FOLDER, load_redis

BATCH = 500
RETENTION_SECONDS = 7 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedRecord:
    """Keys of one finalized job, without its events, which are kept for minutes only."""

    record: dict[bytes, bytes]
    rq: dict[bytes, bytes]
    log: list[bytes]
    fields: IndexFields
    target: str | None
    status: JobStatus

    def write(self, pipe: Pipeline, number: int, created_us: int) -> str:
        """Writes a copy under a new id, with a target of its own."""
        job_id, target = str(uuid4()), f"{self.target}-{number}"
        record = dict(self.record)
        fields = self.fields
        if self.target is not None:
            record[b"request"] = record[b"request"].replace(
                f'"{self.target}"'.encode(), f'"{target}"'.encode()
            )
            fields = IndexFields(fields.kind, fields.models - {self.target} | {target})
        record[b"created_at"] = str(created_us).encode()
        pipe.hset(record_key(job_id), items=[part for item in record.items() for part in item])
        pipe.hset(rq_key(job_id), items=[part for item in self.rq.items() for part in item])
        pipe.expire(rq_key(job_id), RETENTION_SECONDS)
        if self.log:
            pipe.rpush(log_key(job_id), *self.log)
        fields.write(pipe, job_id)
        add(pipe, job_id, fields, self.status, created_us)
        pipe.zadd(JOBS_KEY, {job_id: created_us})
        pipe.zadd(ENDED_KEY, {job_id: time.time() + RETENTION_SECONDS})
        return job_id


def key_bytes(redis: Redis, job_id: str, *, without: str = "") -> int:
    """Returns the memory of all keys whose names contain the id of a job, except those of one prefix."""
    keys = [
        key for key in redis.scan_iter(f"*{job_id}*") if not (without and key.startswith(without.encode()))
    ]
    return sum(redis.memory_usage(key, samples=0) or 0 for key in keys)


def recorded_bytes(redis: Redis) -> float:
    """Returns the memory of one ended job as version 0.1.0 kept it, the mean of the recorded jobs."""
    load_redis(redis)
    found = [key_bytes(redis, job_id) for name, job_id in _ended_ids().items()]
    return sum(found) / len(found)


def finalized(redis: Redis, settings: Settings) -> tuple[list[EndedRecord], float, float]:
    """Runs the recorded jobs again in name only.

    Returns their records, the memory of one after its end, and of one after its events have expired.
    """
    sources = [_recorded(redis, job_id) for job_id in _ended_ids().values()]
    redis.flushall()
    queue = JobQueue(redis, settings)
    records, sizes, small = [], [], []
    for request, result, error in sources:
        job_id = queue.submit(parse_request({**request, "after": []}))[0].id
        _end(redis, job_id, result, error)
        finalize(redis, job_id)
        sizes.append(key_bytes(redis, job_id))
        small.append(key_bytes(redis, job_id, without="graftwerk:events:"))
        records.append(_read(redis, queue, job_id))
    redis.flushall()
    return records, sum(sizes) / len(sizes), sum(small) / len(small)


def copy(redis: Redis, records: list[EndedRecord], count: int) -> list[str]:
    """Writes this number of copies, of records chosen by a fixed seed; returns their ids, oldest first."""
    chosen = random.Random(0).choices(records, k=count)
    start_us = time.time_ns() // 1000 - count * 1000
    ids = []
    for first in range(0, count, BATCH):
        with redis.pipeline(transaction=False) as pipe:
            for number, record in enumerate(chosen[first : first + BATCH], first):
                ids.append(record.write(pipe, number, start_us + number * 1000))
            pipe.execute()
    return ids


def _ended_ids() -> dict[str, str]:
    ids: dict[str, str] = json.loads((FOLDER / "jobs.json").read_text(encoding="utf-8"))["jobs"]
    return {
        name: id for name, id in ids.items() if name.startswith(("ended-", "failed", "canceled", "upstream-"))
    }


def _recorded(redis: Redis, job_id: str) -> tuple[dict[str, Any], Any, dict[str, Any] | None]:
    record = redis.hgetall(record_key(job_id))
    error = record.get(b"error")
    rq = RQJob.fetch(job_id, connection=redis, serializer="json")
    return json.loads(record[b"request"]), rq.return_value(), json.loads(error) if error else None


def _end(redis: Redis, job_id: str, result: Any, error: dict[str, Any] | None) -> None:
    """Commits the end of a job as a worker and RQ do."""
    rq = RQJob.fetch(job_id, connection=redis, serializer="json")
    redis.lrem(f"rq:queue:{rq.origin}", 0, job_id)
    status = "failed" if error else "finished"
    if error:
        redis.hset(record_key(job_id), "error", Failure(**error).dumps())
    else:
        Result.create(
            rq, Result.Type.SUCCESSFUL, ttl=RETENTION_SECONDS, return_value=result, worker_name="merge-1"
        )
    redis.hset(record_key(job_id), "execution", "cad0f56788ce457aac42303da4fec74f")
    redis.hset(
        rq_key(job_id),
        mapping={"status": status, "started_at": utcformat(now()), "ended_at": utcformat(now())},
    )


def _read(redis: Redis, queue: JobQueue, job_id: str) -> EndedRecord:
    job = queue.get(job_id)
    return EndedRecord(
        record=redis.hgetall(record_key(job_id)),
        rq=redis.hgetall(rq_key(job_id)),
        log=redis.lrange(log_key(job_id), 0, -1),
        fields=IndexFields.of(job.request),
        target=job.request.makes,
        status=job.status,
    )
