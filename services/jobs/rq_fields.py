"""RQ's side of jobs: the fields of its hash that we read, results, and places in queues.

RQ's own classes read one job after another and every field; a list of a thousand jobs needs two round trips.
"""

import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.results import Result
from rq.utils import as_text

FIELDS = ("status", "started_at", "ended_at", "origin")

KEPT_FIELDS = ("status", "created_at", "started_at", "ended_at", "last_heartbeat", "origin", "result_ttl")
"""Fields of RQ's hash that an ended job keeps: those that we read, and those by which RQ finds and deletes it.

`last_heartbeat` is one of the latter: a worker whose heartbeat adds the field takes the job for deleted, and deletes the hash.
"""


@dataclass(frozen=True, slots=True)
class RQState:
    """The fields of RQ's hash of one job that we read; `queue` is the name of its queue."""

    status: str
    started_at: datetime | None
    ended_at: datetime | None
    queue: str

    @classmethod
    def parse(cls, values: Sequence[bytes | None]) -> "RQState | None":
        """Returns the state in the values of `FIELDS`, None if there is no hash."""
        status, started_at, ended_at, queue = values
        if status is None and queue is None:
            return None
        return cls(
            as_text(status or RQStatus.CREATED.value),
            _date(started_at),
            _date(ended_at),
            as_text(queue or b""),
        )


def rq_key(job_id: str) -> str:
    """Returns the key of RQ's hash of a job."""
    return as_text(RQJob.key_for(job_id))


def results_key(job_id: str) -> str:
    """Returns the key of RQ's stream of results of a job."""
    return str(Result.get_key(job_id))  # type: ignore[no-untyped-call]


def read_positions(redis: Redis, queues: dict[str, str]) -> dict[str, int]:
    """Returns the places from 1 of jobs in their queues; `queues` maps ids to names of queues.

    A job between its queue and the worker's start has none.
    """
    with redis.pipeline(transaction=False) as pipe:
        for job_id, name in queues.items():
            pipe.lpos(f"{Queue.redis_queue_namespace_prefix}{name}", job_id)
        found = zip(queues, pipe.execute(), strict=True)
    return {job_id: int(index) + 1 for job_id, index in found if index is not None}


def result_json(entries: Any) -> bytes | None:
    """Returns the JSON of the newest entry in RQ's stream of results, None without one."""
    value = entries[0][1].get(b"return_value") if entries else None
    return None if value is None else b64decode(value)


def loads(text: bytes | None) -> Any:
    """Returns the value of a JSON text, None without one."""
    return None if text is None else json.loads(text)


def _date(value: bytes | None) -> datetime | None:
    return datetime.fromisoformat(value.decode()) if value else None
