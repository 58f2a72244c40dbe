"""Worker that runs each job in a process of its own."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job as RQJob

from services.errors import InsufficientMemory
from services.isolation.parent_death import die_with_parent
from services.jobs.finalization import end_waiting, finalize
from services.jobs.memory import (
    MemoryAdmission,
    machine,
    needed_memory,
    note_used,
    read_memory,
    resident_bytes,
)
from services.jobs.records import ACTIVE_KEY, read_records
from services.jobs.rq_workers import TrackedWorker, no_check
from services.jobs.status import WaitingFor
from services.jobs.waiting import end_waiting_for, hold_back, waited_seconds
from services.settings import Settings

CANCEL_SECONDS = 5
"""Time that a canceled job has to stop before its process is killed."""


class ForkWorker(TrackedWorker, Worker):
    """Worker that runs each job in a forked process, whose parent has imported the packages that jobs need."""

    def __init__(
        self,
        queue_name: str,
        *,
        name: str,
        redis: Redis,
        settings: Settings,
        prepare_process: Callable[[], None],
        check_volume: Callable[[], None] = no_check,
    ) -> None:
        """`prepare_process` is called in each job's process before the task."""
        super().__init__(queue_name, name=name, redis=redis, settings=settings, check_volume=check_volume)
        self.prepare_process = prepare_process
        self._cancel_seen: tuple[str, float] | None = None

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """Runs a job that must still run and whose memory is there."""
        if self.is_waiting(job) and self._is_admitted(job, queue):
            super().execute_job(job, queue)

    def _is_admitted(self, job: RQJob, queue: Queue) -> bool:
        redis, needed_bytes = self.connection, needed_memory(self.connection, job.id)
        admission = MemoryAdmission(redis, job.id, read_memory(), machine())
        try:
            reason = admission.admit(needed_bytes, waited_seconds(redis, job.id)) if needed_bytes else ""
        except InsufficientMemory as error:
            end_waiting(redis, job.id, error)
            queue.intermediate_queue.remove(job.id)
            return False
        if reason:
            hold_back(redis, queue, job.id, WaitingFor(what="memory", message=reason))
            return False
        end_waiting_for(redis, job.id)
        return True

    def main_work_horse(self, job: RQJob, queue: Queue) -> None:
        """Runs in the job's process, which dies with its parent."""
        die_with_parent(self.pid or 0)
        super().main_work_horse(job, queue)

    def perform_job(self, job: RQJob, queue: Queue, execution: Execution) -> bool:
        """Runs in the job's process."""
        self.prepare_process()
        return super().perform_job(job, queue, execution)

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kills the job's process, not its group: right after the fork that is still the worker's."""
        if self.horse_pid:
            with suppress(ProcessLookupError):
                os.kill(self.horse_pid, sig)

    def monitor_work_horse(self, job: RQJob, queue: Queue, execution: Execution) -> None:
        """Calls RQ's; covers a signal before the fork and a kill after the commit."""
        with self._read_execution(job, execution).log_ids():
            if self._stop_requested:
                self.kill_horse()
            super().monitor_work_horse(job, queue, execution)
            if self.connection.sismember(ACTIVE_KEY, job.id):
                finalize(self.connection, job.id)

    def maintain_heartbeats(self, job: RQJob, execution: Execution) -> None:
        """Also kills a canceled job that has not stopped within `CANCEL_SECONDS`."""
        super().maintain_heartbeats(job, execution)
        try:
            note_used(self.connection, job.id, resident_bytes(self.horse_pid))
            record = read_records(self.connection, [job.id])[0]
        except (ConnectionError, TimeoutError):
            return  # logged by the heartbeat
        if record is not None and record.cancel:
            if self._cancel_seen is None or self._cancel_seen[0] != execution.id:
                self._cancel_seen = execution.id, time.monotonic()
            if time.monotonic() - self._cancel_seen[1] >= CANCEL_SECONDS:
                self.kill_horse()

    def handle_warm_shutdown_request(self) -> None:
        """Kills the job's process; `handle_job_failure` then puts the job back."""
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]
        self.kill_horse()

    def handle_work_horse_killed(self, job: RQJob, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """Remembers if this worker killed the process."""
        self._killed_by_us = self.asked_to_stop
        super().handle_work_horse_killed(  # type: ignore[no-untyped-call]
            job, retpid, ret_val, rusage
        )
