"""HTTP with a service: calls, downloads and event streams, with the client's own errors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from graftwerk import protocol
from graftwerk.calls import Call
from graftwerk.errors import UnreachableError

T = TypeVar("T")


class HttpService:
    """HTTP connections to the service at a URL.

    Raises:
        ApiError: the service refuses a request.
        UnreachableError: no Graftwerk service responds at the URL.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self.pause = pause
        with protocol.checked_address(url):
            self._http = httpx.Client(
                **protocol.connection_options(self.url, api_key),
                transport=transport or httpx.HTTPTransport(retries=protocol.CONNECT_RETRIES),
            )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def call(self, call: Call[T]) -> T:
        """Sends a call and returns its response as the call reads it."""
        response = self.send(call.method, call.path, **call.content)
        with protocol.reading_errors(self.url):
            return call.read(response)

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Returns a successful response."""
        with protocol.request_errors(self.url):
            response = self._http.request(method, path, **content)
        if not response.is_success:
            raise protocol.refusal(response)
        return response

    @contextmanager
    def download(self, path: str, **content: Any) -> Iterator[httpx.Response]:
        """Yields a successful response whose body is not read yet."""
        try:
            with self._http.stream("GET", path, timeout=protocol.stream_timeout(), **content) as response:
                if not response.is_success:
                    response.read()
                    raise protocol.refusal(response)
                yield response
        except httpx.HTTPError as error:
            raise UnreachableError(f"The download from {self.url} broke: {error}.", "Try again.") from error

    def events(self, path: str, last_id: str, silence_seconds: float) -> Iterator[ServerSentEvent]:
        """Yields server-sent events after `last_id`; none where the service sends no stream.

        Raises:
            httpx.TransportError: the stream broke, or was silent for longer than `silence_seconds`.
        """
        headers = {"Last-Event-ID": last_id} if last_id else {}
        timeout = protocol.stream_timeout(silence_seconds)
        with connect_sse(self._http, "GET", path, headers=headers, timeout=timeout) as source:
            if source.response.is_success:
                yield from source.iter_sse()
