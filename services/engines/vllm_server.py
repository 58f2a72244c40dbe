"""A running vLLM server: started, asked for outputs over a socket that no one else can reach, and stopped.

Its calls run in a thread with an event loop; all methods may be called from any thread.
"""

import asyncio
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from services.engines.child import ChildServer
from services.engines.vllm import ENVIRONMENT, VllmOptions, server_command
from services.engines.vllm_request import OutputRequest, ServedToken, body_of, refusal, tokens_of
from services.errors import GraftwerkError, InvalidSettings, NotReady

POLL_SECONDS = 0.2
SILENCE_SECONDS = 600.0
"""Time without data after which a request counts as lost: a long prompt takes minutes on a CPU."""

DEATH_SECONDS = 3.0
"""Time after a broken connection in which the end of the server is noticed."""

KEPT_ADAPTERS = 64
"""Adapters that a server knows; the least recently used is unloaded for another."""

TakeTokens = Callable[[Sequence[ServedToken], Sequence[ServedToken]], None]
"""Takes tokens of the prompt and new tokens of an output, in a thread of the server's."""

logger = logging.getLogger("graftwerk.vllm")


class VllmServer:
    """vLLM with one model."""

    def __init__(self, name: str, folder: Path, options: VllmOptions) -> None:
        """Starts the server; `name` is the model's.

        Raises:
            InvalidSettings: the command does not exist.
        """
        self.name = name
        self._options = options
        self._scratch = Path(tempfile.mkdtemp(prefix="graftwerk-vllm-"))
        socket = self._scratch / "socket"
        command = server_command(options, folder, socket)
        if shutil.which(command[0]) is None:
            raise InvalidSettings(
                f"VLLM_COMMAND is {options.command!r}, and there is no program {command[0]!r}.",
                "Install vLLM (worker/Dockerfile.vllm), or name the command that starts its server.",
            )
        self._child = ChildServer(command, ENVIRONMENT, logger=logger)
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://vllm",
            timeout=httpx.Timeout(SILENCE_SECONDS, pool=None),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-calls", daemon=True)
        self._thread.start()
        self._adapters: dict[str, asyncio.Task[None]] = {}  # by name, the least recently used first
        self._users: dict[str, int] = {}
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
        """True once the server has ended or could not be started."""
        return self._child.has_ended or (self._ready.done() and not self.is_ready)

    def check(self) -> None:
        """Raises NotReady if the server does not run any more, or has not started in time."""
        if self._ready.done():
            self._ready.result()
        if self._child.has_ended:
            raise self._ended()

    def when_started(self, call: Callable[[], None]) -> None:
        """Calls a function once the server is ready or cannot be, perhaps in another thread."""
        self._ready.add_done_callback(lambda _: call())

    def stream(self, request: OutputRequest, adapter: Path | None, take: TakeTokens) -> "Future[None]":
        """Generates an output; the future has its error. Cancelling it closes the connection, and vLLM stops.

        Args:
            adapter: Folder of the adapter with the name `request.model`; None if that is the base.
        """
        return self._run(self._stream(request, adapter, take))

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

    def _run(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _start(self) -> None:
        """Waits until the server is ready."""
        deadline = time.monotonic() + self._options.start_seconds
        while time.monotonic() < deadline:
            if self._child.has_ended:
                raise self._ended()
            with suppress(httpx.TransportError):
                if (await self._client.get("/health", timeout=5)).is_success:
                    return
            await asyncio.sleep(POLL_SECONDS)
        raise NotReady(
            f"vLLM was not ready with {self.name} after {self._options.start_seconds:g} s.",
            "Raise VLLM_START_SECONDS, or look for the reason in the worker's log.",
        )

    async def _stream(self, request: OutputRequest, adapter: Path | None, take: TakeTokens) -> None:
        self._users[request.model] = self._users.get(request.model, 0) + 1
        try:
            if adapter is not None:
                await self._load(request.model, adapter)
            await self._complete(request, take)
        except httpx.TransportError as error:
            raise await self._broken(error) from error
        finally:
            self._users[request.model] -= 1

    async def _complete(self, request: OutputRequest, take: TakeTokens) -> None:
        echoed = 0 if request.prompt_logprobs is None else len(request.prompt_token_ids)
        async with self._client.stream("POST", "/v1/completions", json=body_of(request)) as response:
            if not response.is_success:
                raise refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if line.startswith("data:"):
                    prompt, tokens, reason = tokens_of(data, echoed=echoed)
                    echoed -= len(prompt)
                    take(prompt, tokens)
                    if reason not in (None, "stop", "length"):
                        raise NotReady(f"vLLM ended the output early ({reason}).", "Try again.")
        raise NotReady("vLLM closed a stream early.", "Try again.")

    async def _load(self, name: str, folder: Path) -> None:
        """Loads an adapter once."""
        task = self._adapters.pop(name, None)
        if task is None or (task.done() and task.exception() is not None):
            task = self._loop.create_task(self._load_now(name, folder))
        self._adapters[name] = task
        await asyncio.shield(task)

    async def _load_now(self, name: str, folder: Path) -> None:
        idle = [known for known in self._adapters if not self._users.get(known)]
        for known in idle[: max(0, len(self._adapters) + 1 - KEPT_ADAPTERS)]:
            del self._adapters[known]
            self._users.pop(known, None)
            await self._client.post("/v1/unload_lora_adapter", json={"lora_name": known})
        body = {"lora_name": name, "lora_path": str(folder)}
        response = await self._client.post("/v1/load_lora_adapter", json=body)
        if not response.is_success:
            error = refusal(400, response.text)
            raise type(error)(
                error.message.replace("refuses the request", f"does not load the adapter {folder.name}"),
                "Merge it into its base first, or ask for the merged copy with exact: true.",
            )

    async def _broken(self, error: httpx.TransportError) -> GraftwerkError:
        """Returns the error of a broken connection: the end of the server, if it has ended."""
        deadline = time.monotonic() + DEATH_SECONDS
        while not self._child.has_ended and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        if self._child.has_ended:
            return self._ended()
        return NotReady(f"vLLM does not answer: {type(error).__name__}: {error}.", "Try again.")

    def _ended(self) -> NotReady:
        return NotReady(
            f"vLLM with {self.name} {self._child.ending()}.", "The worker's log has all that it printed."
        )

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
