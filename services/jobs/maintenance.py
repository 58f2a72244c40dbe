"""Maintenance of the queue: finalizes ended jobs, removes expired records."""

import time
from typing import Any

from redis import Redis
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import as_text
from rq.worker_registration import clean_worker_registry

from services.errors import JobCanceled
from services.jobs.finalization import end_waiting, finalize, upstream_error
from services.jobs.indexes import ensure_complete, forget
from services.jobs.records import (
    ENDED_KEY,
    active_ids,
    read_jobs,
    read_records,
    rq_queue,
)
from services.jobs.status import ENDED
from services.kinds import QUEUES


def run_maintenance(redis: Redis) -> list[str]:
    """Runs one round, which is safe next to running workers; returns a line for each change."""
    ensure_complete(redis)
    for queue in (rq_queue(redis, name) for name in QUEUES):
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            registry(queue=queue).cleanup()
        queue.ready_job_registry.cleanup()
        clean_worker_registry(queue)
    return _finalize_ended(redis) + remove_expired(redis)


def active_jobs(redis: Redis) -> set[str]:
    """Returns the ids of the jobs that have not ended or are not finalized yet."""
    return set(active_ids(redis))


def needed_uploads(redis: Redis) -> set[str]:
    """Returns the ids of the uploads that jobs which have not ended need."""
    jobs = read_jobs(redis, active_ids(redis))
    return {upload for job in jobs if job and job.status not in ENDED for upload in job.request.uploads}


def _finalize_ended(redis: Redis) -> list[str]:
    """Finalizes ended jobs and fails jobs whose upstream failed."""
    lines = []
    ids = active_ids(redis)
    for job_id, job, record in zip(ids, read_jobs(redis, ids), read_records(redis, ids), strict=True):
        if job is None:
            forget(redis, [job_id])
        elif job.status in ENDED:
            finalize(redis, job_id)
            lines.append(f"Job {job_id}: finalized as {job.status}.")
        elif record is not None and record.cancel:
            if end_waiting(redis, job_id, JobCanceled("The job was canceled.")):
                lines.append(f"Job {job_id}: canceled while it waited.")
        elif job.status == "queued" and _end_without_upstream(redis, job_id, job.after):
            lines.append(f"Job {job_id}: failed, because a job that it depends on did not succeed.")
    return lines


def _end_without_upstream(redis: Redis, job_id: str, after: list[str]) -> bool:
    for upstream in read_jobs(redis, after):
        if upstream is not None and upstream.status in ("failed", "canceled"):
            return end_waiting(redis, job_id, upstream_error(upstream))
    return False


def remove_expired(redis: Redis) -> list[str]:
    """Removes the records whose retention is over; returns a line for each."""
    found: Any = redis.zrangebyscore(ENDED_KEY, "-inf", time.time())
    expired = [as_text(id) for id in found]
    forget(redis, expired)
    return [f"Job {job_id}: record removed." for job_id in expired]
