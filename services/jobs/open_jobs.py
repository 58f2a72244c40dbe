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
    f"{rq_key('*')}->status",
    *(f"{record_key('*')}->{field}" for field in ("error", "kind", "models", "created_at", "owner")),
)
"""Values that the command SORT reads of each job: its id, fields of RQ's hash, fields of our record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenJob:
    """One job that is not finalized; it may have ended a moment ago."""

    id: str
    status: JobStatus
    kind: str
    models: bytes
    """Names of its models in lower case, as a JSON list."""

    created_us: int
    owner: str
    """Digest of the API key that submitted it; empty without one."""

    def reads_or_makes(self, model: str) -> bool:
        """Returns True if the job reads or makes this model, ignoring case."""
        return json.dumps(model.lower()).encode() in self.models


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
    if id is None or rq_status is None or kind is None or models is None or created is None:
        return None  # deleted, or expired
    code = None if error is None else json.loads(error)["code"]
    return OpenJob(
        id=id.decode(),
        status=status_of(rq_status.decode(), code),
        kind=kind.decode(),
        models=models,
        created_us=int(created),
        owner=(owner or b"").decode(),
    )


def _add_fields(redis: Redis, job_ids: Sequence[str]) -> None:
    records = read_records(redis, job_ids)
    with redis.pipeline() as pipe:
        for job_id, record in zip(job_ids, records, strict=True):
            if record is not None:
                IndexFields.of(record.request).write(pipe, job_id)
        pipe.execute()
