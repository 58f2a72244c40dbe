"""TCP proxy in front of Redis, one link for each role: it can break, swallow or delay what passes."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

BLOCK_BYTES = 65536


class Link:
    """One listening port whose connections lead to a port of this machine; used only in the proxy's loop."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.delay_seconds = 0.0
        self._server: asyncio.Server | None = None
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Opens a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Closes the port and breaks all connections."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Resets all connections and every new one."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Keeps connections open and passes nothing on."""
        self._flows.clear()

    def restore(self) -> None:
        """Passes everything on again, at once."""
        self._is_cut, self.delay_seconds = False, 0.0
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._relay(reader, far_writer), self._relay(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(BLOCK_BYTES):
                await self._flows.wait()
                await asyncio.sleep(self.delay_seconds)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # a cut, or the end of one side
        finally:
            writer.close()


class Proxy:
    """Links by role, in a thread of their own."""

    def __init__(self, roles: Iterable[str], target_port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.links = {role: self._call(self._open(target_port)) for role in roles}

    def apply(self, role: str, action: Callable[[Link], None]) -> None:
        """Runs an action on the link of a role, in the loop."""
        self._loop.call_soon_threadsafe(action, self.links[role])

    def close(self) -> None:
        """Breaks all connections and ends the thread."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _close(self) -> None:
        for link in self.links.values():
            await link.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self, target_port: int) -> Link:
        link = Link(target_port)
        await link.listen()
        return link

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)
