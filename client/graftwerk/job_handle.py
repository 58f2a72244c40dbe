"""Handle of a submitted job: follow it, wait for it, cancel it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Literal, cast
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent

from graftwerk.display import open_console
from graftwerk.errors import ApiError, UnreachableError, WaitTimeoutError
from graftwerk.http import STREAM_SECONDS, HttpService, is_temporary, job_path
from graftwerk.inference_results import TokenPiece
from graftwerk.models import Delivery, Job, Progress, ResultT_co, Status
from graftwerk.progress_display import progress_view

MAX_FAILURES = 15
"""Consecutive failed requests, with a pause between two of them, after which the service counts as gone."""
PAUSE_SECONDS = 2.0
LONGEST_SILENCE_SECONDS = 10.0
"""Shorter than the service's keep-alives, so that a silent stream does not delay a timeout."""


class JobHandle(Generic[ResultT_co]):
    """A job of the service.

    Args:
        service: connections to the service.
        job_id: the job's id.
        job: its state if known; otherwise the first use requests it.
    """

    def __init__(self, service: HttpService, job_id: str, job: Job[ResultT_co] | None = None) -> None:
        self._service = service
        self._path = job_path(job_id)
        self._job = job
        self.id = job_id

    @property
    def job(self) -> Job[ResultT_co]:
        """Last known state of the job; `refresh` updates it."""
        return self.refresh() if self._job is None else self._job

    @property
    def status(self) -> Status:
        """Last known status; `refresh` updates it."""
        return self.job.status

    def refresh(self) -> Job[ResultT_co]:
        """Requests the job's present state and returns it."""
        return self._update(self._service.job("GET", self._path))

    def deliveries(self) -> list[Delivery]:
        """Returns the messages to the job's webhook, oldest first, with their attempts."""
        found = self._service.items(f"{self._path}/deliveries", "deliveries", {})
        return [Delivery.model_validate(item) for item in found]

    def redeliver(self, delivery_id: str) -> Delivery:
        """Has a message that was delivered or has failed sent again."""
        path = f"{self._path}/deliveries/{quote(delivery_id, safe='')}/redeliver"
        return Delivery.model_validate(self._service.json_object("POST", path))

    def wait(self, progress: bool = False, timeout: float | None = None) -> Job[ResultT_co]:
        """Returns the job when it has ended, in whichever way.

        Args:
            progress: show the progress on stderr.
            timeout: seconds to wait at most; None waits without a limit.

        Raises:
            WaitTimeoutError: the job has not ended in time. It keeps running.
        """
        if not progress:
            for _ in self.events(timeout):
                pass
            return self.job
        with progress_view(open_console(stderr=True)) as view:
            view.show(self.job)
            for event in self.events(timeout):
                if isinstance(event, Job):
                    view.show(event)
        return self.job

    def events(self, timeout: float | None = None) -> Iterator[Job[ResultT_co] | TokenPiece]:
        """Yields the job's state at each change until it has ended, and each piece of text that it streams.

        Reads the event stream. If it breaks, requests the job itself and resumes the stream after the last event.

        Raises:
            WaitTimeoutError: the job has not ended after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        last_id, failures = "", 0
        while True:
            try:
                for event in self._service.events(f"{self._path}/events", last_id, _silence(deadline)):
                    last_id, failures = event.id or last_id, 0
                    yield from self._read(event)
                    if self._has_ended:
                        return
                    self._check(deadline)
            except (httpx.TransportError, httpx.StreamError):
                pass
            try:
                yield self.refresh()
            except (ApiError, UnreachableError) as error:
                failures += 1
                if failures >= MAX_FAILURES or not is_temporary(error):
                    raise
            if self._has_ended:
                return
            self._check(deadline)
            self._service.pause(PAUSE_SECONDS)

    def cancel(self) -> Job[ResultT_co]:
        """Requests the job's cancellation; a running job ends a moment later."""
        return self._update(self._service.job("POST", f"{self._path}/cancel"))

    def retry(self) -> "JobHandle[ResultT_co]":
        """Submits the request of this ended job again and returns the new job's handle."""
        job = self._service.job("POST", f"{self._path}/retry")
        return JobHandle(self._service, job.id, cast(Job[ResultT_co], job))

    def delete(self) -> None:
        """Deletes the record of this ended job."""
        self._service.send("DELETE", self._path)

    def log(self) -> str:
        """Returns the lines that the job has logged."""
        return self._service.send("GET", f"{self._path}/log").text

    def save_results(self, format: Literal["lines", "predictions"], file: Path) -> None:
        """Writes the results of a job with a file of prompts to a local file, completely or not at all."""
        part = file.with_name(f"{file.name}.part")
        with (
            self._service.download(f"{self._path}/results", params={"format": format}) as response,
            part.open("wb") as target,
        ):
            for block in response.iter_bytes():
                target.write(block)
        part.replace(file)

    @property
    def _has_ended(self) -> bool:
        return self._job is not None and self._job.ended

    def _update(self, job: Job) -> Job[ResultT_co]:
        self._job = cast(Job[ResultT_co], job)
        return self._job

    def _read(self, event: ServerSentEvent) -> Iterator[Job[ResultT_co] | TokenPiece]:
        match event.event:
            case "token":
                yield TokenPiece.model_validate_json(event.data)
            case "status":
                yield self._update(self._service.as_job(event.json()))
            case "progress" if self._job is not None:
                progress = event.json()["progress"]
                known = progress and Progress.model_validate(progress)
                yield self._update(self._job.model_copy(update={"progress": known}))

    def _check(self, deadline: float | None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(
                f"The job {self.id} has not ended in time.",
                "Wait longer, or cancel it.",
            )


def _silence(deadline: float | None) -> float:
    if deadline is None:
        return STREAM_SECONDS
    return max(0.1, min(LONGEST_SILENCE_SECONDS, deadline - time.monotonic()))
