"""Parent side of an isolated process: started when it is needed, kept for further requests, replaced after its death.

It is a fresh process and not a fork: it has no memory, no open file and no GPU of its parent, and no secret of its
environment.
"""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from services.isolation.exchange import WAIT_SECONDS, Exchange
from services.isolation.frames import from_content, to_frame
from services.isolation.limits import LimitExceeded, Limits, ProcessDied

ATTEMPTS = 2
"""A process that was killed from outside, for example because the system ran out of memory, is replaced once."""

KEPT_VARIABLES = ("PATH", "TZ", "LD_LIBRARY_PATH")

ROOT = Path(__file__).parents[2]
"""Folder of the package `services`."""

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that yields whenever its caller may do something else, and returns its result at the end."""


def advance(steps: Steps[T]) -> T | None:
    """Does the next part of the work; returns its result, or None if there is more to do."""
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    return None


def complete(steps: Steps[T]) -> T:
    """Does all of the work and returns its result, which is not None."""
    while True:
        result = advance(steps)
        if result is not None:
            return result


class IsolatedProcess:
    """A process that runs a module which calls `serve`, and answers one request after another. It belongs to one thread."""

    def __init__(self, module: str, limits: Limits) -> None:
        self._module, self._limits = module, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = _nothing
        self._is_busy = False

    @property
    def pid(self) -> int | None:
        """Id of the process, None while there is none."""
        return None if self._process is None else self._process.pid

    def call(self, request: Any) -> Steps[Any]:
        """Sends a request, a JSON value, and returns the answer. A call that is closed before it ends stops the process.

        Raises:
            LimitExceeded: The request reached a limit.
            ProcessDied: The process died of the request.
        """
        while self._is_busy:  # with another call
            time.sleep(WAIT_SECONDS)
            yield
        self._is_busy, is_answered = True, False
        try:
            answer = yield from self._answer(to_frame(request))
            is_answered = True
            return answer
        finally:
            self._is_busy = False
            if not is_answered:
                self.stop()

    def start(self) -> None:
        """Starts the process before its first call."""
        self._running()

    def stop(self) -> None:
        """Kills the process, if there is one; the next call starts another."""
        self._end()
        self._process = None

    def _answer(self, frame: bytes) -> Steps[Any]:
        for _ in range(ATTEMPTS - 1):
            try:
                return (yield from self._exchange(frame))
            except ProcessDied:
                self.stop()
        return (yield from self._exchange(frame))

    def _exchange(self, frame: bytes) -> Steps[Any]:
        process = self._running()
        exchange = Exchange(process, frame, self._limits)
        try:
            while not exchange.advance():
                yield
        except ProcessDied as error:
            process.kill()  # of no effect on a process that is dead already
            if (ending := process.wait()) == -signal.SIGPROF:
                seconds = f"{self._limits.cpu_seconds:g}"
                raise LimitExceeded(f"more than {seconds} s of processor time") from error
            raise ProcessDied(f"{error} (exit status {ending})") from error
        return self._value(exchange.content)

    def _value(self, content: bytes) -> Any:
        """Returns the value of an answer. Raises LimitExceeded, ProcessDied."""
        try:
            value = from_content(content)
            if "answer" in value:
                return value["answer"]
        except ValueError as error:
            raise ProcessDied("it answered with nonsense") from error
        raise LimitExceeded(f"more than {self._limits.memory_bytes >> 20} MiB of memory")

    def _running(self) -> "subprocess.Popen[bytes]":
        """Returns the process, started if there is none that lives."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = _started(self._module, self._limits)
            self._end = weakref.finalize(self, _end, self._process)
        return self._process


def _started(module: str, limits: Limits) -> "subprocess.Popen[bytes]":
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    arguments = [str(os.getpid()), str(limits.memory_bytes), str(limits.cpu_seconds)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return process


def _nothing() -> None:
    """Stands for the end of a process that was never started."""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
