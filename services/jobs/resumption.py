"""Return of a job to the worker that was running it: it was only cut off from Redis, and had seemed to have died.

What `recovery.py` has done is undone: the job is taken out of its queue again and loses no try. Where another execution has begun
meanwhile, that one goes on, and the try is given back.
"""

import logging
from dataclasses import asdict
from functools import partial
from json import dumps

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.utils import as_text

from services.jobs.events import publish_status
from services.jobs.memory import MEMORY_KEY, Reservation, machine, needed_memory
from services.jobs.records import JOBS_KEY, read_job, record_key, transact

CHARGED = "charged"
"""Field of a record: the execution for whose loss the job was charged a try, as long as its worker has not come back."""

REFUNDS = "refunds"
"""Field of a record: tries that are given back at the next end of an execution."""

logger = logging.getLogger("graftwerk.worker")


def charge(pipe: Pipeline, job_id: str, execution_id: str) -> None:
    """Notes that the job loses a try because the worker of this execution is not connected."""
    pipe.hset(record_key(job_id), CHARGED, execution_id)


def take_refunds(redis: Redis, job: RQJob, pipe: Pipeline | None = None) -> None:
    """Adds the tries that were given back to those that the job has left."""
    refunds = int(redis.hget(record_key(job.id), REFUNDS) or 0)
    if refunds:
        job.retries_left = (job.retries_left or 0) + refunds
        (redis if pipe is None else pipe).hdel(record_key(job.id), REFUNDS)


def resume(redis: Redis, queue: Queue, job: RQJob, execution: Execution, ttl_seconds: int) -> None:
    """Takes a job back that this execution still runs, if it was charged a try for its loss."""
    if not _is_charged(redis, execution):
        return
    attempt = partial(_resume, queue=queue, job=job, execution=execution, ttl_seconds=ttl_seconds)
    if transact(redis, attempt, job.key, queue.key):
        logger.info("Job %s: the connection is back; execution %s goes on.", job.id, execution.id)
        publish_status(redis, read_job(redis, job.id))


def _is_charged(redis: Redis, execution: Execution) -> bool:
    return as_text(redis.hget(record_key(execution.job_id), CHARGED) or b"") == execution.id


def _resume(pipe: Pipeline, queue: Queue, job: RQJob, execution: Execution, ttl_seconds: int) -> bool:
    redis, key = queue.connection, record_key(job.id)
    is_charged = _is_charged(redis, execution)
    status = as_text(redis.hget(job.key, "status") or b"")
    is_current = as_text(redis.hget(key, "execution") or b"") == execution.id
    is_queued = status == RQStatus.QUEUED.value and redis.lpos(queue.key, job.id) is not None
    reservation = _reservation(redis, job.id)
    pipe.multi()
    if not is_charged:
        return False
    pipe.hdel(key, CHARGED, "alone")
    if not (is_queued and is_current):
        pipe.hincrby(key, REFUNDS, 1)
        return False
    pipe.lrem(queue.key, 1, job.id)
    pipe.hincrby(job.key, "retries_left", 1)
    pipe.hset(job.key, mapping={"status": RQStatus.STARTED.value, "worker_name": execution.worker_name})
    if reservation is not None:
        pipe.hset(MEMORY_KEY, job.id, reservation)
    _save(pipe, job, execution, ttl_seconds)
    return True


def _reservation(redis: Redis, job_id: str) -> str | None:
    """Returns the entry of a job's memory, which its loss has ended; None if its need is not known."""
    needed_bytes = needed_memory(redis, job_id)
    if not needed_bytes:
        return None
    created_us = redis.zscore(JOBS_KEY, job_id) or 0.0
    return dumps(asdict(Reservation(machine=machine(), needed_bytes=needed_bytes, created_us=created_us)))


def _save(pipe: Pipeline, job: RQJob, execution: Execution, ttl_seconds: int) -> None:
    """Adds the entries of an execution that RQ makes when it creates one."""
    execution.save(ttl_seconds, pipe)
    ExecutionRegistry(job.id, pipe).add(execution, ttl_seconds, pipe)
    job.started_job_registry.add_execution(execution, pipe, ttl_seconds)
    pipe.sadd(execution.worker_executions_key, execution.composite_key)
    pipe.expire(execution.worker_executions_key, ttl_seconds)
