"""HTTP with a service: requests, JSON responses, event streams, and errors in the client's own classes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from httpx_sse import ServerSentEvent, connect_sse
from pydantic import ValidationError

from graftwerk.errors import ApiError, UnreachableError
from graftwerk.models import Job, JsonObject

TIMEOUT = httpx.Timeout(60, connect=10)
STREAM_SECONDS = 45.0
"""A stream that is silent for longer, three keep-alives, is dead."""


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
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=TIMEOUT,
                transport=transport or httpx.HTTPTransport(retries=2),
                # a proxy from the environment cannot reach this machine's loopback
                trust_env=not _is_loopback(self.url),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UnreachableError(
                f"The URL {url!r} cannot be used: {error}.",
                "A URL looks like http://127.0.0.1:8000; a key is plain ASCII.",
            ) from error

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Returns a successful response."""
        try:
            response = self._http.request(method, path, **content)
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            hint = "Start one with `graftwerk serve`, or set its address with --url or GRAFTWERK_URL."
            raise UnreachableError(f"No Graftwerk service responds at {self.url} ({error}).", hint) from error
        except UnicodeEncodeError as error:
            found = f"The request contains {error.object[error.start]!r}, half a character."
            raise ApiError(
                "invalid_text", found, "Type the text again, or save the file as UTF-8."
            ) from error
        if not response.is_success:
            raise _refusal(response)
        return response

    def json_object(self, method: str, path: str, **content: Any) -> JsonObject:
        """Returns the JSON object of a response."""
        try:
            value = self.send(method, path, **content).json()
        except ValueError as error:
            raise self._not_graftwerk() from error
        if not isinstance(value, dict):
            raise self._not_graftwerk()
        return value

    def items(self, path: str, key: str, params: dict[str, str]) -> list[JsonObject]:
        """Returns the list under a key of a response."""
        items = self.json_object("GET", path, params=params).get(key)
        if not isinstance(items, list):
            raise self._not_graftwerk()
        return items

    def job(self, method: str, path: str, **content: Any) -> Job:
        """Returns the job of a response."""
        return self.as_job(self.json_object(method, path, **content))

    def as_job(self, value: object) -> Job:
        """Returns the job in a JSON object."""
        try:
            return Job.model_validate(value)
        except ValidationError as error:
            raise self._not_graftwerk() from error

    @contextmanager
    def download(self, path: str, **content: Any) -> Iterator[httpx.Response]:
        """Yields a successful response whose body is not read yet."""
        try:
            with self._http.stream("GET", path, timeout=_stream_timeout(), **content) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx.HTTPError as error:
            raise UnreachableError(f"The download from {self.url} broke: {error}.", "Try again.") from error

    def events(self, path: str, last_id: str, silence_seconds: float) -> Iterator[ServerSentEvent]:
        """Yields server-sent events after `last_id`; none where the service sends no stream.

        Raises:
            httpx.TransportError: the stream broke, or was silent for longer than `silence_seconds`.
        """
        headers = {"Last-Event-ID": last_id} if last_id else {}
        timeout = _stream_timeout(silence_seconds)
        with connect_sse(self._http, "GET", path, headers=headers, timeout=timeout) as source:
            if source.response.is_success:
                yield from source.iter_sse()

    def _not_graftwerk(self) -> UnreachableError:
        return UnreachableError(
            f"The server at {self.url} responds, but not as Graftwerk does.",
            "Check the address: --url or GRAFTWERK_URL.",
        )


def job_path(job_id: str) -> str:
    """Returns the path of a job."""
    return f"/api/jobs/{quote(job_id, safe='')}"


def model_path(name: str) -> str:
    """Returns the path of a model."""
    return f"/api/models/{quote(name, safe='')}"


def is_temporary(error: ApiError | UnreachableError) -> bool:
    """Returns True if the same request may succeed a moment later."""
    return isinstance(error, UnreachableError) or error.status >= 500 or error.status == 429


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


def _stream_timeout(silence_seconds: float = STREAM_SECONDS) -> httpx.Timeout:
    return httpx.Timeout(60, connect=10, read=silence_seconds)


def _refusal(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason_phrase
    code = problem.get("code") or f"http_{response.status_code}"
    return ApiError(code, detail, problem.get("hint") or "", status=response.status_code)
