"""Submission of a job: one Redis transaction, or a refusal.

The job, its record, its reservation of disk and model name, and its place in the queue are created together or not
at all.
"""

import time
from dataclasses import dataclass, fields

from redis import Redis
from redis.client import Pipeline
from rq import Retry
from rq.job import Job as RQJob
from rq.utils import as_text

from services.errors import GraftwerkError, IdempotencyConflict, JobNotFound, ModelExists
from services.jobs.disk_reservations import RESERVATIONS_KEY, DiskNeed, reserve, reserved_bytes
from services.jobs.finalization import upstream_error
from services.jobs.indexes import IndexFields
from services.jobs.open_jobs import read_open
from services.jobs.queue_limits import QueueLimits
from services.jobs.records import (
    ACTIVE_KEY,
    JOBS_KEY,
    read_jobs,
    read_records,
    record_key,
    rq_queue,
    target_key,
    transact,
)
from services.jobs.status import ENDED
from services.kinds import KINDS, QUEUES
from services.kinds.shared import JobRequest

TASK = "worker.tasks.run_job"
"""Name on the wire of the function that runs a job of any kind."""

RETRIES = 2
"""Number of times that a job is run again after its worker died."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a submission: the digest of the API key (empty without one) and the id of the HTTP request.

    `note` is a text that the API keeps with the job for itself; nothing else reads it.
    """

    owner: str = ""
    request_id: str = ""
    note: str = ""


UNKNOWN_ORIGIN = Origin()


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job to be queued under `job_id`."""

    redis: Redis
    limits: QueueLimits
    job_timeout_seconds: int
    origin: Origin
    task: str
    request: JobRequest
    job_id: str
    retention_seconds: int
    need: DiskNeed | None
    memory_bytes: int

    def commit(self) -> bool:
        """Queues the job; returns False if it is queued already.

        Raises:
            GraftwerkError: the submission is refused, see `JobQueue.submit`.
        """
        outcome = transact(self.redis, self._attempt, *self._watched_keys())
        if isinstance(outcome, GraftwerkError):
            raise outcome
        return outcome

    @property
    def _upstream_ids(self) -> list[str]:
        return [str(id) for id in self.request.after]

    def _watched_keys(self) -> list[str]:
        keys = [record_key(self.job_id), JOBS_KEY, RESERVATIONS_KEY]
        keys += [RQJob.key_for(id) for id in self._upstream_ids]
        return keys if self.request.makes is None else [*keys, target_key(self.request.makes)]

    def _attempt(self, pipe: Pipeline) -> bool | GraftwerkError:
        # A refusal is returned, not raised: the transaction then still detects a change of the watched keys, and
        # everything is checked again.
        existing = read_records(self.redis, [self.job_id])[0]
        if existing is None:
            try:
                self._refuse()
            except GraftwerkError as error:
                return error
            self._enqueue(pipe)
            return True
        if existing.request.asks_same_as(self.request):
            return False
        return IdempotencyConflict(
            f"Job {self.job_id} exists with another request.", "Use a new id or key, or send the same body."
        )

    def _refuse(self) -> None:
        self._refuse_bad_upstream()
        self._refuse_full_queue()
        self._refuse_taken_target()
        if self.need is not None:
            self.need.check(reserved_bytes(self.redis, self.need.taken))

    def _refuse_bad_upstream(self) -> None:
        ids = self._upstream_ids
        for job_id, job in zip(ids, read_jobs(self.redis, ids), strict=True):
            if job is None:
                raise JobNotFound(f"`after` names job {job_id}, which is not known.")
            if job.status in ("failed", "canceled"):
                raise upstream_error(job)

    def _refuse_full_queue(self) -> None:
        with self.redis.pipeline(transaction=False) as pipe:
            for queue in (rq_queue(self.redis, name) for name in QUEUES):
                pipe.llen(queue.key)
                pipe.zcard(queue.deferred_job_registry.key)
            waiting = sum(pipe.execute())
        self.limits.check_total(waiting)
        if self.limits.need_jobs:
            self.limits.check(read_open(self.redis), kind=self.request.kind, owner=self.origin.owner)

    def _refuse_taken_target(self) -> None:
        target = self.request.makes
        holder = self.redis.get(target_key(target)) if target is not None else None
        job = read_jobs(self.redis, [as_text(holder)])[0] if holder else None
        if job is not None and job.status not in ENDED:
            raise ModelExists(
                f"The {job.kind} job {job.id} is {job.status} and makes a model named {target!r}.",
                "Choose another target, or cancel that job.",
            )

    def _enqueue(self, pipe: Pipeline) -> None:
        self._add_to_queue(pipe)
        created_us = self._creation_us()
        text = self.request.model_dump_json()
        pipe.hset(record_key(self.job_id), mapping={"request": text, "created_at": created_us})
        for field in fields(self.origin):
            if value := getattr(self.origin, field.name):
                pipe.hset(record_key(self.job_id), field.name, value)
        IndexFields.of(self.request).write(pipe, self.job_id)
        pipe.zadd(JOBS_KEY, {self.job_id: created_us})
        pipe.sadd(ACTIVE_KEY, self.job_id)
        if self.request.makes is not None:
            pipe.set(target_key(self.request.makes), self.job_id)
        if self.need is not None:
            reserve(pipe, self.job_id, self.need)
        if self.memory_bytes:
            pipe.hset(record_key(self.job_id), "memory", self.memory_bytes)

    def _add_to_queue(self, pipe: Pipeline) -> None:
        """Creates RQ's job; this begins the transaction."""
        queue = rq_queue(self.redis, KINDS[self.request.kind].queue)
        job = queue.create_job(
            self.task,
            args=(self.request.model_dump(mode="json"),),
            job_id=self.job_id,
            description=f"{self.request.kind} {self.request.makes or self.request.reads[0]}",
            depends_on=[*self._upstream_ids] or None,
            timeout=self.job_timeout_seconds,
            result_ttl=self.retention_seconds,
            failure_ttl=self.retention_seconds,
            retry=Retry(max=RETRIES),
        )
        queue.enqueue_job(job, pipeline=pipe)

    def _creation_us(self) -> int:
        # No two are equal, so that a cursor is exact; JOBS_KEY is watched.
        newest = self.redis.zrevrange(JOBS_KEY, 0, 0, withscores=True)
        return max(time.time_ns() // 1000, int(newest[0][1]) + 1 if newest else 0)
