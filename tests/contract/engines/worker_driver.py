"""The real scheduler of a worker, with an engine whose servers are real processes."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar, Generic, TypeVar

from services.errors import GraftwerkError
from services.generate_engines import Engine
from services.kinds import parse_request
from services.progress import Report, ignore_progress
from services.settings import Settings
from tests.contract.generate.engine_driver import DrivenJob
from tests.job_context import job_context
from worker.inference.model_cache import ModelCache, ModelLoader
from worker.inference.scheduler import Scheduler
from worker.inference.session import open_session

PATIENCE_SECONDS = 120.0

AnyLoader = TypeVar("AnyLoader", bound=ModelLoader)


class EngineWorker(Generic[AnyLoader]):
    """The scheduler, and the loader of one engine. `defaults` are fields of generate requests that name no kind."""

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        make_loader: Callable[[Callable[[], None]], AnyLoader],
        limit_bytes: int = sys.maxsize,
    ) -> None:
        self.settings, self.wakeup = settings, threading.Event()
        self.loader = make_loader(self.wakeup.set)
        self.models = ModelCache("cpu", limit_bytes, settings.generate_slots, loaders={engine: self.loader})
        self.scheduler: Scheduler[DrivenJob] = Scheduler(
            self.models, on_success=self._succeed, on_failure=self._fail
        )
        self._runs = count(1)

    def add(self, report: Report = ignore_progress, **request: Any) -> DrivenJob:
        """Adds a job."""
        body = request if "kind" in request else {"kind": "generate", **self.defaults, **request}
        context = job_context(self.settings.models_dir, run=str(next(self._runs)), report=report)
        job = DrivenJob(replace(context, settings=self.settings))
        self.scheduler.add(job, open_session(parse_request(body), job.context))
        return job

    def run(self, *jobs: DrivenJob, seconds: float = PATIENCE_SECONDS) -> None:
        """Runs rounds until the jobs have ended."""
        self.run_until(lambda: all(job.result or job.error for job in jobs), seconds)

    def run_until(self, condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        """Runs rounds until the condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            self.scheduler.step()
            if not self.scheduler.runs_models:
                self.wakeup.wait(0.005)
                self.wakeup.clear()

    def result(self, **request: Any) -> Any:
        """Runs a job and returns its result."""
        job = self.add(**request)
        self.run(job)
        assert job.error is None, job.error
        return job.result

    def error(self, **request: Any) -> GraftwerkError:
        """Runs a job and returns its error."""
        job = self.add(**request)
        self.run(job)
        assert job.error is not None
        return job.error

    def close(self) -> None:
        """Evicts all models, which ends their processes."""
        for model in self.models.models.copy():
            self.models.evict(model)

    @staticmethod
    def _succeed(job: DrivenJob, result: Any) -> None:
        job.result = result

    @staticmethod
    def _fail(job: DrivenJob, failure: Any) -> None:
        job.error = failure.error
