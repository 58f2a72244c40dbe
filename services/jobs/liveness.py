"""Liveness of workers and of their executions, judged by one observer with a monotonic clock.

The observer counts for how long a heartbeat has not changed while it was watching. No times of two processes are compared, so
that neither a clock that is set nor a difference between clocks matters.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum

from redis import Redis
from redis.exceptions import ResponseError

SILENT_SECONDS = 30
"""Time without a heartbeat after which an execution counts as lost although its worker is connected to Redis.

A living worker can be late: its process is stopped, or a library keeps Python's lock for seconds while a model is loaded
on a busy machine. The time is long because a job that is lost by mistake runs twice, even if only one execution publishes.
"""

ABSENT_SECONDS = 3
"""Time without a connection after which a worker counts as disconnected: Redis itself may have been restarted.

The kernel closes the connections of a killed process at once, however busy the machine is.
"""

MAX_STEP_SECONDS = 2.0
"""Longest time that counts between two observations: an observer that was held up has seen nothing."""

Clock = Callable[[], float]


class Ages:
    """Times for which observed values have not changed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._observed_at = clock()
        self._known: dict[str, tuple[Hashable, float]] = {}

    def observe(self, values: Mapping[str, Hashable]) -> dict[str, float]:
        """Returns the age in seconds of each value; a new or changed one has the age 0. Others are forgotten."""
        now = self._clock()
        step, self._observed_at = min(now - self._observed_at, MAX_STEP_SECONDS), now
        before = self._known
        self._known = {
            key: (value, before[key][1] + step if key in before and before[key][0] == value else 0.0)
            for key, value in values.items()
        }
        return {key: age for key, (_, age) in self._known.items()}


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Last heartbeat of a worker or an execution.

    `quiet_seconds` is the time without another one after which it counts as lost if its worker is disconnected; a worker
    without a name counts as connected.
    """

    value: Hashable
    worker: str
    quiet_seconds: float


class Loss(Enum):
    """Sign by which a worker counts as lost: it may be alive and only cut off, or hang."""

    ABSENT = "not connected"
    SILENT = "connected, without heartbeats"


class Liveness:
    """Observer of heartbeats and connections; a connection has the name of its worker."""

    def __init__(self, redis: Redis, clock: Clock = time.monotonic) -> None:
        self.redis = redis
        self._silences, self._absences = Ages(clock), Ages(clock)

    def find_lost(self, heartbeats: Mapping[str, Heartbeat]) -> dict[str, Loss]:
        """Observes these heartbeats and returns the keys of those that are lost, with the sign."""
        silences = self._silences.observe({key: beat.value for key, beat in heartbeats.items()})
        suspects = {
            key: beat
            for key, beat in heartbeats.items()
            if silences[key] >= beat.quiet_seconds - ABSENT_SECONDS
        }
        absences = self._observe_absences({beat.worker for beat in suspects.values()})
        absent = {
            key
            for key, beat in suspects.items()
            if silences[key] >= beat.quiet_seconds and absences[beat.worker] >= ABSENT_SECONDS
        }
        silent = {key for key in suspects if silences[key] >= SILENT_SECONDS}
        return {**dict.fromkeys(absent, Loss.ABSENT), **dict.fromkeys(silent, Loss.SILENT)}

    def _observe_absences(self, workers: set[str]) -> dict[str, float]:
        """Returns the seconds for which each of these workers has had no connection, 0 for connected ones."""
        connected = self._connected() if workers else None
        is_absent = {worker: connected is not None and worker not in connected for worker in workers}
        ages = self._absences.observe(is_absent)
        return {worker: ages[worker] if is_absent[worker] else 0.0 for worker in workers}

    def _connected(self) -> set[str] | None:
        try:
            return {"", *(client.get("name", "") for client in self.redis.client_list())}
        except ResponseError:  # an access list of Redis may forbid the command
            return None
