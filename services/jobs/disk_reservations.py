"""Reservations of disk space: no two jobs count on the same free bytes of the volume.

The hash `graftwerk:room` has the bytes that each unfinished job needs. Bytes that a job has written already are not free any
more, and not reserved either.
"""

from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.errors import DiskFull

RESERVATIONS_KEY = "graftwerk:room"
"""Name of the hash, as version 0.1.0 wrote it."""


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Bytes that a job will write and bytes that are free; `taken` returns the bytes that a job (by its id) has written."""

    needed_bytes: int
    free_bytes: int
    taken: Callable[[str], int]

    def check(self, reserved_bytes: int) -> None:
        """Checks the need against the free bytes that others have not reserved.

        Raises:
            DiskFull: too few are left.
        """
        if not self.needed_bytes or self.needed_bytes <= self.free_bytes - reserved_bytes:
            return
        others = (
            f", and jobs that have not ended have reserved {reserved_bytes} of them" if reserved_bytes else ""
        )
        raise DiskFull(
            f"The job needs {self.needed_bytes} bytes on the volume; {self.free_bytes} are free{others}.",
            "Delete models that are not needed, wait for those jobs, or enlarge the volume."
            if reserved_bytes
            else "Delete models that are not needed, or enlarge the volume.",
        )


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Use of the volume: bytes that killed executions of the job have staged, and bytes that others have reserved."""

    staged_bytes: int = 0
    reserved_bytes: int = 0


NO_DISK_USE = DiskUse()


def reserved_bytes(redis: Redis, taken: Callable[[str], int], *, except_job: str | None = None) -> int:
    """Returns the bytes that unfinished jobs, except one, have reserved and not written yet."""
    jobs = {as_text(job): int(needed) for job, needed in redis.hgetall(RESERVATIONS_KEY).items()}
    return sum(max(0, needed - taken(job)) for job, needed in jobs.items() if job != except_job)


def reserve(pipe: Pipeline, job_id: str, need: DiskNeed) -> None:
    """Reserves the bytes that a job needs."""
    if need.needed_bytes:
        pipe.hset(RESERVATIONS_KEY, job_id, need.needed_bytes)


def release(pipe: Pipeline, job_id: str) -> None:
    """Ends a job's reservation."""
    pipe.hdel(RESERVATIONS_KEY, job_id)
