"""The loop of the inference worker: models for sessions, prompts for engines, events for sessions, results for jobs.

It knows sessions, engines and a clock, and neither queue nor Redis. Each round schedules, steps and publishes.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.errors import GraftwerkError, JobTimeout
from services.generate import Event
from services.kinds.shared import JobResult
from services.progress import Progress
from worker.inference.cached_model import CachedModel
from worker.inference.model_cache import ModelCache
from worker.inference.session import Session
from worker.lifecycle import JobContext, JobFailure, catching, failing


class ScheduledJob(Protocol):
    """A job as the scheduler sees it. A job with a `stop_reason` fails with it in the next round."""

    context: JobContext
    limit_seconds: float
    stop_reason: GraftwerkError | None


logger = logging.getLogger("graftwerk.generate")

J = TypeVar("J", bound=ScheduledJob)


@dataclass(slots=True, eq=False)
class Entry(Generic[J]):
    """A job, its session and the model that it runs on; a session that waits for its model is not ready."""

    job: J
    session: Session
    deadline: float
    model: CachedModel | None = None
    is_ready: bool = False


class Scheduler(Generic[J]):
    """Runs the sessions of many jobs on shared models. All methods except `stop_overdue` belong to one thread."""

    def __init__(
        self,
        models: ModelCache,
        *,
        on_success: Callable[[J, JobResult], None],
        on_failure: Callable[[J, JobFailure], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The callbacks get a job that is no longer scheduled; its failure is on its record already."""
        self.models = models
        self.is_loading = False
        self.is_stopping = False
        self._on_success, self._on_failure = on_success, on_failure
        self._clock = clock
        self._entries: dict[J, Entry[J]] = {}  # those that submitted a prompt last come last
        self._owners: dict[str, Entry[J]] = {}  # by the name of the execution

    @property
    def has_waiting(self) -> bool:
        """True while a session waits until its model fits into memory."""
        return any(not entry.is_ready for entry in self._entries.values())

    @property
    def runs_models(self) -> bool:
        """True while a session runs on a model of this process, or waits for one."""
        return any(
            not entry.is_ready or (entry.model is not None and entry.model.engine.computes_here)
            for entry in self._entries.values()
        )

    def add(self, job: J, session: Session) -> None:
        """Schedules a job from the next round on."""
        entry = Entry(job, session, self._clock() + job.limit_seconds)
        self._entries[job] = self._owners[job.context.execution.name] = entry

    def remove(self, job: J) -> None:
        """Cancels and closes the session of a job and releases its model; a job that is not scheduled is ignored."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return
        del self._owners[job.context.execution.name]
        self._release(entry)
        with job.context.execution.log_ids():
            with catching() as caught:
                entry.session.cancel()
                entry.session.close()
            if caught.error is not None:
                logger.warning("Job %s: not closed: %s", job.context.execution.job_id, caught.error)

    def step(self) -> None:
        """Runs one round: at most one token for each running sequence, one text or window for each other session."""
        self._end_stopped()
        self._schedule()
        self._step_engines()
        self._publish()

    def stop_overdue(self) -> None:
        """Notes a stop reason for jobs over their time limit and cancels their sessions. May be called from any thread."""
        for entry in list(self._entries.values()):
            if entry.job.stop_reason is None and self._clock() > entry.deadline:
                entry.job.stop_reason = JobTimeout(
                    f"The job took longer than {entry.job.limit_seconds:g} s.", "Raise JOB_TIMEOUT_SECONDS."
                )
                entry.session.cancel()

    # ---- schedule -------------------------------------------------------------------------------------

    def _end_stopped(self) -> None:
        for entry in list(self._entries.values()):
            if entry.job.stop_reason is not None:
                with self._failing(entry):
                    raise entry.job.stop_reason

    def _schedule(self) -> None:
        """Provides models, then lets each session work; free slots of the engines go to the sessions in turn."""
        for entry in list(self._entries.values()):
            with self._failing(entry):
                self._provide_model(entry)
        turn = deque(entry for entry in self._entries.values() if entry.is_ready)
        while turn:
            entry = turn.popleft()
            submits = _can_submit(entry)
            with self._failing(entry):
                if not entry.session.done:
                    entry.session.step()
            if submits and entry.job in self._entries:
                self._entries[entry.job] = self._entries.pop(entry.job)
                if _can_submit(entry):
                    turn.append(entry)

    def _provide_model(self, entry: Entry[J]) -> None:
        needed = entry.session.needs()
        if entry.model is not None and entry.model.key != needed:
            self._release(entry)
        if entry.model is None and needed is not None:
            self.is_loading = True
            try:
                entry.model = self.models.acquire(needed, entry.job.context)
            finally:
                self.is_loading = False
            if entry.model is None:
                entry.is_ready = False
                entry.job.context.execution.report(Progress("waiting for memory"))
                return
            entry.session.attach(entry.model)
        entry.is_ready = True

    # ---- step -----------------------------------------------------------------------------------------

    def _step_engines(self) -> None:
        for model in self.models.busy:
            with catching() as caught:
                events = model.engine.step()
            if caught.error is not None:
                self._fail_model(model, caught.error)
                continue
            for event in events:
                self._route(model, event)

    def _route(self, model: CachedModel, event: Event) -> None:
        entry = self._owners.get(model.owners.get(event.request_id, ""))
        if entry is not None:  # else its job was stopped
            with self._failing(entry):
                entry.session.on_event(event)

    def _fail_model(self, model: CachedModel, error: Exception) -> None:
        """Fails all jobs of a model whose engine raised, and evicts it: its state is undefined."""
        for entry in list(self._entries.values()):
            if entry.model is not None and entry.model.root is model:
                with self._failing(entry):
                    raise error
        self.models.evict(model)

    # ---- publish --------------------------------------------------------------------------------------

    def _publish(self) -> None:
        for entry in list(self._entries.values()):
            result: JobResult | None = None
            with self._failing(entry):
                if entry.is_ready:
                    entry.session.report()
                    result = self._result(entry)
            if result is not None:
                self.remove(entry.job)
                self._on_success(entry.job, result)

    def _result(self, entry: Entry[J]) -> JobResult | None:
        # The outputs of a session that was canceled are complete too, cut off.
        is_canceled = entry.job.stop_reason is not None or self.is_stopping
        return entry.session.result() if entry.session.done and not is_canceled else None

    # ---- ends -----------------------------------------------------------------------------------------

    @contextmanager
    def _failing(self, entry: Entry[J]) -> Iterator[None]:
        """Fails the job if the block raises."""
        with failing(entry.job.context) as failure:
            yield
        if failure.error is not None:
            self.remove(entry.job)
            self._on_failure(entry.job, failure)

    def _release(self, entry: Entry[J]) -> None:
        if entry.model is not None:
            self.models.release(entry.model, owner=entry.job.context.execution.name)
            entry.model = None


def _can_submit(entry: Entry[J]) -> bool:
    return entry.model is not None and entry.session.has_prompts and entry.model.engine.free_slots > 0
