"""RQ's workers with our bookkeeping: they finalize ended jobs and put interrupted ones back.

A worker has one queue, and runs a job in a forked process (`services/jobs/fork_worker.py`) or in its own
(`worker/inference/worker.py`).
"""

import logging
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from rq import Queue
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.worker import BaseWorker
from rq.worker_registration import register

from services.errors import GraftwerkError, JobCanceled, JobNotFound, VolumeUnavailable
from services.jobs.events import publish_status
from services.jobs.execution import AssignedJob, Assignment, JobExecution
from services.jobs.finalization import finalize
from services.jobs.memory import MEMORY_KEY, read_memory
from services.jobs.put_back import put_back
from services.jobs.records import (
    SERIALIZER,
    Failure,
    read_job,
    read_records,
    record_key,
    rq_queue,
)
from services.jobs.resumption import resume, take_refunds
from services.jobs.retry import RetryDecision, decide
from services.jobs.status import worker_died
from services.jobs.waiting import VOLUME_KEY, VOLUME_TTL_SECONDS
from services.settings import Settings

MONITORING_SECONDS = 1
"""Interval of a busy worker's heartbeats; `services/jobs/liveness.py` decides when a worker is lost."""

WORKER_TTL_SECONDS = 20
"""RQ's setting: an idle worker sends a heartbeat 15 s earlier than this, thus every five seconds."""

ENTRY_SECONDS = 45
"""Time that the entry of a worker outlives its last heartbeat where no janitor removes it."""

MAINTENANCE_SECONDS = 15

VOLUME_SECONDS = 1
"""Interval of looking whether the volume is available again."""

logger = logging.getLogger("graftwerk.worker")


def no_check() -> None:
    """For workers whose jobs need no volume."""


