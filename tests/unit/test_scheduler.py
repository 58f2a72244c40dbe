"""The scheduler with fake sessions, fake engines and a clock that is moved by hand."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from services.errors import GraftwerkError, InvalidRequest, JobCanceled, JobTimeout, NotReady
from services.generate import Engine, Event, GenerationRequest, LoadedModel, TokenGenerated
from services.kinds.shared import JobResult
from services.progress import Progress
from services.sampling import Sampling
from tests.job_context import FakeExecution, job_context
from worker.inference.cached_model import CachedModel
from worker.inference.model_cache import ModelCache
from worker.inference.model_key import ModelKey
from worker.inference.scheduler import Scheduler
from worker.lifecycle import JobContext, JobFailure

pytestmark = pytest.mark.disable_socket


def key(name: str) -> ModelKey:
    return ModelKey(name, (), (), None, None)


class FakeEngine:
    """Gives each request one token in the step after its submission."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.submitted: list[str] = []
        self.running: list[str] = []
        self.steps = 0
        self.error: Exception | None = None

    @property
    def free_slots(self) -> int:
        return self.slots - len(self.running)

    def submit(self, request: GenerationRequest) -> str:
        self.submitted.append(request.id)
        self.running.append(request.id)
        return request.id

    def drop_all(self) -> None:
        self.running.clear()

    def step(self) -> list[Event]:
        self.steps += 1
        if self.error is not None:
            raise self.error
        events: list[Event] = [TokenGenerated(id, 0, 7, "x") for id in self.running]
        self.running.clear()
        return events


class FakeCache(ModelCache):
    """Cache of models that load at once; `limit` of them fit into memory."""

    def __init__(self, limit: int = 2, slots: int = 4) -> None:
        super().__init__("cpu", limit, slots)
        self.evicted: list[str] = []

    def acquire(self, key: ModelKey, context: JobContext) -> CachedModel | None:
        found = [model for model in self.models if model.key == key]
        if not found:
            for idle in [model for model in self.models if not model.refcount]:
                if len(self.models) >= self.limit_bytes:
                    self.models.remove(idle)
            if len(self.models) >= self.limit_bytes:
                return None
            engine = cast(Engine, FakeEngine(self.slots))
            found = [CachedModel(key, cast(LoadedModel, None), engine)]
            self.models += found
        found[0].refcount += 1
        return found[0]

    def evict(self, model: CachedModel) -> None:
        self.models.remove(model)
        self.evicted.append(model.key.model)


@dataclass
class FakeSession:
    """Submits its prompts to each of its models in turn; what it does is written to `log`."""

    name: str
    models: deque[str]
    prompts: int = 1
    context: JobContext | None = None
    fails_in: str = ""
    log: list[str] = field(default_factory=list)
    model: CachedModel | None = None
    left: int = 0
    open: set[str] = field(default_factory=set)

    @property
    def done(self) -> bool:
        return not self.models

    @property
    def has_prompts(self) -> bool:
        return self.left > 0

    def needs(self) -> ModelKey | None:
        return key(self.models[0]) if self.models else None

    def attach(self, model: CachedModel) -> None:
        self._note("attach")
        self.model, self.left = model, self.prompts

    def step(self) -> None:
        self._note("step")
        assert self.model is not None
        if self.left and self.model.engine.free_slots:
            self.left -= 1
            assert self.context is not None
            id = f"{self.name}{self.left}"
            request = GenerationRequest([1], Sampling(), id=id)
            self.open.add(self.model.submit(request, owner=self.context.execution.name))

    def on_event(self, event: Event) -> None:
        self._note("on_event")
        self.open.remove(event.request_id)
        if not self.open and not self.left:
            self.models.popleft()

    def report(self) -> None:
        self._note("report")

    def result(self) -> JobResult:
        self._note("result")
        return JobResult()

    def cancel(self) -> None:
        self.log.append("cancel")

    def close(self) -> None:
        self._note("close")

    def _note(self, what: str) -> None:
        self.log.append(what)
        if self.fails_in == what:
            raise InvalidRequest(f"{what} failed.")


