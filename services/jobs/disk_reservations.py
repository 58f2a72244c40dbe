"""DiskNeed on the volume: what a job will write is set aside for it, so that no two jobs count on the same bytes.

The hash `graftwerk:room` has the bytes that each unfinished job needs. What a job has written already is gone from the volume's free
bytes and no longer set aside.
"""

from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.errors import DiskFull

RESERVATIONS_KEY = "graftwerk:room"


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What a job needs of the volume as it stands; `taken` gives the bytes that a job (by its id) has written there."""

    needed_bytes: int
    free_bytes: int
    taken: Callable[[str], int]

    def check(self, reserved_bytes: int) -> None:
        """Raises DiskFull, with the figures, unless there is room beside what others have reserved."""
        if not self.needed_bytes or self.needed_bytes <= self.free_bytes - reserved_bytes:
            return
        others = (
            f", {reserved_bytes} of them are reserved by jobs that have not ended" if reserved_bytes else ""
        )
        raise DiskFull(
            f"the job needs {self.needed_bytes} bytes on the volume, {self.free_bytes} are free{others}",
            "Delete models that are not needed, wait for those jobs, or enlarge the volume."
            if reserved_bytes
            else "Delete models that are not needed, or enlarge the volume.",
        )


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Of the volume: what the job itself has written already, in an execution that was killed, and what others will still take."""

    staged_bytes: int = 0
    reserved_bytes: int = 0


NO_DISK_USE = DiskUse()


def reserved_bytes(redis: Redis, taken: Callable[[str], int], *, beside: str | None = None) -> int:
    """Bytes that unfinished jobs, save one, have reserved and not written yet."""
    jobs = {as_text(job): int(needed) for job, needed in redis.hgetall(RESERVATIONS_KEY).items()}
    return sum(max(0, needed - taken(job)) for job, needed in jobs.items() if job != beside)


def reserve(pipe: Pipeline, job_id: str, room: DiskNeed) -> None:
    """Reserves a job's room."""
    if room.needed_bytes:
        pipe.hset(RESERVATIONS_KEY, job_id, room.needed_bytes)


def release(pipe: Pipeline, job_id: str) -> None:
    """Ends a job's reservation."""
    pipe.hdel(RESERVATIONS_KEY, job_id)
