"""Compact form of a finalized job in Redis: what RQ needed to run it is dropped, and its result is compressed.

RQ's hash repeats the request, and its stream holds the result in base64: together more than half of an ended job's memory.
"""

import zlib
from dataclasses import dataclass

from redis import Redis
from redis.client import Pipeline
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import as_text

from services.jobs.records import record_key
from services.jobs.rq_fields import KEPT_FIELDS, result_json, results_key, rq_key


@dataclass(frozen=True, slots=True)
class EndedJob:
    """Parts of RQ's keys of an ended job that are kept: fields of its hash, and the JSON of its result."""

    job_id: str
    fields: dict[str, bytes | str]
    result: bytes | None

    @classmethod
    def read(cls, redis: Redis, job_id: str) -> "EndedJob":
        """Reads RQ's keys of the job."""
        values = redis.hmget(rq_key(job_id), KEPT_FIELDS)
        fields = {name: value for name, value in zip(KEPT_FIELDS, values, strict=True) if value}
        return cls(job_id, fields, result_json(redis.xrevrange(results_key(job_id), count=1)))

    def write(self, pipe: Pipeline, retention_seconds: int) -> None:
        """Replaces RQ's keys of the job; its hash expires after the retention.

        A small new hash takes a third of the memory of a large one that lost its fields.
        """
        pipe.delete(rq_key(self.job_id), results_key(self.job_id))
        if self.fields:
            # RQ reads no job without `data`: one that depends on this job would not be accepted
            items = [part for item in {**self.fields, "data": b""}.items() for part in item]
            pipe.hset(rq_key(self.job_id), items=items)
            pipe.expire(rq_key(self.job_id), retention_seconds)
        if self.result is not None:
            pipe.hset(record_key(self.job_id), "result", zlib.compress(self.result))
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            name = as_text(self.fields.get("origin", b""))
            pipe.zrem(registry(name, connection=pipe).key, self.job_id)
