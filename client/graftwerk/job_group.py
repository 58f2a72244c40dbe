"""Several jobs that are followed together, by the one stream of events of the service."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

import httpx

from graftwerk import calls
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.http import HttpService
from graftwerk.job_group_state import JobGroupState
from graftwerk.job_state import Following
from graftwerk.models import Job


class JobGroup(JobGroupState):
    """Jobs in their known states.

    Args:
        service: connections to the service.
        jobs: the jobs as they were read.
        with_new: adds jobs that are submitted while these run.

    Attributes:
        jobs: the states by id.
    """

    def __init__(self, service: HttpService, jobs: Iterable[Job], *, with_new: bool = False) -> None:
        super().__init__(jobs, with_new=with_new)
        self._service = service

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
        for event in self._service.events("/api/events", following.last_id, self._silence_seconds):
            following.arrived(event.id)
            yield from self._read(event)
            if self._is_refresh_due:
                return

    def _refreshed(self) -> Iterator[Job]:
        for job in self._to_refresh():
            yield from self._update(self._service.call(calls.job(job.id)))