@dataclass(eq=False)
class FakeJob:
    """A job with the session that it runs."""

    context: JobContext
    session: FakeSession
    limit_seconds: float = 60
    stop_reason: GraftwerkError | None = None
    outcome: str = ""

    @property
    def code(self) -> str:
        execution = cast(FakeExecution, self.context.execution)
        return execution.errors[0].code if execution.errors else ""


class Rig:
    """A scheduler, its cache, a clock and the jobs that were added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0
        self.stages: list[str] = []
        self.cache = FakeCache()
        self.scheduler: Scheduler[FakeJob] = Scheduler(
            self.cache, on_success=self._succeed, on_failure=self._fail, clock=lambda: self.seconds
        )

    def add(self, name: str, models: str = "m", *, prompts: int = 1, fails_in: str = "") -> FakeJob:
        context = job_context(self.folder, job_id=name, report=self._report)
        session = FakeSession(name, deque(models.split()), prompts, context, fails_in)
        job = FakeJob(context, session)
        self.scheduler.add(job, session)
        return job

    def engine(self, name: str) -> FakeEngine:
        (found,) = [model.engine for model in self.cache.models if model.key.model == name]
        return cast(FakeEngine, found)

    def run(self, *jobs: FakeJob) -> None:
        for _ in range(50):
            if all(job.outcome for job in jobs):
                return
            self.scheduler.step()
        raise AssertionError("the jobs do not end")

    def _report(self, progress: Progress) -> None:
        self.stages.append(progress.stage)

    def _succeed(self, job: FakeJob, result: JobResult) -> None:
        job.outcome = "succeeded"

    def _fail(self, job: FakeJob, failure: JobFailure) -> None:
        job.outcome = "failed"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_job_runs_from_its_model_to_its_result_in_one_round(rig: Rig) -> None:
    job = rig.add("a")
    rig.scheduler.step()
    assert job.outcome == "succeeded"
    assert job.session.log == ["attach", "step", "on_event", "report", "result", "cancel", "close"]
    assert [model.refcount for model in rig.cache.models] == [0]


def test_jobs_share_a_model_and_each_gets_its_own_events(rig: Rig) -> None:
    one, other = rig.add("a", prompts=2), rig.add("b", prompts=1)
    rig.run(one, other)
    assert (one.session.log.count("on_event"), other.session.log.count("on_event")) == (2, 1)
    assert len(rig.cache.models) == 1


def test_a_session_goes_from_model_to_model(rig: Rig) -> None:
    rig.cache.limit_bytes = 1
    job = rig.add("a", "m n")
    rig.run(job)
    assert job.session.log.count("attach") == 2
    assert [model.key.model for model in rig.cache.models] == ["n"]
    assert job.outcome == "succeeded"


def test_a_session_waits_while_busy_models_leave_no_memory(rig: Rig) -> None:
    rig.cache.limit_bytes = 1
    busy, waiting = rig.add("a", "m", prompts=9), rig.add("b", "n")
    rig.scheduler.step()
    assert rig.scheduler.has_waiting
    assert rig.stages == ["waiting for memory"]
    assert waiting.session.log == []
    rig.run(busy, waiting)
    assert waiting.outcome == "succeeded"


def test_free_slots_go_to_the_sessions_in_turn(rig: Rig) -> None:
    rig.cache.slots = 1
    long, short = rig.add("a", prompts=6), rig.add("b", prompts=2)
    rig.run(long, short)
    order = [id[0] for id in rig.engine("m").submitted]
    assert order == ["a", "b", "a", "b", "a", "a", "a", "a"]


def test_an_engine_is_filled_in_one_round(rig: Rig) -> None:
    rig.add("a", prompts=3)
    rig.add("b", prompts=3)
    rig.scheduler.step()
    assert rig.engine("m").submitted == ["a2", "b2", "a1", "b1"]
    assert rig.engine("m").steps == 1


@pytest.mark.parametrize("method", ["attach", "step", "on_event", "report", "result"])
def test_an_error_of_one_session_fails_its_job_and_no_other(rig: Rig, method: str) -> None:
    sick, healthy = rig.add("a", fails_in=method), rig.add("b")
    rig.run(sick, healthy)
    assert (sick.outcome, healthy.outcome) == ("failed", "succeeded")
    assert sick.code == "invalid_request"
    assert sick.session.log[-2:] == ["cancel", "close"]
    assert [model.refcount for model in rig.cache.models] == [0]


def test_a_session_that_cannot_be_closed_affects_no_other(rig: Rig) -> None:
    sick, healthy = rig.add("a", fails_in="close"), rig.add("b", prompts=9)
    rig.run(sick, healthy)
    assert (sick.outcome, healthy.outcome) == ("succeeded", "succeeded")
    assert [model.refcount for model in rig.cache.models] == [0]


def test_an_error_of_an_engine_fails_all_its_jobs_and_evicts_the_model(rig: Rig) -> None:
    one, two, other = rig.add("a", prompts=9), rig.add("b", prompts=9), rig.add("c", "n", prompts=9)
    rig.scheduler.step()
    rig.engine("m").error = NotReady("The engine broke.")
    rig.scheduler.step()
    assert [one.outcome, two.outcome, other.outcome] == ["failed", "failed", ""]
    assert rig.cache.evicted == ["m"]
    rig.run(other)
    assert other.outcome == "succeeded"


def test_a_job_with_a_stop_reason_fails_with_it_even_if_it_is_done(rig: Rig) -> None:
    stopped, other = rig.add("a"), rig.add("b")
    stopped.stop_reason = JobCanceled("The job was canceled.")
    rig.run(stopped, other)
    assert (stopped.outcome, stopped.code) == ("failed", "canceled")
    assert other.outcome == "succeeded"


def test_a_reason_that_comes_during_the_last_step_counts(rig: Rig) -> None:
    job = rig.add("a")

    def report() -> None:
        job.stop_reason = JobCanceled("The job was canceled.")

    job.session.report = report  # type: ignore[method-assign]
    rig.run(job)
    assert job.code == "canceled"


def test_events_of_a_stopped_job_are_dropped(rig: Rig) -> None:
    stopped, other = rig.add("a", prompts=9), rig.add("b", prompts=9)
    rig.scheduler.step()
    rig.engine("m").running.append("a8")
    stopped.stop_reason = JobCanceled("The job was canceled.")
    before = stopped.session.log.count("on_event")
    rig.run(stopped, other)
    assert stopped.session.log.count("on_event") == before


def test_a_job_over_its_time_limit_is_canceled_and_fails(rig: Rig) -> None:
    job = rig.add("a", prompts=99)
    rig.scheduler.step()
    rig.seconds = 60
    rig.scheduler.stop_overdue()
    assert job.stop_reason is None
    rig.seconds = 61
    later = rig.add("b", prompts=99)
    rig.scheduler.stop_overdue()
    assert later.stop_reason is None
    assert isinstance(job.stop_reason, JobTimeout)
    assert job.stop_reason.message == "The job took longer than 60 s."
    assert "cancel" in job.session.log
    rig.scheduler.step()
    assert job.code == "timeout"


def test_a_stopping_worker_ends_no_job(rig: Rig) -> None:
    job = rig.add("a")
    rig.scheduler.is_stopping = True
    rig.scheduler.step()
    assert job.outcome == ""
    rig.scheduler.remove(job)
    assert job.session.log[-2:] == ["cancel", "close"]
    assert [model.refcount for model in rig.cache.models] == [0]


def test_a_session_of_another_server_needs_no_model(rig: Rig) -> None:
    job = rig.add("a")
    job.session.needs = lambda: None  # type: ignore[method-assign]
    job.session.step = job.session.models.clear  # type: ignore[method-assign]
    assert rig.scheduler.runs_models  # not known yet
    rig.scheduler.step()
    assert job.outcome == "succeeded"
    assert rig.cache.models == []
