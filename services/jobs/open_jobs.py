"""Jobs that are not finalized, with their real status, in one round trip."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from rq.utils import as_text

from services.jobs.indexes import IndexFields
from services.jobs.records import ACTIVE_KEY, read_records, record_key
from services.jobs.rq_fields import rq_key
from services.jobs.status import JobStatus, status_of

PATTERNS = (
    "#",
    *(f"{rq_key('*')}->{field}" for field in ("status",)),
    *(f"{record_key('*')}->{field}" for field in ("error", "kind", "models", "created_at", "owner")),
)
"""Values that the command SORT reads of each job: its id, fields of RQ's hash, fields of our record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenJob:
    """One job that is not finalized; it may have ended a moment ago."""

    id: str
    status: JobStatus
    fields: IndexFields
    created_us: int
    owner: str
    """Digest of the API key that submitted it; empty without one."""


def read_open(redis: Redis) -> list[OpenJob]:
    """Returns the jobs that are not finalized, in no order."""
    rows = _read(redis)
    unknown = [as_text(id) for id, _, _, kind, _, created, _ in rows if id and created and not kind]
    if unknown:  # jobs of an earlier version
        _add_fields(redis, unknown)
        rows = _read(redis)
    return [job for job in map(_parse, rows) if job is not None]


Row = Sequence[bytes | None]


def _read(redis: Redis) -> list[Row]:
    rows: Any = redis.sort(ACTIVE_KEY, by="nosort", get=list(PATTERNS), groups=True)
    found: list[Row] = rows
    return found


def _parse(row: Row) -> OpenJob | None:
    id, rq_status, error, kind, models, created, owner = row
    fields = IndexFields.parse(kind, models)
    if id is None or rq_status is None or fields is None or created is None:
        return None  # deleted, or expired
    code = None if error is None else json.loads(error)["code"]
    status = status_of(as_text(rq_status), code)
    return OpenJob(
        id=as_text(id), status=status, fields=fields, created_us=int(created), owner=as_text(owner or b"")
    )


def _add_fields(redis: Redis, job_ids: Sequence[str]) -> None:
    records = read_records(redis, job_ids)
    with redis.pipeline() as pipe:
        for job_id, record in zip(job_ids, records, strict=True):
            if record is not None:
                IndexFields.of(record.request).write(pipe, job_id)
        pipe.execute()
