"""The resident generation worker: many jobs at once on models that stay loaded.

It takes jobs from the queue while it has room, begins each as RQ would, gives their prompts to the engines in
turn, and ends each job on its own. A thread beats the heart for all of them and asks whether to stop.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.utils import now
from rq.worker.base import WorkerStatus

from services.backend import Backend, ServedModel, may_forward
from services.errors import ExecutionSuperseded, GraftwerkError, JobCanceled, JobTimeout
from services.generate import resolve_device
from services.jobs.execution import INTERVAL_SECONDS, JobExecution
from services.jobs.queue import service_identity
from services.jobs.rq_workers import MONITORING_SECONDS, TrackedWorker
from services.kinds import parse_request, parse_result
from services.kinds.compare import CompareRequest
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest
from services.kinds.perplexity import PerplexityRequest
from services.kinds.shared import JobRequest, ModelRequest
from services.progress import Progress
from services.settings import Settings
from worker.inference.compare import CompareSession
from worker.inference.embed import EmbedSession
from worker.inference.generate import GenerateSession
from worker.inference.model_cache import CachedModel, ModelCache, memory_limit_bytes
from worker.inference.perplexity import PerplexitySession
from worker.inference.remote import RemoteSession
from worker.lifecycle import JobContext, attempted, fail, result_as_json

REST_SECONDS = 0.05
"""So often it is looked for new jobs while another server does all the work."""

logger = logging.getLogger("graftwerk.generate")


Work = GenerateSession | EmbedSession | PerplexitySession | RemoteSession
"""One job: answers that an engine writes, what goes on a text or a window a step, or what another server answers."""


class Interrupted(BaseException):
    """The worker was told to stop while it loaded a model, which may take minutes."""


@dataclass(slots=True, eq=False)
class RunningJob:
    """One job that the worker has begun.

    `asking` is None while it waits for room in memory, or for the list of what another server's models are (`inquiry`).
    """

    job: RQJob
    queue: Queue
    execution: Execution
    running: JobExecution
    deadline: float
    asking: Work | None = None
    comparing: CompareSession | None = None
    inquiry: Future[Mapping[str, ServedModel]] | None = None
    stop: GraftwerkError | None = None


class GenerateWorker(TrackedWorker, SimpleWorker):
    """Runs the generate queue, up to `generate_slots` jobs at once."""

    def __init__(self, *, name: str, redis: Redis, settings: Settings, queue_name: str = "generate") -> None:
        super().__init__(queue_name, name=name, redis=redis, settings=settings)
        limit_bytes = settings.resident_models_bytes or memory_limit_bytes(settings.device)
        self.residents = ModelCache(settings.device, limit_bytes, settings.generate_slots)
        self.backend = Backend.of(settings, lambda: service_identity(redis))
        self.seats: list[RunningJob] = []
        self._loading = False
        self._news = threading.Event()
        self._inquirer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inquiry")

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """RQ's; also says on which device this worker computes."""
        super().bootstrap(*args, **kwargs)
        device = resolve_device(self.settings.device)
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        self.connection.hset(self.key, "device", name)

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """Run this job and whatever else comes meanwhile, until there is nothing left."""
        with self._pulse():
            self._begin(job, queue)
            while self.seats:
                if self.asked_to_stop:
                    self._put_back_all()
                    break
                self._end_stopped()
                self._admit()
                self._step()
                self._rest()
        self.set_state(WorkerStatus.IDLE)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stops after the present token; a model that is being loaded is given up."""
        super().request_stop(signum, frame)
        if self._loading:
            raise Interrupted

    # ---- beginning ------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take more jobs while there are seats, and none of them waits for room in memory."""
        for seat in self.seats.copy():
            if seat.asking is None:
                self._open(seat)
        while len(self.seats) < self.settings.generate_slots and all(seat.asking for seat in self.seats):
            taken = self.queue_class.dequeue_any(
                self.queues, None, self.connection, job_class=self.job_class, serializer=self.serializer
            )
            if taken is None:
                return
            self._begin(*taken)

    def _begin(self, job: RQJob, queue: Queue) -> None:
        if not self.is_waiting(job):
            return
        execution = self.prepare_execution(job)
        running = JobExecution(job.id, execution.id, self.connection)
        deadline = time.monotonic() + float(job.timeout or self.settings.job_timeout_seconds)
        seat = RunningJob(job, queue, execution, running, deadline)
        self.seats.append(seat)
        self.prepare_job_execution(job, True)
        job.started_at = now()
        self._open(seat)

    def _open(self, seat: RunningJob) -> None:
        """Find or load the job's model; leave the seat waiting where there is no room yet."""
        self._loading = True
        try:
            outcome = attempted(lambda: self._asking(seat))
        except Interrupted:
            return  # the seat goes back with all others
        finally:
            self._loading = False
        if isinstance(outcome, Exception):
            self._fail(seat, outcome)
        else:
            seat.asking = outcome

    def _asking(self, seat: RunningJob) -> Work | None:
        request = parse_request(seat.job.args[0])
        context = JobContext.of(seat.running, self.settings)
        context.execution.check_canceled()
        if isinstance(request, GenerateRequest) and self.backend is not None and may_forward(request):
            inquiry = self._inquired(seat, self.backend)
            if not inquiry.done():
                return None
            model = inquiry.result().get(request.model)
            if model is not None:
                return RemoteSession(
                    request, context, backend=self.backend, model=model, notify=self._news.set
                )
        begin: Callable[[JobContext, CachedModel], Work]
        if isinstance(request, CompareRequest):
            seat.comparing = comparing = seat.comparing or CompareSession(request)
            begin = comparing.begin
            request = comparing.request_now
        else:
            begin = partial(_work, request)
        assert isinstance(request, ModelRequest)
        resident = self.residents.take(request, context)
        if resident is None:
            context.execution.report(Progress("waiting for room in memory"))
            return None
        outcome = attempted(lambda: begin(context, resident))
        if isinstance(outcome, Exception):
            resident.users -= 1
            raise outcome
        return outcome

    def _inquired(self, seat: RunningJob, backend: Backend) -> Future[Mapping[str, ServedModel]]:
        """Which models the other server has: asked once a job, in a thread, since it may be slow to answer."""
        if seat.inquiry is None:
            seat.inquiry = self._inquirer.submit(backend.models)
            seat.inquiry.add_done_callback(lambda _: self._news.set())
        return seat.inquiry

    # ---- running --------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One token for every answer on every engine; then end the jobs that are done."""
        for resident in [resident for resident in self.residents.models if resident.users]:
            outcome = attempted(partial(self._step_engine, resident))
            if isinstance(outcome, Exception):
                self._fail_engine(resident, outcome)
        for seat in self.seats.copy():
            self._advance(seat)
        for seat in [seat for seat in self.seats if isinstance(seat.asking, GenerateSession)]:
            self._report(seat)
        for seat in [seat for seat in self.seats if seat.asking and seat.asking.is_done]:
            # The answers of a job that is to stop are done too, cut off: it ends with the next round.
            if seat.stop is None and not self.asked_to_stop:
                self._end_part(seat)

    def _step_engine(self, resident: CachedModel) -> None:
        self._ask(resident)
        askings = [asking for _, asking in self._asking_of(resident)]
        for event in resident.engine.step():
            # What nobody takes belongs to a job that was stopped.
            any(asking.hear(event) for asking in askings)

    def _ask(self, resident: CachedModel) -> None:
        """Fill the free slots with the jobs' next prompts in turn. A prompt that nobody foresaw fails its job alone."""
        in_turn = deque((seat, asking) for seat, asking in self._asking_of(resident) if asking.has_more)
        while in_turn and resident.engine.free_slots:
            seat, asking = in_turn.popleft()
            outcome = attempted(asking.ask_next)
            if isinstance(outcome, Exception):
                self._fail(seat, outcome)
            elif asking.has_more:
                in_turn.append((seat, asking))

    def _asking_of(self, resident: CachedModel) -> list[tuple[RunningJob, GenerateSession]]:
        return [
            (seat, seat.asking)
            for seat in self.seats
            if isinstance(seat.asking, GenerateSession) and seat.asking.resident is resident
        ]

    def _report(self, seat: RunningJob) -> None:
        """A volume that cannot be written fails the job that writes to it, and no other."""
        assert isinstance(seat.asking, GenerateSession)
        outcome = attempted(seat.asking.report)
        if isinstance(outcome, Exception):
            self._fail(seat, outcome)

    def _advance(self, seat: RunningJob) -> None:
        """One text of an embed job, one window of a perplexity job, what another server has sent: answers go on between."""
        work = seat.asking
        if work is None or isinstance(work, GenerateSession) or work.is_done:
            return

        def go_on() -> None:
            work.advance()
            work.report()

        outcome = attempted(go_on)
        if isinstance(outcome, Exception):
            self._fail(seat, outcome)

    def _rest(self) -> None:
        """Wait for news where another server does all the work that there is."""
        if self.seats and all(_is_elsewhere(seat) for seat in self.seats):
            self._news.wait(REST_SECONDS)
            self._news.clear()

    # ---- ending ---------------------------------------------------------------------------------------

    def _end_stopped(self) -> None:
        for seat in [seat for seat in self.seats if seat.stop]:
            if seat.stop is not None:
                self._fail(seat, seat.stop)

    def _end_part(self, seat: RunningJob) -> None:
        """End the job, or the variant of a comparison that others follow upon."""
        work, comparing = seat.asking, seat.comparing
        assert work is not None
        if comparing is None:
            self._succeed(seat, work.result)
            return
        assert isinstance(work, GenerateSession)
        outcome = attempted(lambda: comparing.take(work))
        if isinstance(outcome, Exception):
            self._fail(seat, outcome)
        elif comparing.is_done:
            self._succeed(seat, comparing.result)
        else:
            work.resident.users -= 1
            work.close()
            seat.asking = None  # the next round looks for the next variant's model

    def _succeed(self, seat: RunningJob, result: Callable[[], Mapping[str, Any]]) -> None:
        outcome = attempted(lambda: result_as_json(parse_result(seat.job.args[0]["kind"], result())))
        if isinstance(outcome, Exception):
            self._fail(seat, outcome)
            return
        seat.running.flush()
        self._leave(seat)
        self._finalize_success(seat.job, seat.queue, seat.execution, outcome)

    def _fail(self, seat: RunningJob, error: Exception) -> None:
        failure = fail(seat.running, error)
        self._leave(seat)
        self._finalize_failure(
            seat.job, seat.queue, seat.execution, (type(failure), failure, error.__traceback__)
        )

    def _fail_engine(self, resident: CachedModel, error: Exception) -> None:
        """A fault of the engine hits all its jobs; the model is given up, its state may be anything."""
        for seat in [seat for seat in self.seats if seat.asking and seat.asking.resident is resident]:
            self._fail(seat, error)
        self.residents.drop(resident)

    def _put_back_all(self) -> None:
        for seat in reversed(self.seats.copy()):  # each goes to the front
            self._leave(seat)
            self._killed_by_us = True
            self.handle_job_failure(
                seat.job, seat.queue, exc_string="the worker was stopped", execution=seat.execution
            )

    def _leave(self, seat: RunningJob) -> None:
        self.seats.remove(seat)
        if seat.asking is not None:
            if seat.asking.resident is not None:
                seat.asking.resident.users -= 1
            self._cancel_requests(seat)
            if isinstance(seat.asking, GenerateSession | RemoteSession):
                seat.asking.close()

    def _cancel_requests(self, seat: RunningJob) -> None:
        work = seat.asking  # read once: the pulse is another thread
        if isinstance(work, RemoteSession):
            work.cancel()
        elif work is not None:
            for request_id in work.request_ids:
                work.resident.engine.cancel(request_id)

    # ---- the pulse ------------------------------------------------------------------------------------

    @contextmanager
    def _pulse(self) -> Iterator[None]:
        """Within: a thread that beats the heart of all jobs and finds out which are to stop.

        A thread, since loading a model or searching with beams keeps the worker busy for long.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: threading.Event) -> None:
        beat_at = time.monotonic()
        while not over.wait(INTERVAL_SECONDS):
            seats = self.seats.copy()
            for seat in seats:
                self._look(seat)
            if time.monotonic() - beat_at >= MONITORING_SECONDS:
                beat_at = time.monotonic()
                for seat in seats:
                    self.maintain_heartbeats(seat.job, seat.execution)

    def _look(self, seat: RunningJob) -> None:
        """Note why a job is to stop. Its answers are canceled here: a beam search would not look up."""
        probe = JobExecution(seat.job.id, seat.execution.id, self.connection)
        try:
            probe.ensure_current()
        except (JobCanceled, ExecutionSuperseded) as error:
            seat.stop = error
        except (ConnectionError, TimeoutError) as error:
            logger.warning("job %s: not known whether it is to stop: %s", seat.job.id, error)
        if time.monotonic() > seat.deadline:
            limit = seat.job.timeout
            seat.stop = seat.stop or JobTimeout(
                f"the job took longer than {limit} s", "Raise JOB_TIMEOUT_SECONDS."
            )
        if seat.stop is not None or self.asked_to_stop:
            self._cancel_requests(seat)


def _work(request: JobRequest, context: JobContext, resident: CachedModel) -> Work:
    match request:
        case EmbedRequest():
            return EmbedSession(request, context, resident)
        case PerplexityRequest():
            return PerplexitySession(request, context, resident)
        case GenerateRequest():
            return GenerateSession(request, context, resident)
    raise AssertionError(request.kind)


def _is_elsewhere(seat: RunningJob) -> bool:
    """Whether another server answers the job, or is asked whether it does."""
    if seat.asking is None:
        return seat.inquiry is not None and not seat.inquiry.done()
    return isinstance(seat.asking, RemoteSession)
