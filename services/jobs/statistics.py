"""Numbers of all jobs at one moment, for the operator: by kind and status, waiting times, counters of ended jobs."""

import time
from collections import Counter
from dataclasses import dataclass

from redis import Redis

from services.jobs.counters import Counters, read_counters
from services.jobs.deliveries import count_pending
from services.jobs.indexes import count_ended
from services.jobs.open_jobs import OpenJob, read_open
from services.jobs.status import JobStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Jobs that are not finalized, numbers of the finalized ones by kind and status, counters, pending deliveries."""

    open_jobs: list[OpenJob]
    ended: Counter[tuple[str, JobStatus]]
    counters: Counters
    pending_deliveries: int

    @property
    def jobs(self) -> Counter[tuple[str, JobStatus]]:
        """Numbers of all jobs by kind and status, until their records expire."""
        return Counter((job.kind, job.status) for job in self.open_jobs) + self.ended

    @property
    def oldest_wait_seconds(self) -> dict[str, float]:
        """Seconds since the submission of the oldest waiting job of each kind that has one."""
        oldest: dict[str, int] = {}
        for job in self.open_jobs:
            if job.status == "queued":
                oldest[job.kind] = min(job.created_us, oldest.get(job.kind, job.created_us))
        return {kind: max(0.0, time.time() - created_us / 1e6) for kind, created_us in oldest.items()}


def read_statistics(redis: Redis) -> Statistics:
    """Returns the present numbers."""
    # Finalized jobs are counted last: one that is finalized meanwhile may count twice, and never not at all.
    open_jobs = read_open(redis)
    return Statistics(
        open_jobs=open_jobs,
        ended=count_ended(redis),
        counters=read_counters(redis),
        pending_deliveries=count_pending(redis),
    )
