"""Recovery of what dead workers have left: lost executions, jobs that were taken but not started, entries of workers.

RQ's own cleanup is not used: it compares the times of two clocks, overwrites an end that is committed at the same time,
counts a stranded job as a failed attempt, and publishes nothing.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.job_lifecycle import record_job_failure
from rq.utils import as_text, now
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY, get_keys

from services.errors import JobCanceled, JobNotFound
from services.jobs.events import publish_status
from services.jobs.finalization import finalize
from services.jobs.indexes import forget
from services.jobs.liveness import Ages, Clock, Heartbeat, Liveness, Loss
from services.jobs.memory import release_memory
from services.jobs.put_back import put_back
from services.jobs.records import (
    JOBS_KEY,
    Failure,
    fetch,
    read_job,
    read_records,
    record_key,
    rq_queue,
    transact,
)
from services.jobs.resumption import charge, take_refunds
from services.jobs.retry import RetryDecision, decide
from services.jobs.status import worker_died
from services.jobs.waiting import return_held
from services.kinds import QUEUES

STRANDED_SECONDS = 8
"""Time after which a job that a worker took from the queue but did not start goes back."""

EXECUTION_QUIET_SECONDS = 5
"""Time without a heartbeat, sent each second, after which the execution of a disconnected worker is lost."""

WORKER_QUIET_SECONDS = 10
"""The same for a worker, which sends one every five seconds while it is idle."""

LOST_ERRORS = {
    RetryDecision.CANCEL: JobCanceled("The job was canceled, and its worker was lost."),
    RetryDecision.ABANDON: worker_died("its worker was lost"),
}
"""Errors of jobs whose worker was lost; other jobs keep the error on their record."""


@dataclass(frozen=True, slots=True)
class Started:
    """An execution in RQ's registry of started jobs; `score` changes with each heartbeat."""

    queue: Queue
    job_id: str
    execution_id: str
    score: float

    @property
    def member(self) -> str:
        """Member of the registry."""
        return f"{self.job_id}:{self.execution_id}"


class Recovery:
    """Observer of the workers; one round each second."""

    def __init__(self, redis: Redis, clock: Clock = time.monotonic) -> None:
        self.redis = redis
        self._executions, self._workers = Liveness(redis, clock), Liveness(redis, clock)
        self._stranded = Ages(clock)
        self._rounds = 0

    def round(self) -> list[str]:
        """Runs one round, which is safe next to running workers and other rounds; returns a line for each change."""
        queues = [rq_queue(self.redis, name) for name in QUEUES]
        started = {execution.member: execution for queue in queues for execution in _started(queue)}
        self._return_held(queues)
        return [
            *self._reclaim_lost(started),
            *self._return_stranded(queues, {execution.job_id for execution in started.values()}),
            *self._remove_workers(),
        ]

    def _reclaim_lost(self, started: dict[str, Started]) -> Iterator[str]:
        """Puts jobs back whose worker is lost, or fails them if no retry is left."""
        beats = {
            member: Heartbeat(execution.score, self._worker_of(execution), EXECUTION_QUIET_SECONDS)
            for member, execution in started.items()
        }
        lost = self._executions.find_lost(beats)
        newest_first = self._newest_first([started[member] for member in lost])
        for execution in newest_first:  # each goes to the front of the queue
            attempt = partial(_reclaim, lost=execution, loss=lost[execution.member])
            keys = (RQJob.key_for(execution.job_id), execution.queue.started_job_registry.key)
            outcome = transact(self.redis, attempt, *keys)
            if outcome is not None:
                _publish_state(self.redis, execution.job_id)
                yield f"Job {execution.job_id}: the worker was lost; {outcome}."

    def _worker_of(self, execution: Started) -> str:
        current, worker = self.redis.hmget(record_key(execution.job_id), "execution", "worker")
        if current is None or worker is None or as_text(current) != execution.execution_id:
            return ""
        return as_text(worker)

    def _newest_first(self, lost: list[Started]) -> list[Started]:
        ages = {execution.job_id: self.redis.zscore(JOBS_KEY, execution.job_id) or 0.0 for execution in lost}
        return sorted(lost, key=lambda execution: ages[execution.job_id], reverse=True)

    def _return_held(self, queues: list[Queue]) -> None:
        """Returns jobs that wait for memory to their queues every other round; a worker decides again."""
        self._rounds += 1
        for queue in queues if self._rounds % 2 else ():
            return_held(self.redis, queue)

    def _return_stranded(self, queues: list[Queue], started: set[str]) -> Iterator[str]:
        """Puts jobs back whose worker died between taking and starting them."""
        taken = {job_id: queue for queue in queues for job_id in queue.intermediate_queue.get_job_ids()}
        ages = self._stranded.observe(dict.fromkeys(taken.keys() - started))
        for job_id, age in ages.items():
            if age >= STRANDED_SECONDS and put_back(self.redis, taken[job_id], job_id):
                yield f"Job {job_id}: taken but never started; the job is queued again."

    def _remove_workers(self) -> Iterator[str]:
        """Removes the entries of lost workers; a living one writes its entry again with its next heartbeat."""
        keys = sorted(get_keys(connection=self.redis))
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, "last_heartbeat", "queues")
            fields = dict(zip(keys, pipe.execute(), strict=True))
        beats = {
            key: Heartbeat(beat, key.removeprefix("rq:worker:"), WORKER_QUIET_SECONDS)
            for key, (beat, _) in fields.items()
        }
        for key in self._workers.find_lost(beats):
            _remove_worker(self.redis, key, as_text(fields[key][1] or b""))
            yield f"Worker {beats[key].worker}: lost."


