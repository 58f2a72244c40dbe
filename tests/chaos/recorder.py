"""Statuses of all jobs with the time at which they were seen, read from the stream of all events in Redis."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

ALL_EVENTS = "graftwerk:events"
ENDED = ("succeeded", "failed", "canceled")
PAUSE_SECONDS = 0.05


class Seen(NamedTuple):
    """One status event, at the recorder's monotonic time."""

    at: float
    status: str


class Recorder:
    """Reads the stream in a thread, over all failures of Redis."""

    def __init__(self, redis_port: int) -> None:
        self.statuses: dict[str, list[Seen]] = defaultdict(list)
        self.listeners: list[Callable[[str, str], None]] = []
        self._redis = Redis(port=redis_port, protocol=2, socket_timeout=5)
        self._position = "0-0"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._record, name="recorder", daemon=True)
        self._thread.start()

    def status(self, job_id: str) -> str | None:
        """Returns the newest status of a job, None before its first."""
        seen = self.statuses.get(job_id)
        return seen[-1].status if seen else None

    def running(self) -> list[str]:
        """Returns the ids of the jobs that run, as far as has been seen."""
        return [job for job, seen in list(self.statuses.items()) if seen and seen[-1].status == "running"]

    def executions(self, job_id: str) -> int:
        """Returns the number of times that the job has started."""
        return sum(seen.status == "running" for seen in self.statuses[job_id])

    def ends(self, job_id: str) -> list[str]:
        """Returns the terminal statuses that were published for the job, in order."""
        return [seen.status for seen in self.statuses[job_id] if seen.status in ENDED]

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join(10)

    def _record(self) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            with suppress(RedisError, OSError):
                self._read()

    def _read(self) -> None:
        streams: Any = self._redis.xread({ALL_EVENTS: self._position}, count=1000)
        for id, fields in streams[0][1] if streams else []:
            self._position = id.decode()
            if fields[b"name"] == b"status":
                job = json.loads(fields[b"data"])
                self._note(job["id"], job["status"])

    def _note(self, job_id: str, status: str) -> None:
        self.statuses[job_id].append(Seen(time.monotonic(), status))
        for listener in self.listeners:
            listener(job_id, status)
