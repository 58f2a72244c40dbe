"""Drivers of the real engine and of the real scheduler, in the test's own process."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from services.errors import GraftwerkError
from services.generate import (
    Completion,
    Engine,
    Event,
    GenerationRequest,
    LoadedModel,
    OutputFailed,
    OutputFinished,
    Score,
    score_window,
    window_sizes,
    windows_of,
)
from services.generate.kv_memory import KVMemory
from services.kinds.shared import JobResult, ModelRequest
from services.models.store import ModelStore
from services.progress import CheckCanceled, Report, ignore_progress, never_canceled
from tests.job_context import job_context
from worker.inference.cached_model import CachedModel
from worker.inference.model_cache import ModelCache
from worker.inference.model_key import key_of
from worker.inference.scheduler import Scheduler
from worker.inference.session import open_session
from worker.lifecycle import JobContext, JobFailure

VOCABULARY = 420
CONTEXT = 160


def run(
    loaded: LoadedModel, requests: Sequence[GenerationRequest], slots: int = 16, *, chunk: int | None = None
) -> dict[str, list[Completion]]:
    """Runs all requests in one engine; returns the outputs by request id."""
    engine = Engine(loaded, slots=slots, chunk=chunk)
    for request in requests:
        engine.submit(request)
    return outputs_of(drained(engine))


def alone(loaded: LoadedModel, request: GenerationRequest) -> list[Completion]:
    return run(loaded, [request])[request.id]


def drained(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def outputs_of(events: Sequence[Event]) -> dict[str, list[Completion]]:
    outputs: dict[str, list[Completion]] = {}
    for event in events:
        assert not isinstance(event, OutputFailed), event.error
        if isinstance(event, OutputFinished):
            outputs.setdefault(event.request_id, []).append(event.output)
    return {key: sorted(found, key=lambda output: output.index) for key, found in outputs.items()}


def score(
    loaded: LoadedModel, token_ids: Sequence[int], *, context: int | None = None, stride: int | None = None
) -> Score:
    """Returns the score of a whole text, window by window as a perplexity job computes it."""
    window, step = window_sizes(loaded.context_length, context=context, stride=stride)
    total = Score()
    for place in windows_of(len(token_ids), context=window, stride=step):
        total += score_window(loaded, token_ids, place)
    return total


@dataclass(eq=False)
class DrivenJob:
    """A job without a queue; `result` or `error` is set once it has ended."""

    context: JobContext
    limit_seconds: float = 600
    stop_reason: GraftwerkError | None = None
    result: JobResult | None = None
    error: GraftwerkError | None = None


class Driver:
    """The real scheduler and one loaded model of the folder's parent, which every job runs on."""

    def __init__(
        self, loaded: LoadedModel, choice: ModelRequest, slots: int = 8, memory: KVMemory | None = None
    ) -> None:
        """`choice` is a request that names the model; all jobs have to load it in the same way."""
        self.volume: Path = loaded.folder.parent
        self._runs = count(1)
        self.scheduler: Scheduler[DrivenJob] = Scheduler(
            ModelCache("cpu", sys.maxsize, slots), on_success=self._succeed, on_failure=self._fail
        )
        engine = Engine(loaded, slots=slots, memory=memory)
        model = CachedModel(key_of(choice, ModelStore(self.volume)), loaded, engine)
        self.scheduler.models.models.append(model)

    def add(self, request: ModelRequest, context: JobContext | None = None) -> DrivenJob:
        """Schedules a job."""
        job = DrivenJob(context or job_context(self.volume, run=str(next(self._runs))))
        self.scheduler.add(job, open_session(request, job.context))
        return job

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Runs rounds until the condition holds."""
        while not condition():
            self.scheduler.step()

    def _succeed(self, job: DrivenJob, result: JobResult) -> None:
        job.result = result

    def _fail(self, job: DrivenJob, failure: JobFailure) -> None:
        job.error = failure.error


def run_job(
    loaded: LoadedModel,
    request: ModelRequest,
    *,
    slots: int = 8,
    memory: KVMemory | None = None,
    report: Report = ignore_progress,
    check_canceled: CheckCanceled = never_canceled,
) -> JobResult:
    """Runs a job on a loaded model of the folder's parent, by the real scheduler. Raises the error that it fails with."""
    driver = Driver(loaded, request, slots, memory)
    job = driver.add(request, job_context(driver.volume, report=report, check_canceled=check_canceled))
    driver.run_until(lambda: job.result is not None or job.error is not None)
    if job.error is not None:
        raise job.error
    assert job.result is not None
    return job.result
