"""Worker-side handle of one job execution: progress, cancellation, fencing.

The worker attaches an `Assignment` to the RQ job that it performs; the task reads it with `assigned()`.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, TimeoutError
from rq import get_current_job
from rq.job import Job as RQJob
from rq.utils import as_text

from services.errors import (
    ExecutionSuperseded,
    GraftwerkError,
    InternalError,
    JobCanceled,
    MemoryUnavailable,
)
from services.jobs.disk_reservations import RESERVATIONS_KEY, DiskNeed, reserve, reserved_bytes
from services.jobs.events import publish_progress, publish_tokens
from services.jobs.identity import service_tag
from services.jobs.memory import (
    MemoryAdmission,
    machine,
    needed_memory,
    note_needed_memory,
    read_memory,
)
from services.jobs.records import Failure, log_key, record_key, transact
from services.jobs.status import WAITS_FOR, JobProgress, WaitingFor
from services.jobs.waiting import change_waits_for
from services.kinds.generate import TokenPiece
from services.logs import log_ids
from services.progress import Progress
from services.settings import Settings
from services.timestamps import utc_text

INTERVAL_SECONDS = 0.25
"""Shortest interval between two accesses to Redis."""

SMOOTHING_SECONDS = 5.0
"""Time constant of the smoothed rate from which the remaining time is computed."""

LOG_LINES_KEPT = 5000

logger = logging.getLogger(__name__)


class Pace:
    """Smoothed rate of one stage, from which the remaining time is computed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.stage: str | None = None
        self.since = 0.0
        self.done = 0
        self.rate: float | None = None

    def eta_seconds(self, progress: Progress) -> float | None:
        """Returns the remaining seconds of the stage; None while total or rate are unknown.

        The rate is an exponential moving average: a new value has the weight 1 - exp(-seconds / 5).
        """
        now = self.clock()
        if progress.stage != self.stage or progress.done < self.done:
            self.stage, self.rate = progress.stage, None
        elif now > self.since:
            self._learn((progress.done - self.done) / (now - self.since), now - self.since)
        self.since, self.done = now, progress.done
        if not self.rate or progress.total <= 0:
            return None
        return max(0.0, (progress.total - progress.done) / self.rate)

    def _learn(self, rate: float, seconds: float) -> None:
        weight = 1.0 - math.exp(-seconds / SMOOTHING_SECONDS)
        self.rate = rate if self.rate is None else self.rate + weight * (rate - self.rate)


