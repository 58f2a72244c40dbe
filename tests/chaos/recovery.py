"""Recovery times of the faults that were done: until noticed, until running again, until the process is back."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import psutil
from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.faults import QUEUES
from tests.chaos.recorder import ENDED, Recorder, Seen
from tests.chaos.system import System

BACK_SECONDS = 120.0
POLL_SECONDS = 0.1


@dataclass(slots=True, kw_only=True)
class Done:
    """One fault that was done.

    Attributes:
        begun_at: monotonic time.
        victims: jobs that ran on the process that was hit.
        back_seconds: time from the end of the fault until the role works again; None if it never did.
        problem: reason why the fault could not be done.
    """

    name: str
    role: str
    begun_at: float
    ended_at: float
    victims: Sequence[str] = ()
    back_seconds: float | None = None
    problem: str | None = None


@dataclass(slots=True)
class Times:
    """Figures of one kind of fault, in seconds."""

    count: int = 0
    victims: int = 0
    kept_running: int = 0
    noticed: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)


def measure(faults: Sequence[Done], recorder: Recorder) -> dict[str, Times]:
    """Returns the figures by the name of the fault."""
    table: dict[str, Times] = {}
    for fault in faults:
        times = table.setdefault(fault.name, Times())
        times.count += 1
        if fault.back_seconds is not None:
            times.back.append(fault.back_seconds)
        for victim in fault.victims:
            add_victim(times, fault.begun_at, recorder.statuses[victim])
    return table


def add_victim(times: Times, begun_at: float, statuses: Sequence[Seen]) -> None:
    later = [seen for seen in statuses if seen.at > begun_at]
    times.victims += 1
    if not later or later[0].status in ENDED:
        times.kept_running += 1  # it ended as if nothing had happened
        return
    times.noticed.append(later[0].at - begun_at)
    running = [seen.at for seen in later if seen.status == "running"]
    times.again += [running[0] - begun_at] if running else []


def figures(seconds: Sequence[float]) -> str:
    """Returns median and worst as text."""
    return f"{median(seconds):.1f} / {max(seconds):.1f}" if seconds else "–"


class BackProbe:
    """Finds out when the process that takes the place of a killed one works."""

    def __init__(self, system: System, is_alive: Callable[[], bool]) -> None:
        self.system = system
        self._is_alive = is_alive
        self._redis = Redis(port=system.redis_port, protocol=2, socket_timeout=2)

    def identity(self, role: str) -> set[str]:
        """Returns the identities of the processes of a role: workers by name and birth in Redis, others by process id."""
        if role in QUEUES:
            with suppress(RedisError):
                return {self._birth(key.decode()) for key in self._redis.smembers(f"rq:workers:{role}")}
            return set()
        with suppress(psutil.NoSuchProcess):
            return {str(self.system.main_process(role).pid)}
        return set()

    def wait(self, role: str, before: set[str]) -> float | None:
        """Returns the seconds until another process of a role works; None after two minutes."""
        started = time.monotonic()
        while time.monotonic() - started < BACK_SECONDS:
            if self.identity(role) - before and self._answers(role):
                return time.monotonic() - started
            time.sleep(POLL_SECONDS)
        return None

    def _birth(self, key: str) -> str:
        return f"{key} {self._redis.hget(key, 'birth')}"

    def _answers(self, role: str) -> bool:
        if role == "api":
            return self._is_alive()
        with suppress(RedisError):
            return role != "redis" or bool(self._redis.ping())
        return False


def describe(done: Done) -> str:
    """Returns a fault as one JSON line of the run's log."""
    return json.dumps({"fault": done.name, "role": done.role, "victims": len(done.victims), "back": done.back_seconds, "problem": done.problem})  # fmt: skip
