"""RQ's workers with our bookkeeping: ends are told and cascaded, stops put back, orphans die.

A worker has one queue, runs a job in a forked process (`ForkWorker`) or in its own (see
`worker/inference/worker.py`), and never gives up a job that it did not finish.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.worker import BaseWorker

from services.errors import GraftwerkError, JobAbandoned, JobCanceled, JobNotFound
from services.jobs.events import publish_status
from services.jobs.execution import AssignedJob, Assignment, JobExecution
from services.jobs.finalization import finalize
from services.jobs.records import (
    ACTIVE_KEY,
    SERIALIZER,
    Failure,
    read_job,
    read_records,
    record_key,
    rq_queue,
)
from services.jobs.retry import RetryDecision, decide
from services.settings import Settings

MONITORING_SECONDS = 5
"""A busy worker beats its heart this often."""

HEARTBEAT_SECONDS = 15
"""A job whose worker has not been heard of for this long is given to another."""

WORKER_TTL_SECONDS = 45
MAINTENANCE_SECONDS = 15

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""

logger = logging.getLogger("graftwerk.worker")


def die_with_parent(parent_pid: int) -> None:
    """End this process when its parent ends: an orphan would run on beside the one that replaces it.

    Linux only; elsewhere an orphan finishes, and is then refused as superseded.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it had died before the call
        os._exit(1)


