"""A server of an engine: a child process with one model, asked over a socket that no one else can reach.

Its calls run in a thread with an event loop; all methods may be called from any thread.
"""

import asyncio
import logging
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from services.engines.child import ChildServer
from services.engines.output import OutputRequest, TakeTokens
from services.errors import GraftwerkError, NotReady

POLL_SECONDS = 0.05
SILENCE_SECONDS = 600.0
"""Time without data after which a request counts as lost: a long prompt takes minutes on a CPU."""

DEATH_SECONDS = 3.0
"""Time after an output was broken off in which the end of the server is noticed."""

SOCKET_NAME = "server.sock"
"""llama.cpp takes a path with this ending for a socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProgram:
    """Program that serves a model.

    Attributes:
        engine: Name of the engine in messages.
        command: Returns the command that listens on a socket.
        start_seconds: Longest time until it takes requests.
        start_setting: Setting of that time.
        ended_hint: Advice where it has ended.
    """

    engine: str
    command: Callable[[Path], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    logger: logging.Logger
    start_seconds: float
    start_setting: str
    ended_hint: str


class EngineServer(ABC):
    """A program with one model: started, watched, stopped."""

    def __init__(self, name: str, program: ServerProgram) -> None:
        """Starts the program; `name` is the model's."""
        self.name = name
        self._program = program
        self._scratch = Path(tempfile.mkdtemp(prefix="graftwerk-engine-"))  # of mode 0700
        socket = self._scratch / SOCKET_NAME
        self._child = ChildServer(
            program.command(socket), program.environment, self._scratch, logger=program.logger
        )
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://engine",
            timeout=httpx.Timeout(SILENCE_SECONDS, pool=None),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-calls", daemon=True)
        self._thread.start()
        self._failure: NotReady | None = None
        self._ready = self._run(self._start())

    @property
    def pid(self) -> int:
        """Id of the group of the server's processes."""
        return self._child.pid

    @property
    def is_ready(self) -> bool:
        """True once the server takes requests."""
        return self._ready.done() and not self._ready.cancelled() and self._ready.exception() is None

    @property
    def is_lost(self) -> bool:
        """True once the server has ended, does not work any more, or could not be started."""
        return (
            self._child.has_ended or self._failure is not None or (self._ready.done() and not self.is_ready)
        )

    def check(self) -> None:
        """Raises NotReady if the server does not work any more, or has not started in time."""
        if self._child.has_ended:
            raise self._ended()
        if self._failure is not None:
            raise self._failure
        if self._ready.done():
            self._ready.result()

    def when_started(self, call: Callable[[], None]) -> None:
        """Calls a function once the server is ready or cannot be, perhaps in another thread."""
        self._ready.add_done_callback(lambda _: call())

    def stream(self, request: OutputRequest, take: TakeTokens) -> "Future[None]":
        """Generates an output; the future has its error. Cancelling it closes the connection, and the engine stops."""
        return self._run(self._answer(request, take))

    def stop(self) -> None:
        """Ends the server's processes and all requests."""
        self._child.stop()
        if not self._loop.is_closed():
            self._run(self._close()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # ---- in the loop's thread -------------------------------------------------------------------------

    @abstractmethod
    async def _complete(self, request: OutputRequest, take: TakeTokens) -> None:
        """Generates an output.

        Raises:
            httpx.TransportError: the connection is broken.
            GraftwerkError: the server refuses the request, or ends it early.
        """

    def _run(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _start(self) -> None:
        """Waits until the server is ready."""
        program = self._program
        deadline = time.monotonic() + program.start_seconds
        while time.monotonic() < deadline:
            if self._child.has_ended:
                raise self._ended()
            if await self._is_healthy():
                return
            await asyncio.sleep(POLL_SECONDS)
        raise NotReady(
            f"{program.engine} was not ready with {self.name} after {program.start_seconds:g} s.",
            f"Raise {program.start_setting}, or look for the reason in the worker's log.",
        )

    async def _answer(self, request: OutputRequest, take: TakeTokens) -> None:
        try:
            await self._complete(request, take)
        except (httpx.TransportError, NotReady) as error:
            raise await self._reason(error) from error

    async def _reason(self, error: httpx.TransportError | NotReady) -> GraftwerkError:
        """Returns the error of an output that was broken off: the end of the server, if it has ended.

        A server whose own child has died is not healthy, and says so to each request until it ends: it counts as lost.
        """
        deadline = time.monotonic() + DEATH_SECONDS
        while not self._child.has_ended and time.monotonic() < deadline:
            if isinstance(error, NotReady) and await self._is_healthy():
                return error
            await asyncio.sleep(POLL_SECONDS)
        if self._child.has_ended:
            return self._ended()
        if isinstance(error, NotReady):
            self._failure = error
            return error
        reason = f"{type(error).__name__}: {error}"
        return NotReady(f"{self._program.engine} does not answer: {reason}.", "Try again.")

    async def _is_healthy(self) -> bool:
        with suppress(httpx.TransportError):
            return (await self._client.get("/health", timeout=5)).is_success
        return False

    def _ended(self) -> NotReady:
        program = self._program
        return NotReady(f"{program.engine} with {self.name} {self._child.ending()}.", program.ended_hint)

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
