"""Several jobs that are followed together, by the one stream of events of the service."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import httpx
from httpx_sse import ServerSentEvent

from graftwerk import calls
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.http import HttpService
from graftwerk.job_state import Following
from graftwerk.models import Job, Progress

FIRST_REFRESH_SECONDS = 1.0
"""The stream begins after the jobs were read: what changed between is read soon after its beginning."""

REFRESH_SECONDS = 8.0
"""Time after which jobs are requested themselves, in case that an event was lost."""


class JobGroup:
    """Jobs in their known states.

    Args:
        service: connections to the service.
        jobs: the jobs as they were read.
        with_new: adds jobs that are submitted while these run.

    Attributes:
        jobs: the states by id.
    """

    def __init__(self, service: HttpService, jobs: Iterable[Job], *, with_new: bool = False) -> None:
        self._service = service
        self._with_new = with_new
        self._refresh_at = time.monotonic() + FIRST_REFRESH_SECONDS
        self.jobs = {job.id: job for job in jobs}

    @property
    def unfinished(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.ended]

    def changes(self) -> Iterator[Job]:
        """Yields each job at each change until all have ended.

        Raises:
            UnreachableError: the service does not respond any more.
        """
        yield from list(self.jobs.values())
        following = Following("", None)
        while self.unfinished:
            with suppress(httpx.TransportError, httpx.StreamError):
                yield from self._streamed(following)
            try:
                yield from self._refreshed()
                following.succeeded()
            except (ApiError, UnreachableError) as error:
                following.failed(error)
                self._service.pause(following.pause_seconds)

    def _streamed(self, following: Following) -> Iterator[Job]:
        """Yields changes until the next refresh is due."""
        silence = max(0.1, self._refresh_at - time.monotonic())
        for event in self._service.events("/api/events", following.last_id, silence):
            following.arrived(event.id)
            yield from self._read(event)
            if not self.unfinished or time.monotonic() >= self._refresh_at:
                return

    def _read(self, event: ServerSentEvent) -> Iterator[Job]:
        if event.event == "status":
            job = Job.model_validate_json(event.data)
            if job.id in self.jobs or self._with_new:
                yield from self._update(job)
        elif event.event == "progress":
            data = event.json()
            known = self.jobs.get(data["id"])
            if known is not None and data["progress"] is not None:
                progress = Progress.model_validate(data["progress"])
                yield from self._update(known.model_copy(update={"progress": progress}))

    def _update(self, job: Job) -> Iterator[Job]:
        """Keeps a state and yields it, unless the job is known to have ended: events of the past come late."""
        known = self.jobs.get(job.id)
        if known is None or not known.ended:
            self.jobs[job.id] = job
            yield job

    def _refreshed(self) -> Iterator[Job]:
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        for job in self.unfinished:
            yield from self._update(self._service.call(calls.job(job.id)))
