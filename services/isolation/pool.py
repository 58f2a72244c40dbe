"""Processes that answer the requests of many threads: one as a rule, further ones while the others are busy for long."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.isolation.limits import Limits
from services.isolation.process import IsolatedProcess, complete

MOST = 3
"""Most processes of a pool: a request that runs into its limits leaves the others to the rest."""

PATIENCE_SECONDS = 0.25
"""Time that a request waits for a busy process before another one is started, which takes longer than this."""


class NoProcessFree(Exception):
    """All processes were busy for as long as one request may take."""


class ProcessPool:
    """Isolated processes of one module, which may be called from any thread; a process ends with the thread that started it."""

    def __init__(self, module: str, limits: Limits, *, most: int = MOST) -> None:
        self._module, self._limits, self._most = module, limits, most
        self._all: list[IsolatedProcess] = []
        self._idle: list[IsolatedProcess] = []  # the last one is used first
        self._changed = threading.Condition()

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that were started."""
        return [process.pid for process in self._all if process.pid is not None]

    def start(self) -> None:
        """Starts the first process, so that the first request does not wait for it."""
        with self._taken() as process:
            process.start()

    def call(self, request: Any) -> Any:
        """Sends a request, a JSON value, and returns the answer.

        Raises:
            NoProcessFree: no process became free in time.
            LimitExceeded, ProcessDied: as `IsolatedProcess.call`.
        """
        with self._taken() as process:
            return complete(process.call(request))

    def stop(self) -> None:
        """Kills the processes that are not busy; the next request starts another."""
        with self._changed:
            for process in self._idle:
                process.stop()

    @contextmanager
    def _taken(self) -> Iterator[IsolatedProcess]:
        process = self._take()
        try:
            yield process
        finally:
            with self._changed:
                self._idle.append(process)
                self._changed.notify()

    def _take(self) -> IsolatedProcess:
        with self._changed:
            if self._all:
                self._changed.wait_for(lambda: self._idle, PATIENCE_SECONDS)
            if not self._idle and len(self._all) < self._most:
                self._all.append(IsolatedProcess(self._module, self._limits))
                return self._all[-1]
            if not self._changed.wait_for(lambda: self._idle, self._limits.seconds):
                raise NoProcessFree(f"{self._most} processes were busy for {self._limits.seconds:g} s")
            return self._idle.pop()
