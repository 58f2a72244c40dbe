"""States of several jobs that are followed together, and the rules of following them; nothing here sends anything."""

import time
from collections.abc import Iterable, Iterator

from httpx_sse import ServerSentEvent

from graftwerk.models import Job, Progress

FIRST_REFRESH_SECONDS = 1.0
"""The stream begins after the jobs were read: what changed between is read soon after its beginning."""

REFRESH_SECONDS = 8.0
"""Time after which jobs are requested themselves, in case that an event was lost."""


class JobGroupState:
    """Jobs in their known states.

    Args:
        jobs: the jobs as they were read.
        with_new: adds jobs that are submitted while these run.

    Attributes:
        jobs: the states by id.
    """

    def __init__(self, jobs: Iterable[Job], *, with_new: bool = False) -> None:
        self._with_new = with_new
        self._refresh_at = time.monotonic() + FIRST_REFRESH_SECONDS
        self.jobs = {job.id: job for job in jobs}

    @property
    def unfinished(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.ended]

    @property
    def _silence_seconds(self) -> float:
        return max(0.1, self._refresh_at - time.monotonic())

    @property
    def _is_refresh_due(self) -> bool:
        return not self.unfinished or time.monotonic() >= self._refresh_at

    def _to_refresh(self) -> list[Job]:
        """Returns the jobs to request, and sets the time of the next refresh."""
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        return self.unfinished

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
