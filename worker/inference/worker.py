"""RQ side of the inference worker: takes many jobs at once from its queue and ends each on its own.

The work itself is the scheduler's. A thread sends the heartbeats of all jobs and finds out which ones have to stop.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue, SimpleWorker
from rq.job import Job as RQJob
from rq.utils import as_text, now
from rq.worker.base import WorkerStatus

from services.engines.versions import engine_versions
from services.errors import ExecutionSuperseded, JobCanceled
from services.jobs.execution import INTERVAL_SECONDS, JobExecution
from services.jobs.memory import is_memory_wanted
from services.jobs.put_back import put_back
from services.jobs.records import record_key
from services.jobs.rq_workers import MONITORING_SECONDS, TrackedWorker
from services.jobs.waiting import end_waiting_for, note_waiting_for, wait_at_front
from services.kinds.shared import JobResult
from services.settings import Settings
from worker.inference.llama_cpp_models import LlamaCppModels
from worker.inference.memory_wait import MemoryWait
from worker.inference.model_cache import ModelCache
from worker.inference.model_memory import kv_cache_state, kv_limit_of, memory_limit_bytes
from worker.inference.running_job import RunningJob
from worker.inference.scheduler import Scheduler
from worker.inference.served_engine import ServedEngine
from worker.inference.session_opener import SessionOpener
from worker.inference.vllm_models import VllmModels
from worker.lifecycle import JobContext, JobFailure, failing, result_as_json, volume_check

IDLE_SECONDS = 0.05
"""Interval between looks for new jobs while other servers do all the work."""

logger = logging.getLogger("graftwerk.generate")


class Interrupted(BaseException):
    """Raised by the signal handler while a model is being loaded, which may take minutes."""


class GenerateWorker(TrackedWorker, SimpleWorker):
    """Runs the jobs of the generate queue, up to `generate_slots` at once."""

    def __init__(self, *, name: str, redis: Redis, settings: Settings, queue_name: str = "generate") -> None:
        super().__init__(
            queue_name, name=name, redis=redis, settings=settings, check_volume=volume_check(settings)
        )
        limit_bytes = settings.resident_models_bytes or memory_limit_bytes(settings.device)
        self._wakeup = threading.Event()
        vllm = VllmModels(settings, limit_bytes, self._wakeup.set)
        llama_cpp = LlamaCppModels(settings, self._wakeup.set)
        models = ModelCache(
            settings.device,
            limit_bytes,
            settings.generate_slots,
            loaders={"vllm": vllm, "llama.cpp": llama_cpp},
            kv_limit=kv_limit_of(settings),
        )
        self.session_scheduler: Scheduler[RunningJob] = Scheduler(
            models, on_success=self._succeed, on_failure=self._fail
        )
        self.jobs: list[RunningJob] = []
        self.memory_wait = MemoryWait(models, settings.generate_engine)
        self.opener = SessionOpener(redis, settings, self.memory_wait, self._wakeup.set)
        self._engines = json.dumps(engine_versions({"vllm": settings.vllm_program}))

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Also drops unused models while another job waits for memory of this machine and none runs here."""
        super().heartbeat(timeout, pipeline)
        models = self.session_scheduler.models
        if pipeline is None and not self.jobs and models.models:
            models.evict_idle(self.settings.engine_idle_seconds)
            if is_memory_wanted(self.connection):
                models.evict_unused()
            self._report_models()

    def serialize(self) -> dict[str, Any]:
        """Adds the device, the engines, and the state of keys and values to the fields of this worker's entry."""
        own = {"device": self.opener.device_name, "engines": self._engines, "kv_cache": self._kv_cache()}
        return {**super().serialize(), **own}

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """Runs this job and all jobs that arrive meanwhile, until none is left."""
        with self._heartbeat():
            self._begin(job, queue)
            while self.jobs:
                if self.asked_to_stop:
                    self._put_back_all()
                    break
                self._admit()
                with suppress(Interrupted):
                    self.session_scheduler.step()
                self._wait_if_idle()
        self._report_models()
        self.set_state(WorkerStatus.IDLE)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stops after the current token, and interrupts the loading of a model."""
        super().request_stop(signum, frame)
        self.session_scheduler.is_stopping = True
        if self.session_scheduler.is_loading:
            raise Interrupted

    # ---- start ----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Takes more jobs while there are free slots and no job waits for its session or its model."""
        for job in [job for job in self.jobs if job.session is None]:
            self._open(job)
        while len(self.jobs) < self.settings.generate_slots and not self._has_waiting:
            taken = self._take_neighbor()
            if taken is None:
                return
            self._begin(*taken)

    def _take_neighbor(self) -> tuple[RQJob, Queue] | None:
        """Takes the next job, if Redis answers: the running jobs survive an outage."""
        try:
            return self._take_compatible()
        except (ConnectionError, TimeoutError) as error:
            logger.warning("No further job is taken while Redis does not answer: %s", error)
            return None

    def _take_compatible(self) -> tuple[RQJob, Queue] | None:
        """Takes the next job, unless it or the running one must run alone: it then waits until no other job runs."""
        head = self.connection.lindex(self.queues[0].key, 0)
        if (
            head is None
            or not self.has_volume()
            or self.memory_wait.blocks(as_text(head))
            or any(job.job.id == as_text(head) for job in self.jobs)  # lost by mistake: it is taken back
            or (self.jobs and (self.jobs[0].runs_alone or self._must_run_alone(as_text(head))))
        ):
            return None
        return self.queue_class.dequeue_any(
            self.queues, None, self.connection, job_class=self.job_class, serializer=self.serializer
        )

    def _must_run_alone(self, job_id: str) -> bool:
        return bool(self.connection.hexists(record_key(job_id), "alone"))

    @property
    def _has_waiting(self) -> bool:
        return self.session_scheduler.has_waiting or any(job.session is None for job in self.jobs)

    def _begin(self, job: RQJob, queue: Queue) -> None:
        if not self.is_waiting(job):
            return
        runs_alone = self._must_run_alone(job.id)
        if runs_alone and self.jobs:  # it came to the head of the queue meanwhile
            put_back(self.connection, queue, job.id)
            return
        if self._leave_for_memory(job, queue):
            return
        execution = self.prepare_execution(job)
        context = JobContext.of(self._read_execution(job, execution), self.settings)
        limit_seconds = float(job.timeout or self.settings.job_timeout_seconds)
        running = RunningJob(
            job=job, queue=queue, execution=execution, context=context, limit_seconds=limit_seconds,
            runs_alone=runs_alone,
        )  # fmt: skip
        self.jobs.append(running)
        self.prepare_job_execution(job, True)
        job.started_at = now()
        self._open(running)

    def _leave_for_memory(self, job: RQJob, queue: Queue) -> bool:
        """Leaves a job in its queue while models of running jobs take the memory that it needs."""
        reason = self.opener.memory_shortage(job)
        if reason is None:
            end_waiting_for(self.connection, job.id)
            return False
        wait_at_front(self.connection, queue, job.id, reason)
        return True

    def _open(self, job: RunningJob) -> None:
        """Opens the job's session, unless it is not known yet which server has its model."""
        with failing(job.context) as failure:
            if job.stop_reason is not None:
                raise job.stop_reason
            job.context.execution.check_canceled()
            job.session = self.opener.open(job)
        if failure.error is not None:
            self._fail(job, failure)
        elif job.waiting_for is not None:
            note_waiting_for(self.connection, job.job.id, job.waiting_for)
            self._put_back(job, "the models of other jobs take the memory")
        elif job.session is not None:
            self.session_scheduler.add(job, job.session)

    def _wait_if_idle(self) -> None:
        """Waits for data or new jobs while other servers do all the work."""
        if self.jobs and not self.session_scheduler.runs_models:
            self._wakeup.wait(IDLE_SECONDS)
            self._wakeup.clear()

    # ---- end ------------------------------------------------------------------------------------------

    def _succeed(self, job: RunningJob, result: JobResult) -> None:
        with failing(job.context) as failure:
            value = result_as_json(result)
            job.context.execution.flush()
        if failure.error is not None:
            self._fail(job, failure)
            return
        self._remove(job)
        with job.context.execution.log_ids():
            self._finalize_success(job.job, job.queue, job.execution, value)

    def _fail(self, job: RunningJob, failure: JobFailure) -> None:
        self._remove(job)
        error, cause = failure.error, failure.cause
        assert error is not None and cause is not None
        with job.context.execution.log_ids():
            self._finalize_failure(
                job.job, job.queue, job.execution, (type(error), error, cause.__traceback__)
            )

    def _put_back_all(self) -> None:
        for job in reversed(self.jobs.copy()):  # each goes to the front of the queue
            self._put_back(job, "the worker was stopped")

    def _put_back(self, job: RunningJob, reason: str) -> None:
        """Ends an execution whose job loses no try by it."""
        self._remove(job)
        self._killed_by_us = True
        with job.context.execution.log_ids():
            self.handle_job_failure(job.job, job.queue, exc_string=reason, execution=job.execution)

    def _remove(self, job: RunningJob) -> None:
        self.jobs.remove(job)
        self.session_scheduler.remove(job)

    # ---- heartbeat ------------------------------------------------------------------------------------

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Runs a thread that sends the heartbeats of all jobs and finds out which ones have to stop.

        It is a thread because loading a model keeps the worker busy for a long time.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._heartbeat_loop, args=(over,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _heartbeat_loop(self, over: threading.Event) -> None:
        sent_at = time.monotonic()
        while not over.wait(INTERVAL_SECONDS):
            jobs = self.jobs.copy()
            self.session_scheduler.stop_overdue()
            for job in jobs:
                with job.context.execution.log_ids():
                    self._check_stop(job)
            if time.monotonic() - sent_at >= MONITORING_SECONDS:
                sent_at = time.monotonic()
                for job in jobs:
                    with job.context.execution.log_ids():
                        self.maintain_heartbeats(job.job, job.execution)
                self._report_models()

    def _report_models(self) -> None:
        """Writes the models in memory and the processes that have them to this worker's entry, for the operator."""
        models = sorted(self.session_scheduler.models.models, key=lambda model: model.key.name)
        names = [model.key.name for model in models]
        processes = [
            {"model": model.key.name, "engine": model.key.engine, "pid": model.engine.server.pid}
            for model in models
            if isinstance(model.engine, ServedEngine)
        ]
        found = {
            "models": json.dumps(names),
            "processes": json.dumps(processes),
            "kv_cache": self._kv_cache(),
        }
        with suppress(ConnectionError, TimeoutError):  # logged by the heartbeat
            self.connection.hset(self.key, mapping=cast(Any, found))

    def _kv_cache(self) -> str:
        return kv_cache_state(self.session_scheduler.models.memory).model_dump_json()

    def _check_stop(self, job: RunningJob) -> None:
        """Notes the reason for a job to stop, and cancels its session here: the engine then ends its requests with the next step."""
        probe = JobExecution(job.job.id, job.execution.id, self.connection)
        try:
            probe.ensure_current()
        except (JobCanceled, ExecutionSuperseded) as error:
            job.stop_reason = error
        except (ConnectionError, TimeoutError) as error:
            logger.warning("Job %s: unknown whether it has to stop: %s", job.job.id, error)
        if job.session is not None and (job.stop_reason is not None or self.asked_to_stop):
            job.session.cancel()