def _started(queue: Queue) -> Iterator[Started]:
    members: Any = queue.connection.zrange(queue.started_job_registry.key, 0, -1, withscores=True)
    for member, score in members:
        job_id, execution_id = as_text(member).split(":")
        yield Started(queue, job_id, execution_id, score)


def _reclaim(pipe: Pipeline, lost: Started, loss: Loss) -> str | None:
    redis, job_id, registry = lost.queue.connection, lost.job_id, lost.queue.started_job_registry.key
    job, record = fetch(redis, [job_id])[0], read_records(redis, [job_id])[0]
    score = redis.zscore(registry, lost.member)
    pipe.multi()
    if score != lost.score:
        return None  # a heartbeat has come meanwhile, or it has ended
    pipe.zrem(registry, lost.member)
    if job is None or record is None or job.get_status(refresh=False) != RQStatus.STARTED:
        return None
    if record.execution != lost.execution_id:
        return None  # a leftover of an earlier execution
    release_memory(pipe, job_id)
    Execution(lost.execution_id, job_id, redis, job.worker_name or "").delete(job, pipeline=pipe)
    take_refunds(redis, job, pipe)
    decision = decide(record, has_retries=job.should_retry)
    if decision in (RetryDecision.RERUN, RetryDecision.RETRY):
        # Any of the jobs of the worker may have killed it: run alone, that one harms no other.
        pipe.hset(record_key(job_id), "alone", "1")
        if loss is Loss.ABSENT:
            charge(pipe, job_id, lost.execution_id)
        job.enqueue_at_front_on_retry = decision is RetryDecision.RERUN
        job.retry(lost.queue, pipe)
        return "the job is queued again"
    if decision in LOST_ERRORS:
        pipe.hset(record_key(job_id), "error", Failure.of(LOST_ERRORS[decision]).dumps())
    job.ended_at = job.ended_at or now()
    record_job_failure(job, "The worker was lost.", pipe)
    return "the job has ended"


def _publish_state(redis: Redis, job_id: str) -> None:
    try:
        if not finalize(redis, job_id):
            publish_status(redis, read_job(redis, job_id))
    except JobNotFound:
        forget(redis, [job_id])


def _remove_worker(redis: Redis, key: str, queue: str) -> None:
    with redis.pipeline() as pipe:
        pipe.delete(key)
        pipe.srem(REDIS_WORKER_KEYS, key)
        pipe.srem(WORKERS_BY_QUEUE_KEY % queue, key)
        pipe.execute()
