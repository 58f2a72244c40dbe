"""Maintenance of the queue: reclaims lost jobs, finalizes ended ones, removes expired records.

RQ's own cleanup is not used: it overwrites an end that is committed at the same time, counts a stranded job as a failed
attempt, and publishes nothing.
"""

import time
from functools import partial
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.job_lifecycle import record_job_failure
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import as_text, now
from rq.worker_registration import clean_worker_registry

from services.errors import JobCanceled, JobNotFound
from services.jobs.events import publish_status
from services.jobs.finalization import end_waiting, finalize, upstream_error
from services.jobs.indexes import ensure_complete, forget
from services.jobs.put_back import put_back
from services.jobs.records import (
    ENDED_KEY,
    JOBS_KEY,
    Failure,
    active_ids,
    fetch,
    read_job,
    read_jobs,
    read_records,
    record_key,
    rq_queue,
    transact,
)
from services.jobs.retry import RetryDecision, decide
from services.jobs.status import ENDED, worker_died
from services.kinds import QUEUES

STRANDED_SECONDS = 10
"""Time after which a job that a worker took from the queue but did not start goes back."""


LOST_ERRORS = {
    RetryDecision.CANCEL: JobCanceled("The job was canceled, and its worker was lost."),
    RetryDecision.ABANDON: worker_died("its worker was lost"),
}
"""Errors of jobs whose worker was lost; other jobs keep the error on their record."""


def run_maintenance(redis: Redis) -> list[str]:
    """Runs one round, which is safe next to running workers; returns a line for each change."""
    ensure_complete(redis)
    lines = []
    for queue in (rq_queue(redis, name) for name in QUEUES):
        lines += _reclaim_lost(redis, queue) + _return_stranded(redis, queue)
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            registry(queue=queue).cleanup()
        queue.ready_job_registry.cleanup()
        clean_worker_registry(queue)
    return lines + _finalize_ended(redis) + remove_expired(redis)


def active_jobs(redis: Redis) -> set[str]:
    """Returns the ids of the jobs that have not ended or are not finalized yet."""
    return set(active_ids(redis))


def needed_uploads(redis: Redis) -> set[str]:
    """Returns the ids of the uploads that jobs which have not ended need."""
    jobs = read_jobs(redis, active_ids(redis))
    return {upload for job in jobs if job and job.status not in ENDED for upload in job.request.uploads}


def _reclaim_lost(redis: Redis, queue: Queue) -> list[str]:
    """Puts jobs back whose worker sends no heartbeat, or fails them if no retry is left."""
    lines = []
    key = queue.started_job_registry.key
    lost = [_text(member).split(":") for member in redis.zrangebyscore(key, "-inf", time.time())]
    for job_id, execution_id in _newest_first(redis, lost):  # each goes to the front of the queue
        attempt = partial(_reclaim, queue=queue, job_id=job_id, execution_id=execution_id)
        outcome = transact(redis, attempt, RQJob.key_for(job_id), key)
        if outcome is not None:
            lines.append(f"Job {job_id}: the worker was lost; {outcome}.")
            _publish_state(redis, job_id)
    return lines


def _newest_first(redis: Redis, executions: list[list[str]]) -> list[list[str]]:
    ages = {job_id: redis.zscore(JOBS_KEY, job_id) or 0.0 for job_id, _ in executions}
    return sorted(executions, key=lambda execution: ages[execution[0]], reverse=True)


def _reclaim(pipe: Pipeline, queue: Queue, job_id: str, execution_id: str) -> str | None:
    redis = queue.connection
    job, record = fetch(redis, [job_id])[0], read_records(redis, [job_id])[0]
    score = redis.zscore(queue.started_job_registry.key, f"{job_id}:{execution_id}")
    pipe.multi()
    if score is None or score > time.time():
        return None  # a heartbeat has come meanwhile
    pipe.zrem(queue.started_job_registry.key, f"{job_id}:{execution_id}")
    if job is None or record is None or job.get_status(refresh=False) != RQStatus.STARTED:
        return None
    if record.execution != execution_id:
        return None  # a leftover of an earlier execution
    Execution(execution_id, job_id, redis, job.worker_name or "").delete(job, pipeline=pipe)
    decision = decide(record, has_retries=job.should_retry)
    if decision in (RetryDecision.RERUN, RetryDecision.RETRY):
        # Any of the jobs of the worker may have killed it: run alone, that one harms no other.
        pipe.hset(record_key(job_id), "alone", "1")
        job.enqueue_at_front_on_retry = decision is RetryDecision.RERUN
        job.retry(queue, pipe)
        return "the job is queued again"
    if decision in LOST_ERRORS:
        pipe.hset(record_key(job_id), "error", Failure.of(LOST_ERRORS[decision]).dumps())
    job.ended_at = job.ended_at or now()
    record_job_failure(job, "The worker was lost.", pipe)
    return "the job has ended"


def _return_stranded(redis: Redis, queue: Queue) -> list[str]:
    """Puts jobs back whose worker died between taking and starting them."""
    lines = []
    started = {_text(member).split(":")[0] for member in redis.zrange(queue.started_job_registry.key, 0, -1)}
    stranded = queue.intermediate_queue
    for job_id in set(stranded.get_job_ids()) - started:
        if stranded.set_first_seen(job_id) or not _seen_long_ago(queue, job_id):
            continue
        if put_back(redis, queue, job_id):
            lines.append(f"Job {job_id}: taken but never started; the job is queued again.")
        redis.delete(stranded.get_first_seen_key(job_id))
    return lines


def _seen_long_ago(queue: Queue, job_id: str) -> bool:
    seen = queue.intermediate_queue.get_first_seen(job_id)
    return seen is not None and (now() - seen).total_seconds() > STRANDED_SECONDS


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
    expired = [_text(id) for id in redis.zrangebyscore(ENDED_KEY, "-inf", time.time())]
    forget(redis, expired)
    return [f"Job {job_id}: record removed." for job_id in expired]


def _text(member: Any) -> str:
    return as_text(member)


def _publish_state(redis: Redis, job_id: str) -> None:
    try:
        if not finalize(redis, job_id):
            publish_status(redis, read_job(redis, job_id))
    except JobNotFound:
        forget(redis, [job_id])