class JobExecution:
    """One execution of one job: reports progress and text, checks cancellation, and refuses to publish once superseded."""

    request_id = ""
    """Id of the HTTP request that submitted the job, as far as it is known."""

    def __init__(
        self, job_id: str, execution_id: str, redis: Redis, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.job_id = job_id
        self.execution_id = execution_id
        self.redis = redis
        self.clock = clock
        self._key = record_key(job_id)
        self._pace = Pace(clock)
        self._held: Progress | None = None
        self._waits_for: WaitingFor | None = None
        self._written_waits_for: WaitingFor | None = None
        self._unsent: list[TokenPiece] = []
        self._stage = ""
        self._written_at = -math.inf
        self._asked_at = -math.inf
        self._canceled = False
        self._current = True

    @classmethod
    def read(cls, job_id: str, execution_id: str, redis: Redis) -> "JobExecution":
        """Returns an execution that knows the request of its job."""
        execution = cls(job_id, execution_id, redis)
        execution.request_id = as_text(redis.hget(record_key(job_id), "request_id") or b"")
        return execution

    def log_ids(self) -> AbstractContextManager[None]:
        """Adds the ids of the request, the job and the execution to what a block logs."""
        return log_ids(request=self.request_id, job=self.job_id, execution=self.execution_id)

    @property
    def name(self) -> str:
        """Name of the execution, `<job>.<run>.<service>`: its staging folder on the volume has this name."""
        return ".".join(part for part in (self.job_id, self.execution_id, self.service) if part)

    @cached_property
    def service(self) -> str:
        """Tag of the service, which may share the volume with others."""
        return service_tag(self.redis)

    def start(self, worker: str) -> None:
        """Makes this execution, of the worker of this name, the current one and removes the error of an earlier one."""
        self.redis.hset(self._key, mapping={"execution": self.execution_id, "worker": worker})
        self.redis.hdel(self._key, WAITS_FOR)
        error = self.redis.hget(self._key, "error")
        if error is not None and json.loads(error)["code"] != JobCanceled.code:
            self.redis.hdel(self._key, "error")

    def report(self, progress: Progress, waits_for: WaitingFor | None = None) -> None:
        """Takes the progress of the job, and what it waits for; most calls only keep them, and the last ones are always written."""
        self._held, self._waits_for = progress, waits_for
        if progress.stage != self._stage or self.clock() - self._written_at >= INTERVAL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the progress and the text that were kept, if any. A Redis outage only delays them."""
        self.publish_tokens(())
        if self._held is None:
            return
        progress, self._held = self._held, None
        self._stage, self._written_at = progress.stage, self.clock()
        state = JobProgress(
            **asdict(progress), fraction=progress.fraction, eta_seconds=self._pace.eta_seconds(progress)
        )
        try:
            self._ask()
            if self._current:
                self.redis.hset(self._key, "progress", state.model_dump_json())
                self._write_waits_for()
                publish_progress(self.redis, self.job_id, state)
        except (ConnectionError, TimeoutError) as error:
            logger.warning("Job %s: progress not written: %s", self.job_id, error)

    def _write_waits_for(self) -> None:
        if self._written_waits_for != self._waits_for:
            change_waits_for(self.redis, self.job_id, self._written_waits_for, self._waits_for)
            self._written_waits_for = self._waits_for

    def check_canceled(self) -> None:
        """Raises JobCanceled if the job was canceled. Redis is read at most every 0.25 s."""
        try:
            self._ask()
        except (ConnectionError, TimeoutError) as error:
            logger.warning("Job %s: cancellation not checked: %s", self.job_id, error)
        if self._canceled:
            raise JobCanceled("The job was canceled while it ran.")

    def is_current(self) -> bool:
        """Returns False once another execution of the job has started. Always reads Redis."""
        self._asked_at = -math.inf
        self._ask()
        return self._current

    def reserve_disk(self, need: DiskNeed) -> None:
        """Reserves bytes of the volume for the job: its size may not have been known when it was submitted.

        Raises:
            DiskFull: other jobs have reserved the free bytes.
        """

        def attempt(pipe: Pipeline) -> None:
            need.check(reserved_bytes(self.redis, need.taken, except_job=self.job_id))
            pipe.multi()
            reserve(pipe, self.job_id, need)

        transact(self.redis, attempt, RESERVATIONS_KEY)

    def require_memory(self, needed_bytes: int) -> None:
        """Reserves memory if the need was not known before the job was started: its inputs were not there.

        Where it is not available, the job goes back to its queue with its need on the record, and its worker runs others meanwhile.

        Raises:
            MemoryUnavailable: the memory is not available now.
            InsufficientMemory: it can never fit.
        """
        if not needed_bytes or needed_memory(self.redis, self.job_id):
            return  # the worker has waited for it
        reason = MemoryAdmission(self.redis, self.job_id, read_memory(), machine()).admit(needed_bytes, 0)
        if reason:
            note_needed_memory(self.redis, self.job_id, needed_bytes)
            raise MemoryUnavailable(reason, "The job waits in its queue until the memory is available.")

    def ensure_current(self) -> None:
        """Checks right before publishing that the job still belongs to this execution.

        Raises:
            ExecutionSuperseded: another execution of the job has started.
            JobCanceled: the job was canceled.
        """
        if not self.is_current():
            raise ExecutionSuperseded(
                f"Another execution of job {self.job_id} has started, so this one publishes nothing.",
                "This worker did not reach Redis for too long, and another worker has taken the job.",
            )
        self.check_canceled()

    def log(self, line: str) -> None:
        """Appends a line to the job's log, which everyone who may read the job may read."""
        now = utc_text(datetime.now(UTC), timespec="milliseconds")
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.rpush(log_key(self.job_id), *(f"{now} {part}" for part in line.splitlines() or [""]))
            pipe.ltrim(log_key(self.job_id), -LOG_LINES_KEPT, -1)
            pipe.execute()

    def publish_tokens(self, pieces: Sequence[TokenPiece]) -> None:
        """Publishes new text as `token` events of this job, one for each piece. A Redis outage only delays it."""
        self._unsent += pieces
        if not self._unsent or not self._current:
            return
        try:
            publish_tokens(self.redis, self.job_id, self._unsent)
            self._unsent = []
        except (ConnectionError, TimeoutError) as error:
            logger.warning("Job %s: text not published yet: %s", self.job_id, error)

    def fail(self, error: GraftwerkError) -> None:
        """Records the error of the job before RQ commits the failure."""
        if self.is_current():
            self.redis.hset(self._key, "error", Failure.of(error).dumps())

    def _ask(self) -> None:
        if self.clock() - self._asked_at < INTERVAL_SECONDS:
            return
        cancel, execution = self.redis.hmget(self._key, "cancel", "execution")
        self._asked_at = self.clock()
        self._canceled = cancel is not None
        self._current = execution is not None and as_text(execution) == self.execution_id


@dataclass(frozen=True, slots=True)
class Assignment:
    """Execution and settings that the worker passes to the task that it runs."""

    execution: JobExecution
    settings: Settings


class AssignedJob(RQJob):
    """RQ's job in our workers, with the assignment for its task."""

    assignment: Assignment | None = None


def assigned() -> Assignment:
    """Returns the assignment of the task that runs in this thread.

    Raises:
        InternalError: no worker of ours runs in this thread.
    """
    job = get_current_job()
    if not isinstance(job, AssignedJob) or job.assignment is None:
        raise InternalError("A task ran outside of a Graftwerk worker.")
    return job.assignment
