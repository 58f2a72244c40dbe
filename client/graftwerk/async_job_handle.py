"""Handle of a submitted job, for coroutines: follow it, wait for it, cancel it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Literal, cast

import anyio
import httpx
from httpx_sse import ServerSentEvent

from graftwerk import calls
from graftwerk.async_http import AsyncHttpService
from graftwerk.display import open_console
from graftwerk.errors import ApiError, UnreachableError, UsageError
from graftwerk.inference_results import TokenPiece
from graftwerk.job_state import Following, JobState
from graftwerk.local_files import part_of
from graftwerk.models import Delivery, Job, ResultT_co, Status
from graftwerk.progress_display import progress_view


class AsyncJobHandle(JobState[ResultT_co]):
    """A job of the service: the methods of `JobHandle`, awaited.

    Args:
        service: connections to the service.
        job_id: the job's id.
        job: its state if known.

    Attributes:
        id: the job's id.
    """

    def __init__(self, service: AsyncHttpService, job_id: str, job: Job[ResultT_co] | None = None) -> None:
        super().__init__(job_id, job)
        self._service = service

    @property
    def job(self) -> Job[ResultT_co]:
        """Last known state of the job; `refresh` updates it.

        Raises:
            UsageError: the state was never requested. Handles of submitted jobs know it.
        """
        if self._job is None:
            raise UsageError(
                f"The state of the job {self.id} was not requested yet.", "Await `handle.refresh()` first."
            )
        return self._job

    @property
    def status(self) -> Status:
        """Last known status; `refresh` updates it."""
        return self.job.status

    async def refresh(self) -> Job[ResultT_co]:
        """Requests the job's present state and returns it.

        Raises:
            ApiError: the job does not exist or its record has expired (`job_not_found`).
        """
        return self._update(await self._service.call(calls.job(self.id)))

    async def deliveries(self) -> list[Delivery]:
        """Returns the messages to the job's webhook, oldest first, with their attempts."""
        return await self._service.call(calls.deliveries(self.id))

    async def redeliver(self, delivery_id: str) -> Delivery:
        """Has a message that was delivered or has failed sent again.

        Args:
            delivery_id: `id` of one of the `deliveries`.

        Raises:
            ApiError: there is no such message, or it has not ended.
        """
        return await self._service.call(calls.redeliver(self.id, delivery_id))

    async def wait(self, progress: bool = False, timeout: float | None = None) -> Job[ResultT_co]:
        """Returns the job when it has ended, in whichever way.

        A service that does not respond for half a minute ends the wait; the job is not affected by that, nor by the
        cancellation of the waiting task.

        Args:
            progress: show the progress on stderr, or below the cell of a notebook.
            timeout: seconds to wait at most; None waits without a limit.

        Raises:
            WaitTimeoutError: the job has not ended in time. It keeps running.
            UnreachableError: the service does not respond any more.
        """
        if not progress:
            return await self._wait(Following(self.id, timeout))
        with progress_view(open_console(stderr=True)) as view:
            view.show(self._job or await self.refresh())
            async for event in self.events(timeout):
                if isinstance(event, Job):
                    view.show(event)
        return self.job

    async def _wait(self, following: Following) -> Job[ResultT_co]:
        """Waits by requests that the service answers at the job's end; pauses where it answers at once."""
        while not self._has_ended:
            has_waited = False
            try:
                job, has_waited = await self._service.call(calls.ended_job(self.id, following.wait_seconds))
                self._update(job)
                following.succeeded()
            except (ApiError, UnreachableError) as error:
                following.failed(error)
            if self._has_ended:
                break
            following.check()
            if not has_waited:
                await self._service.pause(following.pause_seconds)
        return self.job

    async def events(self, timeout: float | None = None) -> AsyncIterator[Job[ResultT_co] | TokenPiece]:
        """Yields the job's state at each change until it has ended, and each piece of text that it streams.

        Reads the event stream. If it breaks, requests the job itself and resumes the stream after the last event.

        Args:
            timeout: seconds until the end of the job at most; None follows it without a limit.

        Raises:
            WaitTimeoutError: the job has not ended after `timeout` seconds.
            UnreachableError: the service does not respond any more.
        """
        following = Following(self.id, timeout)
        while True:
            try:
                async with self._stream(following) as stream:
                    async for event in stream:
                        following.arrived(event.id)
                        for found in self._read(event):
                            yield found
                        if self._has_ended:
                            return
                        following.check()
            except (httpx.TransportError, httpx.StreamError):
                pass
            try:
                yield await self.refresh()
            except (ApiError, UnreachableError) as error:
                following.failed(error)
            if self._has_ended:
                return
            following.check()
            await self._service.pause(following.pause_seconds)

    def _stream(self, following: Following) -> aclosing[AsyncGenerator[ServerSentEvent]]:
        path = f"{calls.job_path(self.id)}/events"
        return aclosing(self._service.events(path, following.last_id, following.silence_seconds))

    async def cancel(self) -> Job[ResultT_co]:
        """Requests the job's cancellation; a running job ends a moment later.

        Raises:
            ApiError: the job has ended (`job_already_ended`).
        """
        return self._update(await self._service.call(calls.cancel(self.id)))

    async def retry(self) -> "AsyncJobHandle[ResultT_co]":
        """Submits the request of this ended job again and returns the new job's handle.

        Raises:
            ApiError: the job has not ended, or its request would be refused now.
        """
        job = await self._service.call(calls.retry(self.id))
        return AsyncJobHandle(self._service, job.id, cast(Job[ResultT_co], job))

    async def delete(self) -> None:
        """Deletes the record of this ended job; what it has made is kept.

        Raises:
            ApiError: the job has not ended (`job_not_ended`).
        """
        await self._service.call(calls.delete_job(self.id))

    async def log(self) -> str:
        """Returns the lines that the job has logged."""
        return await self._service.call(calls.log(self.id))

    async def save_results(self, format: Literal["lines", "predictions"], file: str | Path) -> None:
        """Writes the results of a job with a file of prompts to a local file, completely or not at all.

        Args:
            format: `lines` is one JSON object for each prompt, `predictions` one JSON list.
            file: the file, which is replaced if it exists.

        Raises:
            ApiError: the job has no such results (`results_not_found`).
            OSError: the file cannot be written.
        """
        path, part = f"{calls.job_path(self.id)}/results", part_of(Path(file))
        async with (
            self._service.download(path, params={"format": format}) as response,
            await anyio.open_file(part, "wb") as target,
        ):
            async for block in response.aiter_bytes():
                await target.write(block)
        part.replace(file)
