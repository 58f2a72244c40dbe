"""Calls to another server, one per output, in a thread with an event loop: any call can be canceled at any time."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import httpx

from services.backend import Backend, Call, Chunk
from services.errors import GraftwerkError, InvalidSettings, ModelNotFound, NotReady
from worker.lifecycle import catching

FATAL = (NotReady, InvalidSettings, ModelNotFound)
"""Errors that end all calls; any other error belongs to one output."""

Place = tuple[int, int]
"""Number of a prompt, and index of one of its outputs."""


@dataclass(frozen=True, slots=True)
class CallEnded:
    """End of one call, with its error if it has one."""

    error: GraftwerkError | None = None


class RemoteCalls:
    """Runs the calls of one job, a limited number at once, and queues what the server sends."""

    def __init__(
        self, backend: Backend, call_of: Callable[[Place], Call], notify: Callable[[], None]
    ) -> None:
        """`notify` is called in the thread whenever something was queued."""
        self._backend, self._call_of, self._notify = backend, call_of, notify
        self._received: SimpleQueue[tuple[Place, Chunk | CallEnded] | Exception] = SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self, places: Sequence[Place], *, at_once: int) -> None:
        """Starts the thread and its calls."""
        self._task = self._loop.create_task(self._run_all(places, at_once))
        threading.Thread(target=self._run, args=(self._task,), name="remote-calls", daemon=True).start()

    def cancel(self) -> None:
        """Cancels all calls: the connections are closed, and the server stops. May be called from any thread."""
        if self._task is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._task.cancel)

    def received(self) -> Iterator[tuple[Place, Chunk | CallEnded]]:
        """Yields what has been queued so far.

        Raises:
            GraftwerkError: one of `FATAL` ended all calls.
        """
        with suppress(Empty):
            while True:
                item = self._received.get_nowait()
                if isinstance(item, Exception):
                    raise item
                yield item

    def _run(self, task: asyncio.Task[None]) -> None:
        with suppress(asyncio.CancelledError), catching() as caught:
            self._loop.run_until_complete(task)
        if caught.error is not None:
            error = caught.error
            self._put(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _run_all(self, places: Sequence[Place], at_once: int) -> None:
        waiting = iter(places)
        async with self._backend.client() as client, asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(places))):
                group.create_task(self._run_some(client, waiting))

    async def _run_some(self, client: httpx.AsyncClient, waiting: Iterator[Place]) -> None:
        for place in waiting:
            try:
                await self._run_one(client, place)
            except FATAL:
                raise
            except GraftwerkError as error:
                self._put((place, CallEnded(error)))
            else:
                self._put((place, CallEnded()))

    async def _run_one(self, client: httpx.AsyncClient, place: Place) -> None:
        call = self._call_of(place)
        async with aclosing(self._backend.stream(client, call.path, call.body)) as chunks:
            async for chunk in chunks:
                self._put((place, chunk))

    def _put(self, item: tuple[Place, Chunk | CallEnded] | Exception) -> None:
        self._received.put(item)
        self._notify()
