"""Known state of a job, and the rules by which both handles follow it; nothing here sends anything."""

import time
from collections.abc import Iterator
from typing import Generic, cast

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from graftwerk import calls
from graftwerk.errors import ClientError, UnreachableError, WaitTimeoutError
from graftwerk.inference_results import TokenPiece
from graftwerk.models import Job, Progress, ResultT_co
from graftwerk.notebook import html_of
from graftwerk.protocol import MAX_FAILURES, PAUSE_SECONDS, STREAM_SECONDS, is_temporary

LONGEST_SILENCE_SECONDS = 10.0
"""Shorter than the service's keep-alives, so that a silent stream does not delay a timeout."""


class JobState(Generic[ResultT_co]):
    """Id of a job and its last known state.

    Attributes:
        id: the job's id.
    """

    def __init__(self, job_id: str, job: Job[ResultT_co] | None = None) -> None:
        self.id = job_id
        self._job = job

    def __repr__(self) -> str:
        known = repr(self._job).removeprefix("<Job ") if self._job else f"{self.id}>"
        return f"<{type(self).__name__} {known}"

    def _repr_html_(self) -> str:
        return self._job._repr_html_() if self._job else html_of("Job", {"id": self.id})

    @property
    def _has_ended(self) -> bool:
        return self._job is not None and self._job.ended

    def _update(self, job: Job) -> Job[ResultT_co]:
        self._job = cast(Job[ResultT_co], job)
        return self._job

    def _read(self, event: ServerSentEvent) -> Iterator[Job[ResultT_co] | TokenPiece]:
        """Yields the state or the text that an event of the job's stream carries."""
        try:
            match event.event:
                case "token":
                    yield TokenPiece.model_validate_json(event.data)
                case "status":
                    yield self._update(Job.model_validate_json(event.data))
                case "progress" if self._job is not None:
                    progress = event.json()["progress"]
                    known = progress and Progress.model_validate(progress)
                    yield self._update(self._job.model_copy(update={"progress": known}))
        except ValidationError as error:
            raise UnreachableError(
                "The event stream is not one of Graftwerk.", "Check the address of the service."
            ) from error


class Following:
    """Position and patience of one wait for a job.

    Attributes:
        last_id: id of the last event that has arrived.
    """

    def __init__(self, job_id: str, timeout: float | None) -> None:
        self._job_id = job_id
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failures = 0
        self.last_id = ""

    def arrived(self, event_id: str) -> None:
        """Notes the id of an event, after which a broken stream is resumed."""
        self.last_id, self._failures = event_id or self.last_id, 0

    def failed(self, error: ClientError) -> None:
        """Counts a failed request; raises its error if another attempt makes no sense."""
        self._failures += 1
        if self._failures >= MAX_FAILURES or not is_temporary(error):
            raise error

    def succeeded(self) -> None:
        """Starts the count of failures again."""
        self._failures = 0

    def check(self) -> None:
        """Raises WaitTimeoutError if the time is over."""
        if self._left() <= 0:
            raise WaitTimeoutError(
                f"The job {self._job_id} has not ended in time.", "Wait longer, or cancel it."
            )

    @property
    def silence_seconds(self) -> float:
        """Seconds after which a silent stream is left."""
        if self._deadline is None:
            return STREAM_SECONDS
        return max(0.1, min(LONGEST_SILENCE_SECONDS, self._left()))

    @property
    def wait_seconds(self) -> int:
        """Whole seconds for which the next request may wait for the end of the job."""
        return int(min(calls.LONGEST_WAIT_SECONDS, max(0, self._left())))

    @property
    def pause_seconds(self) -> float:
        """Seconds until the next attempt."""
        return min(PAUSE_SECONDS, max(0.0, self._left()))

    def _left(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()
