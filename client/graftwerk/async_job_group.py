"""Several jobs that are followed together, by the one stream of events of the service, for coroutines."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, suppress

import httpx

from graftwerk import calls
from graftwerk.async_http import AsyncHttpService
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.job_group_state import JobGroupState
from graftwerk.job_state import Following
from graftwerk.models import Job


class AsyncJobGroup(JobGroupState):
    """Jobs in their known states: `JobGroup` for coroutines.

    Args:
        service: connections to the service.
        jobs: the jobs as they were read.
        with_new: adds jobs that are submitted while these run.

    Attributes:
        jobs: the states by id.
    """

    def __init__(self, service: AsyncHttpService, jobs: Iterable[Job], *, with_new: bool = False) -> None:
        super().__init__(jobs, with_new=with_new)
        self._service = service

    async def changes(self) -> AsyncIterator[Job]:
        """Yields each job at each change until all have ended.

        Raises:
            UnreachableError: the service does not respond any more.
        """
        for job in list(self.jobs.values()):
            yield job
        following = Following("", None)
        while self.unfinished:
            with suppress(httpx.TransportError, httpx.StreamError):
                async with aclosing(self._streamed(following)) as streamed:
                    async for job in streamed:
                        yield job
            try:
                async with aclosing(self._refreshed()) as refreshed:
                    async for job in refreshed:
                        yield job
                following.succeeded()
            except (ApiError, UnreachableError) as error:
                following.failed(error)
                await self._service.pause(following.pause_seconds)

    async def _streamed(self, following: Following) -> AsyncGenerator[Job, None]:
        """Yields changes until the next refresh is due."""
        events = self._service.events("/api/events", following.last_id, self._silence_seconds)
        async with aclosing(events) as stream:
            async for event in stream:
                following.arrived(event.id)
                for job in self._read(event):
                    yield job
                if self._is_refresh_due:
                    return

    async def _refreshed(self) -> AsyncGenerator[Job, None]:
        for known in self._to_refresh():
            for job in self._update(await self._service.call(calls.job(known.id))):
                yield job
