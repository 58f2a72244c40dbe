"""A running process of llama.cpp: started, asked for outputs over a socket that no one else can reach, and stopped.

Its calls run in a thread with an event loop; all methods may be called from any thread.
"""

import asyncio
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from services.engines.child import ChildServer
from services.engines.hidden_tokens import HiddenTokens
from services.engines.llama_cpp import LlamaCppOptions, program_command
from services.engines.llama_cpp_request import Part, Tokens, body_of, refusal, score_body, tokens_of
from services.engines.vllm_request import OutputRequest, ServedToken
from services.errors import GraftwerkError, NotReady

POLL_SECONDS = 0.05
SILENCE_SECONDS = 600.0
"""Time without data after which a request counts as lost: a long prompt takes minutes on a CPU."""

DEATH_SECONDS = 3.0
"""Time after a broken connection in which the end of the process is noticed."""

FIRST_WHOLE_TOKENS = 8
"""Tokens that are requested at once after tokens that were left out and not found; twice as many the next time."""

SCORED_TOKENS = 100
"""Most likely tokens among which a token that was left out is looked for before all are."""

TakeTokens = Callable[[Sequence[ServedToken]], None]
"""Takes new tokens of an output, in the thread of the calls."""

logger = logging.getLogger("graftwerk.llama_cpp")


