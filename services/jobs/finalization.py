"""Finalization of ended jobs: publishes the end, releases names and disk space, fails the jobs that depend on it.

RQ commits the end of a job first, `finalize` does the rest. It may be repeated, and the janitor repeats it if a process died
between the two.
"""

import logging
import time
from functools import partial

from redis import Redis
from redis.client import Pipeline
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RQJob
from rq.registry import CanceledJobRegistry
from rq.utils import now, utcformat

from services.errors import GraftwerkError, JobCanceled, UpstreamFailed
from services.jobs.compaction import EndedJob
from services.jobs.counters import count_end
from services.jobs.deliveries import create
from services.jobs.disk_reservations import release
from services.jobs.events import append_status
from services.jobs.indexes import IndexFields, add
from services.jobs.memory import release_memory
from services.jobs.records import (
    ACTIVE_KEY,
    ENDED_KEY,
    JOBS_KEY,
    SERIALIZER,
    Failure,
    events_key,
    log_key,
    read_job,
    record_key,
    target_key,
    transact,
)
from services.jobs.rq_fields import results_key, rq_key
from services.jobs.status import ENDED, WAITING, Job
from services.logs import log_ids

GRACE_SECONDS = 3600
"""Time that the log of a job outlives RQ's hash. The record remains until the janitor removes it together with its indexes."""

EVENTS_SECONDS = 600
"""Time that the events of an ended job are kept for those who read them; later its stream has only its end."""

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
"""Lua: deletes a reservation of a name only if it is still this job's."""


logger = logging.getLogger("graftwerk.jobs")


def finalize(redis: Redis, job_id: str) -> bool:
    """Finalizes an ended job; returns False if the job has not ended.

    Raises:
        JobNotFound: the job does not exist.
    """
    job = read_job(redis, job_id)
    if job.status not in ENDED:
        return False
    rq = RQJob.fetch(job_id, connection=redis, serializer=SERIALIZER)
    dependent_ids = rq.dependent_ids
    _close(redis, job, retention_seconds=rq.result_ttl or GRACE_SECONDS)
    if job.status != "succeeded":
        _fail_dependents(redis, job, dependent_ids)
    with log_ids(job=job_id):
        logger.info(
            "Job %s: ended as %s.", job_id, f"{job.status} ({job.error.code})" if job.error else job.status
        )
    return True


def end_waiting(redis: Redis, job_id: str, error: GraftwerkError) -> bool:
    """Ends a job that no worker has started; returns False if one has, or if the job has ended.

    Raises:
        JobNotFound: the job does not exist.
    """
    rq_key = RQJob.key_for(job_id)
    ended = transact(redis, lambda pipe: _end_waiting(redis, pipe, job_id, error), rq_key)
    if ended:
        finalize(redis, job_id)
    return ended


def _end_waiting(redis: Redis, pipe: Pipeline, job_id: str, error: GraftwerkError) -> bool:
    try:
        rq = RQJob.fetch(job_id, connection=redis, serializer=SERIALIZER)
        if rq.get_status() not in WAITING:
            pipe.multi()
            return False
        pipe.multi()
        rq.cancel(pipeline=pipe)
    except (NoSuchJobError, InvalidJobOperation):
        pipe.multi()
        return False
    # RQ keeps canceled jobs forever and records no end time; here they end like all others.
    CanceledJobRegistry(rq.origin, redis, serializer=SERIALIZER).remove(rq, pipeline=pipe)
    pipe.hset(rq.key, "ended_at", utcformat(now()))
    rq.cleanup(ttl=rq.result_ttl, pipeline=pipe, remove_from_queue=False)
    pipe.hset(record_key(job_id), "error", Failure.of(error).dumps())
    if isinstance(error, JobCanceled):
        pipe.hset(record_key(job_id), "cancel", "1")
    return True


def upstream_error(job: Job) -> UpstreamFailed:
    """Returns the error of a job that depends on this ended one."""
    ending = "was canceled" if job.status == "canceled" else "failed"
    reason = (
        f" ({job.error.code}: {job.error.message.removesuffix('.')})"
        if job.error and job.status == "failed"
        else ""
    )
    return UpstreamFailed(
        f"The {job.kind} job {job.id}, which this job depends on, {ending}{reason}.",
        "Submit that job again, then this one after it.",
    )


def _fail_dependents(redis: Redis, job: Job, dependent_ids: list[str]) -> None:
    for dependent_id in dependent_ids:
        end_waiting(redis, dependent_id, upstream_error(job))


def _close(redis: Redis, job: Job, retention_seconds: int) -> None:
    attempt = partial(_close_once, redis, job, retention_seconds)
    transact(redis, attempt, rq_key(job.id), record_key(job.id), results_key(job.id))


def _close_once(redis: Redis, job: Job, retention_seconds: int, pipe: Pipeline) -> None:
    if not redis.sismember(ACTIVE_KEY, job.id):
        pipe.multi()
        return
    created_us = int(redis.zscore(JOBS_KEY, job.id) or 0)
    ended = EndedJob.read(redis, job.id)
    pipe.multi()
    append_status(pipe, job)  # with the rest or not at all: a repeated finalization publishes no second end
    target = job.request.makes
    if target is not None:
        pipe.eval(RELEASE, 1, target_key(target), job.id)
    ended.write(pipe, retention_seconds)
    fields = IndexFields.of(job.request)
    fields.write(pipe, job.id)
    pipe.persist(record_key(job.id))
    pipe.expire(log_key(job.id), retention_seconds + GRACE_SECONDS)
    pipe.expire(events_key(job.id), EVENTS_SECONDS)
    pipe.zadd(ENDED_KEY, {job.id: time.time() + retention_seconds})
    add(pipe, job.id, fields, job.status, created_us)
    create(pipe, job)
    count_end(pipe, job)
    pipe.srem(ACTIVE_KEY, job.id)
    release(pipe, job.id)
    release_memory(pipe, job.id)
