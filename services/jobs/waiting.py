"""Jobs that wait for memory or the volume: why, and their place until they are tried again, outside of the queue or at its front."""

import time
from functools import partial
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job as RQJob
from rq.utils import as_text

from services.jobs.events import publish_status
from services.jobs.put_back import held_key, put_back, return_to_queue
from services.jobs.records import JOBS_KEY, reaching_redis, read_job, record_key, transact
from services.jobs.status import WAITS_FOR, WaitingFor

VOLUME_KEY = "graftwerk:volume-unavailable"
"""Reason why workers take no jobs; it exists while they report it."""

VOLUME_TTL_SECONDS = 5


@reaching_redis()
def read_volume_problem(redis: Redis) -> str:
    """Returns why workers take no jobs while the volume is not available, else the empty string."""
    return as_text(redis.get(VOLUME_KEY) or b"")


def hold_back(redis: Redis, queue: Queue, job_id: str, reason: WaitingFor) -> None:
    """Takes a job that was not started out of its queue, so that those behind it may run before it.

    The janitor returns it to the front within seconds, and a worker tries it again.
    """
    attempt = partial(_hold_back, queue=queue, job_id=job_id, reason=reason)
    if transact(redis, attempt, RQJob.key_for(job_id)):
        publish_status(redis, read_job(redis, job_id))


def _hold_back(pipe: Pipeline, queue: Queue, job_id: str, reason: WaitingFor) -> bool:
    redis, key = queue.connection, record_key(job_id)
    is_first = not redis.hexists(key, "waiting_for")
    created_us = redis.zscore(JOBS_KEY, job_id) or 0.0
    pipe.multi()
    pipe.lrem(queue.intermediate_queue_key, 1, job_id)
    pipe.zadd(held_key(queue), {job_id: created_us})
    pipe.hset(key, "waiting_for", reason.model_dump_json())
    pipe.hsetnx(key, "waiting_since", time.time())
    return is_first


def wait_at_front(redis: Redis, queue: Queue, job_id: str, reason: WaitingFor) -> None:
    """Returns a job that was not started to the front of its queue, so that none behind it runs before it on this worker."""
    attempt = partial(_wait_at_front, queue=queue, job_id=job_id, reason=reason)
    if transact(redis, attempt, RQJob.key_for(job_id)):
        publish_status(redis, read_job(redis, job_id))


def _wait_at_front(pipe: Pipeline, queue: Queue, job_id: str, reason: WaitingFor) -> bool:
    key = record_key(job_id)
    is_first = not queue.connection.hexists(key, "waiting_for")
    is_queued = return_to_queue(pipe, queue, job_id)
    if is_queued:
        pipe.hset(key, "waiting_for", reason.model_dump_json())
    return is_queued and is_first


def return_held(redis: Redis, queue: Queue) -> None:
    """Returns the jobs that wait outside of their queue to its front, the oldest first."""
    members: Any = redis.zrevrange(held_key(queue), 0, -1)
    for member in members:
        put_back(redis, queue, as_text(member))


def note_waiting_for(redis: Redis, job_id: str, reason: WaitingFor) -> None:
    """Notes what a job waits for that is about to be put back."""
    redis.hset(record_key(job_id), "waiting_for", reason.model_dump_json())


def change_waits_for(redis: Redis, job_id: str, before: WaitingFor | None, reason: WaitingFor | None) -> None:
    """Changes what a running job waits for; publishes the job when it begins or ends to wait."""
    if reason is None:
        redis.hdel(record_key(job_id), WAITS_FOR)
    else:
        redis.hset(record_key(job_id), WAITS_FOR, reason.model_dump_json())
    if before is None or reason is None:
        publish_status(redis, read_job(redis, job_id))


def end_waiting_for(redis: Redis, job_id: str) -> None:
    """Removes the reason from the record of a job that is about to start."""
    redis.hdel(record_key(job_id), "waiting_for", "waiting_since")


def waited_seconds(redis: Redis, job_id: str) -> float:
    """Returns the seconds for which the job has waited outside of its queue."""
    since = redis.hget(record_key(job_id), "waiting_since")
    return 0.0 if since is None else max(0.0, time.time() - float(since))