class LlamaCppServer:
    """llama.cpp with one model and its adapters."""

    def __init__(self, name: str, options: LlamaCppOptions, token_bytes: Sequence[bytes]) -> None:
        """Starts the process.

        Args:
            name: The model's name.
            token_bytes: Bytes of each token, b"" for special tokens.
        """
        self.name = name
        self._options = options
        self._hidden = HiddenTokens(token_bytes)
        self._scratch = Path(tempfile.mkdtemp(prefix="graftwerk-llama-cpp-"))  # of mode 0700
        socket = self._scratch / "socket.sock"  # llama.cpp takes a path with this ending for a socket
        self._child = ChildServer(program_command(options, socket), {}, logger=logger)
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://llama.cpp",
            timeout=httpx.Timeout(SILENCE_SECONDS, pool=None),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llama-cpp-calls", daemon=True)
        self._thread.start()
        self._ready = self._run(self._start())

    @property
    def pid(self) -> int:
        """Id of the group of the server's processes."""
        return self._child.pid

    @property
    def is_ready(self) -> bool:
        """True once the process takes requests."""
        return self._ready.done() and self._ready.exception() is None

    @property
    def is_lost(self) -> bool:
        """True once the process has ended."""
        return self._child.has_ended

    def check(self) -> None:
        """Raises NotReady if the process does not run any more, or has not loaded its model in time."""
        if self._ready.done():
            self._ready.result()
        if self._child.has_ended:
            raise self._ended()

    def when_started(self, call: Callable[[], None]) -> None:
        """Calls a function once the process is ready or cannot be, perhaps in another thread."""
        self._ready.add_done_callback(lambda _: call())

    def stream(self, request: OutputRequest, take: TakeTokens) -> "Future[None]":
        """Generates an output; the future has its error. Cancelling it closes the connection, and llama.cpp stops.

        It ends without an error if the model has written a token that ends every output.
        """
        return self._run(self._stream(request, take))

    def stop(self) -> None:
        """Ends the process and all requests."""
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
        """Waits until the process is ready."""
        deadline = time.monotonic() + self._options.start_seconds
        while time.monotonic() < deadline:
            if self._child.has_ended:
                raise self._ended()
            with suppress(httpx.TransportError):
                if (await self._client.get("/health", timeout=5)).is_success:
                    return
            await asyncio.sleep(POLL_SECONDS)
        raise NotReady(
            f"llama.cpp did not load {self.name} within {self._options.start_seconds:g} s.",
            "Raise LLAMA_CPP_START_SECONDS.",
        )

    async def _stream(self, request: OutputRequest, take: TakeTokens) -> None:
        try:
            await self._complete(request, take)
        except httpx.TransportError as error:
            raise await self._broken(error) from error

    async def _complete(self, request: OutputRequest, take: TakeTokens) -> None:
        """Generates an output: in a stream, and at once where the stream leaves out tokens that cannot be found.

        An output with a grammar is generated at once, since a grammar cannot go on within a text.
        """
        ids: list[int] = []
        limit, whole = request.sampling.max_new_tokens, FIRST_WHOLE_TOKENS

        def keep(tokens: Sequence[ServedToken]) -> None:
            ids.extend(token.token_id for token in tokens)
            take(tokens)

        while True:
            if request.grammar is None and await self._streamed(
                request, Part([*ids], limit - len(ids), streamed=True), keep
            ):
                return
            count = limit - len(ids) if request.grammar else min(whole, limit - len(ids))
            if await self._at_once(request, Part([*ids], count, streamed=False), keep) or len(ids) >= limit:
                return
            whole *= 2

    async def _streamed(self, request: OutputRequest, part: Part, take: TakeTokens) -> bool:
        """Returns False if tokens were left out that cannot be found."""
        seen = 0
        async with self._client.stream("POST", "/completion", json=body_of(request, part)) as response:
            if not response.is_success:
                raise refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                event = tokens_of(line.removeprefix("data:").strip())
                tokens = self._with_hidden(event, event.count - seen)
                if tokens is None:
                    return False
                seen = event.count
                take(tokens)
                if event.end is not None:
                    return True
        raise NotReady("llama.cpp closed a stream early.", "Try again.")

    def _with_hidden(self, event: Tokens, count: int) -> Sequence[ServedToken] | None:
        """Returns the `count` tokens of an event, with those that it leaves out; None if they cannot be found."""
        if count == len(event.ids):
            return event.scored or [*map(ServedToken, event.ids)]
        if event.scored or len(event.ids) != 1:
            return None
        found = self._hidden.find(event.text, count - 1, event.ids[0])
        return None if found is None else [*map(ServedToken, [*found, *event.ids])]

    async def _at_once(self, request: OutputRequest, part: Part, take: TakeTokens) -> bool:
        """Returns True if the output has ended."""
        answer = await self._post(body_of(request, part))
        if answer.count != len(answer.ids) or not answer.count:
            raise NotReady(
                f"llama.cpp counts {answer.count} tokens and sent {len(answer.ids)}.", "Try again."
            )
        if request.logprobs is None:
            take([*map(ServedToken, answer.ids)])
        else:
            take(await self._scored(request, part.written, answer))
        return answer.end == "eos"

    async def _scored(
        self, request: OutputRequest, written: Sequence[int], answer: Tokens
    ) -> Sequence[ServedToken]:
        """Returns all tokens with their scores; those that llama.cpp leaves out are scored by a call each."""
        scored, found = iter(answer.scored), list[ServedToken]()
        for place, is_visible in enumerate(self._hidden.visible_ends(answer.ids)):
            token_id = answer.ids[place]
            if is_visible:
                token = next(scored, None)
                if token is None or token.token_id != token_id:
                    raise NotReady("llama.cpp sent log-probabilities of other tokens.", "Try again.")
            else:
                token = await self._score(request, [*written, *answer.ids[:place]], token_id)
            found.append(token)
        return found

    async def _score(self, request: OutputRequest, written: Sequence[int], token_id: int) -> ServedToken:
        for count in (SCORED_TOKENS, self._hidden.rows):
            answer = await self._post(score_body(request, written, self._hidden.visible, count))
            scores = dict(answer.scored[0].top) if answer.scored else {}
            if token_id in scores:
                return ServedToken(token_id, scores[token_id], answer.scored[0].top[: request.logprobs])
        raise NotReady(f"llama.cpp sent no log-probability of the token {token_id}.", "Try again.")

    async def _post(self, body: Mapping[str, Any]) -> Tokens:
        response = await self._client.post("/completion", json=body)
        if not response.is_success:
            raise refusal(response.status_code, response.text)
        return tokens_of(response.text)

    async def _broken(self, error: httpx.TransportError) -> GraftwerkError:
        """Returns the error of a broken connection: the end of the process, if it has ended."""
        deadline = time.monotonic() + DEATH_SECONDS
        while not self._child.has_ended and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        if self._child.has_ended:
            return self._ended()
        return NotReady(f"llama.cpp does not answer: {type(error).__name__}: {error}.", "Try again.")

    def _ended(self) -> NotReady:
        return NotReady(
            f"llama.cpp with {self.name} {self._child.ending()}.",
            "Try again; if it happens each time, the file is damaged: convert the model to huggingface to find the fault.",
        )

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