class TrackedWorker(BaseWorker):
    """What every worker of ours adds to RQ's, whichever way it runs its jobs."""

    job_class = AssignedJob
    log_result_lifespan = False

    def __init__(self, queue_name: str, *, name: str, redis: Redis, settings: Settings) -> None:
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
        self.asked_to_stop = False
        self._killed_by_us = False

    # ---- starting -------------------------------------------------------------------------------------

    def is_waiting(self, job: RQJob) -> bool:
        """Whether a job from the queue is still to be run: it may have been canceled, or be a leftover."""
        status = self.connection.hget(job.key, "status")
        if status == RQStatus.QUEUED.value.encode():
            return True
        logger.info("job %s is not run: its status is %r", job.id, status)
        self.queues[0].intermediate_queue.remove(job.id)
        return False

    def prepare_execution(self, job: RQJob) -> Execution:
        """RQ's entry among the started jobs; from now on only this execution counts."""
        execution = super().prepare_execution(job)
        JobExecution(job.id, execution.id, self.connection).start()
        return execution

    def perform_job(self, job: RQJob, queue: Queue, execution: Execution) -> bool:
        """RQ's, with the assignment on the job where its task finds it."""
        if isinstance(job, AssignedJob):
            job.assignment = Assignment(JobExecution(job.id, execution.id, self.connection), self.settings)
        return super().perform_job(job, queue, execution)

    def prepare_job_execution(self, job: RQJob, remove_from_intermediate_queue: bool = False) -> None:
        """RQ's commit that the job has started; then everybody is told."""
        super().prepare_job_execution(job, remove_from_intermediate_queue)
        publish_status(self.connection, read_job(self.connection, job.id))

    # ---- running --------------------------------------------------------------------------------------

    def get_heartbeat_ttl(self, job: RQJob, working_time: float = 0.0) -> int:
        """Seconds after which an unheard-of job counts as lost, whatever its time limit."""
        return HEARTBEAT_SECONDS

    def maintain_heartbeats(self, job: RQJob, execution: Execution) -> None:
        """RQ's; a Redis that is away for a while must not end a job of hours."""
        try:
            super().maintain_heartbeats(job, execution)
        except (ConnectionError, TimeoutError) as error:
            logger.warning("job %s: no heartbeat: %s", job.id, error)

    def clean_registries(self) -> None:
        """Left to the janitor, which also tells and cascades what it ends."""

    # ---- ending ---------------------------------------------------------------------------------------

    def handle_job_success(
        self, job: RQJob, queue: Queue, started_job_registry: Any, execution: Execution
    ) -> None:
        """RQ's commit, then ours; nothing at all where another execution has taken over."""
        if self._superseded(job, execution):
            return
        super().handle_job_success(job, queue, started_job_registry, execution)
        self._settle(job)

    def handle_job_failure(
        self,
        job: RQJob,
        queue: Queue,
        started_job_registry: Any = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """RQ's commit (failed, or back in the queue), then ours.

        Tried again is only what died or is transient; a job that we stopped ourselves goes back to the
        front of its queue and loses no try.
        """
        if execution is not None and self._superseded(job, execution):
            return
        record = read_records(self.connection, [job.id])[0]
        is_stopped, self._killed_by_us = self._killed_by_us, False
        self._apply(
            decide(record, has_retries=job.should_retry, is_worker_stopped=is_stopped), job, exc_string
        )
        super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)
        self._settle(job)

    def handle_exception(self, job: RQJob, *exc_info: Any) -> None:
        """One line for what the user must fix, RQ's traceback for the rest."""
        error = exc_info[1]
        if isinstance(error, GraftwerkError):
            logger.warning("job %s: %s: %s", job.id, error.code, error.message)
        else:
            super().handle_exception(job, *exc_info)

    def _settle(self, job: RQJob) -> None:
        # The job has ended whatever happens here; the janitor makes up for what does not succeed.
        try:
            if not finalize(self.connection, job.id):
                publish_status(self.connection, read_job(self.connection, job.id))
        except (ConnectionError, TimeoutError, JobNotFound) as error:
            logger.warning("job %s: its end is left to the janitor: %s", job.id, error)

    def _apply(self, decision: RetryDecision, job: RQJob, reason: str) -> None:
        """Prepares RQ's own handling of the failure."""
        match decision:
            case RetryDecision.PUT_BACK:
                job.retries_left = (job.retries_left or 0) + 1
                job.enqueue_at_front_on_retry = True
            case RetryDecision.RETRY:
                return
            case RetryDecision.CANCEL:
                self._record(job, JobCanceled("The job was canceled while it ran."))
                job.retries_left = 0
            case RetryDecision.FAIL:
                job.retries_left = 0
            case RetryDecision.ABANDON:
                self._record(job, _abandoned(reason))

    def _record(self, job: RQJob, error: GraftwerkError) -> None:
        self.connection.hset(record_key(job.id), "error", Failure.of(error).dumps())

    def _superseded(self, job: RQJob, execution: Execution) -> bool:
        record = read_records(self.connection, [job.id])[0]
        if record is None or record.execution in (None, execution.id):
            return False
        logger.warning("job %s: execution %s is superseded and changes nothing", job.id, execution.id)
        with self.connection.pipeline() as pipe:
            self.cleanup_execution(job, pipeline=pipe, execution=execution)
            pipe.execute()
        return True

    # ---- stopping -------------------------------------------------------------------------------------

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: put back what runs, then leave."""
        self.asked_to_stop = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """A second signal changes nothing: RQ would leave the job `started`, and we are leaving already."""
        logger.info("worker %s is stopping", self.name)


class ForkWorker(TrackedWorker, Worker):
    """Runs each job in a process of its own, forked from one that has imported what jobs need."""

    def __init__(
        self,
        queue_name: str,
        *,
        name: str,
        redis: Redis,
        settings: Settings,
        prepare_process: Callable[[], None],
    ) -> None:
        """`prepare_process` is called in each job's process before the task."""
        super().__init__(queue_name, name=name, redis=redis, settings=settings)
        self.prepare_process = prepare_process
        self._cancel_seen: str | None = None

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """RQ's, for jobs that are still to be run."""
        if self.is_waiting(job):
            super().execute_job(job, queue)

    def main_work_horse(self, job: RQJob, queue: Queue) -> None:
        """The job's process: tied to its parent first of all."""
        die_with_parent(self.pid or 0)
        super().main_work_horse(job, queue)

    def perform_job(self, job: RQJob, queue: Queue, execution: Execution) -> bool:
        """Within the job's process."""
        self.prepare_process()
        return super().perform_job(job, queue, execution)

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the job's process. Not its group: just after the fork that is still the worker's own."""
        if self.horse_pid:
            with suppress(ProcessLookupError):
                os.kill(self.horse_pid, sig)

    def monitor_work_horse(self, job: RQJob, queue: Queue, execution: Execution) -> None:
        """RQ's; closes the gaps where a signal came before the fork, or a kill after the commit."""
        if self._stop_requested:
            self.kill_horse()
        super().monitor_work_horse(job, queue, execution)
        if self.connection.sismember(ACTIVE_KEY, job.id):
            finalize(self.connection, job.id)

    def maintain_heartbeats(self, job: RQJob, execution: Execution) -> None:
        """Also kills a job that was canceled and has not stopped by itself since the last beat."""
        super().maintain_heartbeats(job, execution)
        try:
            record = read_records(self.connection, [job.id])[0]
        except (ConnectionError, TimeoutError):
            return  # said by the beat itself
        if record is not None and record.cancel:
            if self._cancel_seen == execution.id:
                self.kill_horse()
            self._cancel_seen = execution.id

    def handle_warm_shutdown_request(self) -> None:
        """Kill the job's process: `handle_job_failure` then puts the job back."""
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]
        self.kill_horse()

    def handle_work_horse_killed(self, job: RQJob, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """Remember whether it was us."""
        self._killed_by_us = self.asked_to_stop
        super().handle_work_horse_killed(  # type: ignore[no-untyped-call]
            job, retpid, ret_val, rusage
        )


def _abandoned(reason: str) -> JobAbandoned:
    return JobAbandoned(
        f"the process that ran the job died, and no retry is left: {reason.strip(' ;')}",
        "If it was killed for its memory, give the worker more, or run fewer jobs beside it.",
    )