class TrackedWorker(BaseWorker):
    """RQ's worker with our records, events and retry decision."""

    job_class = AssignedJob
    log_result_lifespan = False

    def __init__(
        self,
        queue_name: str,
        *,
        name: str,
        redis: Redis,
        settings: Settings,
        check_volume: Callable[[], None] = no_check,
    ) -> None:
        """`check_volume` raises VolumeUnavailable while the worker must take no jobs."""
        super().__init__(
            [rq_queue(redis, queue_name)],
            name=name,
            connection=redis,
            serializer=SERIALIZER,
            job_class=AssignedJob,
            worker_ttl=WORKER_TTL_SECONDS,
            maintenance_interval=MAINTENANCE_SECONDS,
            job_monitoring_interval=MONITORING_SECONDS,
        )
        self.settings = settings
        self.check_volume = check_volume
        self.asked_to_stop = False
        self._killed_by_us = False

    # ---- starting -------------------------------------------------------------------------------------

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RQJob, Queue] | None:
        """Takes a job; while the volume is not available, it takes none."""
        while True:
            while not self.has_volume():
                self.heartbeat()
                time.sleep(VOLUME_SECONDS)
            taken = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            if taken is None or self.has_volume():
                return taken
            put_back(self.connection, taken[1], taken[0].id)

    def has_volume(self) -> bool:
        """Returns False while the volume is not available, and logs why."""
        try:
            self.check_volume()
        except VolumeUnavailable as error:
            logger.warning("No job is taken: %s", error.message)
            self.connection.set(VOLUME_KEY, error.message, ex=VOLUME_TTL_SECONDS)
            return False
        return True

    def is_waiting(self, job: RQJob) -> bool:
        """Returns True if a job from the queue must still run; it may have been canceled."""
        status = self.connection.hget(job.key, "status")
        if status == RQStatus.QUEUED.value.encode():
            return True
        logger.info("Job %s does not run: its status is %r", job.id, status)
        self.queues[0].intermediate_queue.remove(job.id)
        return False

    def prepare_execution(self, job: RQJob) -> Execution:
        """Adds RQ's entry of a started job and makes this execution the current one."""
        execution = super().prepare_execution(job)
        current = self._read_execution(job, execution)
        current.start(self.name)
        with current.log_ids():
            logger.info("Job %s: execution %s starts.", job.id, execution.id)
        return execution

    def _read_execution(self, job: RQJob, execution: Execution) -> JobExecution:
        return JobExecution.read(job.id, execution.id, self.connection)

    def perform_job(self, job: RQJob, queue: Queue, execution: Execution) -> bool:
        """Attaches the assignment for the task, then calls RQ's."""
        current = self._read_execution(job, execution)
        if isinstance(job, AssignedJob):
            job.assignment = Assignment(current, self.settings)
        with current.log_ids():
            return super().perform_job(job, queue, execution)

    def prepare_job_execution(self, job: RQJob, remove_from_intermediate_queue: bool = False) -> None:
        """Commits the start of the job, then publishes it."""
        super().prepare_job_execution(job, remove_from_intermediate_queue)
        publish_status(self.connection, read_job(self.connection, job.id))

    # ---- running --------------------------------------------------------------------------------------

    def serialize(self) -> dict[str, Any]:
        """Adds the state and the memory to RQ's fields of this worker's entry."""
        own = {"state": self.get_state(), "memory_bytes": read_memory().total_bytes}
        return {**super().serialize(), **own}

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Writes the whole entry of this worker, so that one that was removed by mistake is complete again."""
        super().heartbeat(ENTRY_SECONDS, pipeline)
        if self.birth_date is not None:
            connection = self.connection if pipeline is None else pipeline
            connection.hset(self.key, mapping=cast(Any, self.serialize()))
            register(self, cast(Pipeline, connection))

    def get_heartbeat_ttl(self, job: RQJob, working_time: float = 0.0) -> int:
        """Returns the lifetime in seconds of RQ's keys of an execution after its last heartbeat."""
        return ENTRY_SECONDS

    def maintain_heartbeats(self, job: RQJob, execution: Execution) -> None:
        """Calls RQ's; a Redis outage must not end a job of hours, and takes no try."""
        try:
            super().maintain_heartbeats(job, execution)
            resume(self.connection, self.queues[0], job, execution, ENTRY_SECONDS)
        except RedisError as error:
            logger.warning("Job %s: no heartbeat: %s", job.id, error)

    def clean_registries(self) -> None:
        """Does nothing: the janitor cleans the registries, and also finalizes the jobs that it ends."""

    # ---- ending ---------------------------------------------------------------------------------------

    def handle_job_success(
        self, job: RQJob, queue: Queue, started_job_registry: Any, execution: Execution
    ) -> None:
        """Commits the success and finalizes the job, except if another execution has started."""
        if self._superseded(job, execution):
            return
        super().handle_job_success(job, queue, started_job_registry, execution)
        self._finalize(job)

    def handle_job_failure(
        self,
        job: RQJob,
        queue: Queue,
        started_job_registry: Any = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """Commits the failure or puts the job back, as `retry.decide` says, then finalizes an ended job."""
        if execution is not None and self._superseded(job, execution):
            return
        record = read_records(self.connection, [job.id])[0]
        self.connection.hdel(MEMORY_KEY, job.id)
        is_stopped, self._killed_by_us = self._killed_by_us, False
        take_refunds(self.connection, job)
        self._apply(
            decide(record, has_retries=job.should_retry, is_worker_stopped=is_stopped), job, exc_string
        )
        super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)
        self._finalize(job)

    def handle_exception(self, job: RQJob, *exc_info: Any) -> None:
        """Logs one line for an error of ours, RQ's traceback for others."""
        error = exc_info[1]
        if isinstance(error, GraftwerkError):
            logger.warning("Job %s: %s: %s", job.id, error.code, error.message)
        else:
            super().handle_exception(job, *exc_info)

    def _finalize(self, job: RQJob) -> None:
        # The job has ended in any case; the janitor repeats what fails here.
        try:
            if not finalize(self.connection, job.id):
                publish_status(self.connection, read_job(self.connection, job.id))
        except (ConnectionError, TimeoutError, JobNotFound) as error:
            logger.warning("Job %s: not finalized, the janitor will do it: %s", job.id, error)

    def _apply(self, decision: RetryDecision, job: RQJob, reason: str) -> None:
        """Prepares RQ's own handling of the failure."""
        match decision:
            case RetryDecision.PUT_BACK:
                job.retries_left = (job.retries_left or 0) + 1
                job.enqueue_at_front_on_retry = True
            case RetryDecision.RERUN:
                job.enqueue_at_front_on_retry = True
            case RetryDecision.RETRY:
                job.enqueue_at_front_on_retry = False
            case RetryDecision.CANCEL:
                self._record(job, JobCanceled("The job was canceled while it ran."))
                job.retries_left = 0
            case RetryDecision.FAIL:
                job.retries_left = 0
            case RetryDecision.ABANDON:
                self._record(job, worker_died(reason.strip(" ;.")))

    def _record(self, job: RQJob, error: GraftwerkError) -> None:
        self.connection.hset(record_key(job.id), "error", Failure.of(error).dumps())

    def _superseded(self, job: RQJob, execution: Execution) -> bool:
        record = read_records(self.connection, [job.id])[0]
        if record is None or record.execution in (None, execution.id):
            return False
        logger.warning("Job %s: execution %s is superseded and changes nothing.", job.id, execution.id)
        resume(self.connection, self.queues[0], job, execution, ENTRY_SECONDS)
        with self.connection.pipeline() as pipe:
            self.cleanup_execution(job, pipeline=pipe, execution=execution)
            pipe.execute()
        return True

    # ---- stopping -------------------------------------------------------------------------------------

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Puts running jobs back and stops, on SIGTERM or SIGINT."""
        self.asked_to_stop = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Ignores a second signal: RQ would leave the job `started`, and the worker is stopping already."""
        logger.info("Worker %s is stopping.", self.name)
