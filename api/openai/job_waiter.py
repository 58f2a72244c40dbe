"""Waiting for a job on behalf of a connected client; a job whose client disconnects is canceled."""

import json
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from flask import request

from api.auth import origin
from api.disconnect import disconnect_check
from api.openai.errors import error_of
from api.state import AppState
from services.errors import InternalError, JobAlreadyEnded, JobCanceled, JobNotFound, NotReady
from services.jobs.events import Event, follow
from services.jobs.status import ENDED, Job, JobStatus
from services.kinds import KINDS, JobResult
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest, GenerateResult
from services.kinds.shared import JobRequest
from services.kinds.tokenize import TokenizeRequest
from services.preflight import Servers

R = TypeVar("R", bound=JobResult)

POLL_SECONDS = 1
"""Interval at which the client's connection is checked while no event arrives."""

RETENTION_SECONDS = 3600
"""Time that the record of such a job is kept: its client has the response already, and there are many of them."""

SHORT_RETENTION_SECONDS = 60
"""The same of a job that scored its prompt or tokenized: an evaluation has thousands of them, with numbers for each token."""


class JobWaiter:
    """One client waiting for one job. The job is canceled when the client disconnects, unless it runs in the background."""

    def __init__(
        self, state: AppState, job: Job, is_disconnected: Callable[[], bool], *, is_background: bool = False
    ) -> None:
        self.job = job
        self._queue = state.queue
        self._is_background = is_background
        self._is_disconnected = is_disconnected
        self._status: JobStatus = job.status

    def events(self) -> Generator[Event | None, None, None]:
        """Yields the job's events from its first to its end, and None after each second without one.

        If this ends before the job does (the client disconnects, the server closes the generator, Redis is lost),
        the job is canceled unless it runs in the background.

        Raises:
            NotReady: Redis does not answer, or no worker serves the job's queue and the job does not run in the background.
            JobNotFound: the job's record is gone.
            JobCanceled: the client has disconnected.
        """
        try:
            for event in follow(
                self._queue.streams, self.job.id, last_id=None, keepalive_seconds=POLL_SECONDS
            ):
                if self._is_disconnected():
                    raise JobCanceled("The client has disconnected.")
                if event is None:
                    self._refuse_without_worker()
                elif event.name == "status":
                    self._status = json.loads(event.data)["status"]
                yield event
        finally:
            if self._status not in ENDED and not self._is_background:
                with suppress(JobAlreadyEnded, JobNotFound, NotReady):
                    self._queue.cancel(self.job.id)

    def ended(self) -> Job:
        """Returns the job once it has ended. Raises what `events` raises."""
        for event in self.events():
            job = ended_job(event)
            if job is not None:
                return job
        raise JobNotFound(f"Job {self.job.id} was deleted before it ended.")

    def _refuse_without_worker(self) -> None:
        if self._is_background:
            return
        queue = KINDS[self.job.kind].queue
        if self._status == "queued" and queue not in {worker.queue for worker in self._queue.workers()}:
            raise NotReady(f"No {queue} worker is alive.", "Start one, or try again when it is up.")


def submit(
    state: AppState,
    job_request: GenerateRequest | EmbedRequest | TokenizeRequest,
    *,
    note: str = "",
    is_background: bool = False,
) -> JobWaiter:
    """Queues a job for the client of the current request. One with a note is kept as long as any other job.

    Raises what `AppState.preflight` and `JobQueue.submit` raise.
    """
    state.preflight(job_request, servers=Servers(state.served(job_request)))
    job, _ = state.queue.submit(
        job_request,
        retention_seconds=None if note else _retention_seconds(state, job_request),
        origin=replace(origin(), note=note),
    )
    return JobWaiter(state, job, connection_check(), is_background=is_background)


def connection_check() -> Callable[[], bool]:
    """Returns a function that returns True once the client of the current request has disconnected."""
    return disconnect_check(request.environ.get("gunicorn.socket"))


def _retention_seconds(state: AppState, job_request: JobRequest) -> int:
    scores = isinstance(job_request, GenerateRequest) and job_request.score_prompt
    is_short = scores or isinstance(job_request, TokenizeRequest)
    longest = SHORT_RETENTION_SECONDS if is_short else RETENTION_SECONDS
    return min(longest, state.settings.job_retention_seconds)


def ended_job(event: Event | None) -> Job | None:
    """Returns the job if this event reports its end, else None."""
    if event is None or event.name != "status":
        return None
    job = Job.model_validate_json(event.data)
    return job if job.status in ENDED else None


def result_of(job: Job, result_type: type[R]) -> R:
    """Returns the result of an ended job.

    Raises:
        GraftwerkError: the error that the job ended with.
    """
    if job.error is not None:
        raise error_of(job.error)
    if not isinstance(job.result, result_type):
        raise InternalError(f"Job {job.id} has ended as {job.status} without a result of its kind.")
    return job.result


def generated(job: Job) -> GenerateResult:
    """Returns the result of an ended generate job.

    Raises:
        GraftwerkError: the error that the job, or the first output without text, ended with.
    """
    result = result_of(job, GenerateResult)
    for output in result.outputs:
        if output.error is not None:
            raise error_of(output.error)
    return result
