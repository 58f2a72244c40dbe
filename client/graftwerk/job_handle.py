"""Handle of a submitted job: follow it, wait for it, cancel it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import httpx
from httpx_sse import ServerSentEvent

from graftwerk import calls
from graftwerk.display import open_console
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.http import HttpService
from graftwerk.inference_results import TokenPiece
from graftwerk.job_state import Following, JobState
from graftwerk.local_files import part_of
from graftwerk.models import Delivery, Job, ResultT_co, Status
from graftwerk.progress_display import progress_view


class JobHandle(JobState[ResultT_co]):
    """A job of the service.

    Args:
        service: connections to the service.
        job_id: the job's id.
        job: its state if known; otherwise the first use requests it.

    Attributes:
        id: the job's id.
    """

    def __init__(self, service: HttpService, job_id: str, job: Job[ResultT_co] | None = None) -> None:
        super().__init__(job_id, job)
        self._service = service

    @property
    def job(self) -> Job[ResultT_co]:
        """Last known state of the job; `refresh` updates it."""
        return self.refresh() if self._job is None else self._job

    @property
    def status(self) -> Status:
        """Last known status; `refresh` updates it."""
        return self.job.status

    def refresh(self) -> Job[ResultT_co]:
        """Requests the job's present state and returns it.

        Raises:
            ApiError: the job does not exist or its record has expired (`job_not_found`).
        """
        return self._update(self._service.call(calls.job(self.id)))

    def deliveries(self) -> list[Delivery]:
        """Returns the messages to the job's webhook, oldest first, with their attempts."""
        return self._service.call(calls.deliveries(self.id))

    def redeliver(self, delivery_id: str) -> Delivery:
        """Has a message that was delivered or has failed sent again.

        Args:
            delivery_id: `id` of one of the `deliveries`.

        Raises:
            ApiError: there is no such message, or it has not ended.
        """
        return self._service.call(calls.redeliver(self.id, delivery_id))

    def wait(self, progress: bool = False, timeout: float | None = None) -> Job[ResultT_co]:
        """Returns the job when it has ended, in whichever way.

        A service that does not respond for half a minute ends the wait; the job is not affected by that.

        Args:
            progress: show the progress on stderr, or below the cell of a notebook.
            timeout: seconds to wait at most; None waits without a limit.

        Raises:
            WaitTimeoutError: the job has not ended in time. It keeps running.
            UnreachableError: the service does not respond any more.
        """
        if not progress:
            return self._wait(Following(self.id, timeout))
        with progress_view(open_console(stderr=True)) as view:
            view.show(self.job)
            for event in self.events(timeout):
                if isinstance(event, Job):
                    view.show(event)
        return self.job

    def _wait(self, following: Following) -> Job[ResultT_co]:
        """Waits by requests that the service answers at the job's end; pauses where it answers at once."""
        while not self._has_ended:
            has_waited = False
            try:
                job, has_waited = self._service.call(calls.ended_job(self.id, following.wait_seconds))
                self._update(job)
                following.succeeded()
            except (ApiError, UnreachableError) as error:
                following.failed(error)
            if self._has_ended:
                break
            following.check()
            if not has_waited:
                self._service.pause(following.pause_seconds)
        return self.job

    def events(self, timeout: float | None = None) -> Iterator[Job[ResultT_co] | TokenPiece]:
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
                for event in self._stream(following):
                    following.arrived(event.id)
                    yield from self._read(event)
                    if self._has_ended:
                        return
                    following.check()
            except (httpx.TransportError, httpx.StreamError):
                pass
            try:
                yield self.refresh()
            except (ApiError, UnreachableError) as error:
                following.failed(error)
            if self._has_ended:
                return
            following.check()
            self._service.pause(following.pause_seconds)

    def _stream(self, following: Following) -> Iterator[ServerSentEvent]:
        path = f"{calls.job_path(self.id)}/events"
        return self._service.events(path, following.last_id, following.silence_seconds)

    def cancel(self) -> Job[ResultT_co]:
        """Requests the job's cancellation; a running job ends a moment later.

        Raises:
            ApiError: the job has ended (`job_already_ended`).
        """
        return self._update(self._service.call(calls.cancel(self.id)))

    def retry(self) -> "JobHandle[ResultT_co]":
        """Submits the request of this ended job again and returns the new job's handle.

        Raises:
            ApiError: the job has not ended, or its request would be refused now.
        """
        job = self._service.call(calls.retry(self.id))
        return JobHandle(self._service, job.id, cast(Job[ResultT_co], job))

    def delete(self) -> None:
        """Deletes the record of this ended job; what it has made is kept.

        Raises:
            ApiError: the job has not ended (`job_not_ended`).
        """
        self._service.call(calls.delete_job(self.id))

    def log(self) -> str:
        """Returns the lines that the job has logged."""
        return self._service.call(calls.log(self.id))

    def save_results(self, format: Literal["lines", "predictions"], file: str | Path) -> None:
        """Writes the results of a job with a file of prompts to a local file, completely or not at all.

        Args:
            format: `lines` is one JSON object for each prompt, `predictions` one JSON list.
            file: the file, which is replaced if it exists.

        Raises:
            ApiError: the job has no such results (`results_not_found`).
            OSError: the file cannot be written.
        """
        path, part = f"{calls.job_path(self.id)}/results", part_of(Path(file))
        with (
            self._service.download(path, params={"format": format}) as response,
            part.open("wb") as target,
        ):
            for block in response.iter_bytes():
                target.write(block)
        part.replace(file)
