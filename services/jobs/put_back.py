"""Return of a job that a worker has taken from its queue but not started, or that waits outside of its queue."""

from functools import partial

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus

from services.jobs.records import transact


def put_back(redis: Redis, queue: Queue, job_id: str) -> bool:
    """Returns the job to the front of its queue; returns False if it is in the queue already or has ended."""
    return transact(redis, partial(return_to_queue, queue=queue, job_id=job_id), RQJob.key_for(job_id))


def held_key(queue: Queue) -> str:
    """Returns the key of the jobs that wait outside of this queue, by their age."""
    return f"graftwerk:held:{queue.name}"


def return_to_queue(pipe: Pipeline, queue: Queue, job_id: str) -> bool:
    """Does what `put_back` does, as a part of a transaction that watches the job: it reads, then adds its commands to the pipeline."""
    redis = queue.connection
    status = redis.hget(RQJob.key_for(job_id), "status")
    in_queue = redis.lpos(queue.key, job_id) is not None
    pipe.multi()
    pipe.lrem(queue.intermediate_queue_key, 1, job_id)
    pipe.zrem(held_key(queue), job_id)
    if in_queue or status != RQStatus.QUEUED.value.encode():
        return False
    pipe.lpush(queue.key, job_id)
    return True
