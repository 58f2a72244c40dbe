"""A client that waits for a job: its events as they come, and its end with the client's."""

import json
import select
import socket
from collections.abc import Callable, Generator
from contextlib import suppress

from flask import request

from api.openai.errors import error_of_job
from api.state import AppState
from services.errors import InternalError, JobAlreadyEnded, JobCanceled, JobNotFound, NotReady
from services.jobs.events import Event, follow
from services.jobs.status import ENDED, Job, JobError, JobStatus
from services.kinds import KINDS
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest
from services.preflight import preflight

POLL_SECONDS = 1
"""So often it is looked whether the client is still there."""

RETENTION_SECONDS = 3600
"""The record of such a job is kept for an hour: its client has the answer, and there are many of them."""


class JobWaiter:
    """One client waiting for one job. The job is canceled when the client goes."""

    def __init__(self, rooms: AppState, job: Job, is_gone: Callable[[], bool]) -> None:
        self.job = job
        self._rooms = rooms
        self._is_gone = is_gone
        self._status: JobStatus = job.status

    def events(self) -> Generator[Event | None, None, None]:
        """The job's events from its first to its end; None about once a second in which nothing came.

        However this ends before the job does (the client goes, the server closes the generator, Redis is lost), the
        job is canceled.

        Raises NotReady, JobNotFound, JobCanceled.
        """
        redis = self._rooms.queue.redis
        try:
            for event in follow(redis, self.job.id, last_id=None, keepalive_seconds=POLL_SECONDS):
                if self._is_gone():
                    raise JobCanceled("the client has gone")
                if event is None:
                    self._refuse_without_worker()
                elif event.name == "status":
                    self._status = json.loads(event.data)["status"]
                yield event
        finally:
            if self._status not in ENDED:
                with suppress(JobAlreadyEnded, JobNotFound, NotReady):
                    self._rooms.queue.cancel(self.job.id)

    def ended(self) -> Job:
        """The job once it has succeeded.

        Raises what the job failed with, JobCanceled, NotReady, JobNotFound.
        """
        for event in self.events():
            job = ended_job(event)
            if job is not None:
                return succeeded(job)
        raise JobNotFound(f"job {self.job.id} was forgotten before it ended")

    def _refuse_without_worker(self) -> None:
        queue = KINDS[self.job.kind].queue
        if self._status == "queued" and queue not in {worker.queue for worker in self._rooms.queue.workers()}:
            raise NotReady(f"no {queue} worker is alive", "Start one, or try again when it is up.")


def submit(rooms: AppState, job_request: GenerateRequest | EmbedRequest) -> JobWaiter:
    """Queue a job for the client of the current request. Raises what `preflight` and `JobQueue.submit` raise."""
    preflight(job_request, rooms.store, {}, served=rooms.served(job_request))
    retention_seconds = min(RETENTION_SECONDS, rooms.settings.job_retention_seconds)
    job, _ = rooms.queue.submit(job_request, retention_seconds=retention_seconds)
    return JobWaiter(rooms, job, is_gone_of(request.environ.get("gunicorn.socket")))


def is_gone_of(connection: socket.socket | None) -> Callable[[], bool]:
    """A look whether the other end of a connection has closed it; never, where the server does not show it."""

    def is_gone() -> bool:
        if connection is None:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            return not connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    return is_gone


def ended_job(event: Event | None) -> Job | None:
    """The job as it ended, if this event says that it has."""
    if event is None or event.name != "status":
        return None
    job = Job.model_validate_json(event.data)
    return job if job.status in ENDED else None


def succeeded(job: Job) -> Job:
    """The ended job itself. Raises what it failed with, JobCanceled."""
    outputs = (job.result or {}).get("outputs", [])
    refused = [JobError(**output["error"]) for output in outputs if "error" in output]
    failure = job.error or next(iter(refused), None)
    if failure is not None:
        raise error_of_job(failure)
    if job.result is None:
        raise InternalError(f"job {job.id} is {job.status} and has no result")
    return job
