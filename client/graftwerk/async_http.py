"""HTTP with a service from a coroutine: the calls of `http`, awaited."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import httpx
from httpx_sse import ServerSentEvent, aconnect_sse

from graftwerk import protocol
from graftwerk.calls import Call
from graftwerk.errors import UnreachableError

T = TypeVar("T")


class AsyncHttpService:
    """HTTP connections to the service at a URL, for one event loop.

    Raises:
        ApiError: the service refuses a request.
        UnreachableError: no Graftwerk service responds at the URL.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self.pause = pause
        with protocol.checked_address(url):
            self._http = httpx.AsyncClient(
                **protocol.connection_options(self.url, api_key),
                transport=transport or httpx.AsyncHTTPTransport(retries=protocol.CONNECT_RETRIES),
            )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def call(self, call: Call[T]) -> T:
        """Sends a call and returns its response as the call reads it."""
        with protocol.request_errors(self.url):
            response = await self._http.request(call.method, call.path, **call.content)
        if not response.is_success:
            raise protocol.refusal(response)
        with protocol.reading_errors(self.url):
            return call.read(response)

    @asynccontextmanager
    async def download(self, path: str, **content: Any) -> AsyncIterator[httpx.Response]:
        """Yields a successful response whose body is not read yet."""
        timeout = protocol.stream_timeout()
        try:
            async with self._http.stream("GET", path, timeout=timeout, **content) as response:
                if not response.is_success:
                    await response.aread()
                    raise protocol.refusal(response)
                yield response
        except httpx.HTTPError as error:
            raise UnreachableError(f"The download from {self.url} broke: {error}.", "Try again.") from error

    async def events(
        self, path: str, last_id: str, silence_seconds: float
    ) -> AsyncGenerator[ServerSentEvent, None]:
        """Yields server-sent events after `last_id`; none where the service sends no stream.

        Raises:
            httpx.TransportError: the stream broke, or was silent for longer than `silence_seconds`.
        """
        headers = {"Last-Event-ID": last_id} if last_id else {}
        timeout = protocol.stream_timeout(silence_seconds)
        async with aconnect_sse(self._http, "GET", path, headers=headers, timeout=timeout) as source:
            if source.response.is_success:
                async for event in source.aiter_sse():
                    yield event
