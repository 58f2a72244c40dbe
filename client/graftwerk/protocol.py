"""Rules of the HTTP interface that the synchronous and the asynchronous client share; nothing here sends anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from graftwerk.errors import ApiError, ClientError, UnreachableError

TIMEOUT = httpx.Timeout(60, connect=10)

CONNECT_RETRIES = 2

STREAM_SECONDS = 45.0
"""A stream that is silent for longer, three keep-alives, is dead."""

MAX_FAILURES = 15
"""Consecutive failed requests, with a pause between two of them, after which the service counts as gone."""

PAUSE_SECONDS = 2.0

FIELDS = ("type", "title", "status", "code", "detail", "hint")
"""Fields of a problem that have an attribute of their own, or that say the same as another."""


def connection_options(url: str, api_key: str | None) -> dict[str, Any]:
    """Returns the options of httpx's client for a service."""
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": TIMEOUT,
        # a proxy from the environment cannot reach this machine's loopback
        "trust_env": not _is_loopback(url),
    }


def stream_timeout(silence_seconds: float = STREAM_SECONDS) -> httpx.Timeout:
    """Returns the timeout of a response that arrives over a long time."""
    return httpx.Timeout(60, connect=10, read=silence_seconds)


@contextmanager
def checked_address(url: str) -> Iterator[None]:
    """Turns the errors of a URL or a key that cannot be used into the client's own.

    Raises:
        UnreachableError: the URL or the key cannot be used.
    """
    try:
        yield
    except (httpx.InvalidURL, ValueError) as error:
        raise UnreachableError(
            f"The URL {url!r} cannot be used: {error}.",
            "A URL looks like http://127.0.0.1:8000; a key is plain ASCII.",
        ) from error


@contextmanager
def request_errors(url: str) -> Iterator[None]:
    """Turns the errors of a request that was not answered into the client's own.

    Raises:
        UnreachableError: no service responds.
        ApiError: the request holds text that cannot be sent.
    """
    try:
        yield
    except (httpx.InvalidURL, httpx.HTTPError) as error:
        hint = "Start one with `graftwerk serve`, or set its address with --url or GRAFTWERK_URL."
        raise UnreachableError(f"No Graftwerk service responds at {url} ({error}).", hint) from error
    except UnicodeEncodeError as error:
        found = f"The request contains {error.object[error.start]!r}, half a character."
        raise ApiError("invalid_text", found, "Type the text again, or save the file as UTF-8.") from error


@contextmanager
def reading_errors(url: str) -> Iterator[None]:
    """Turns the errors of a response in another form than Graftwerk's into the client's own.

    Raises:
        UnreachableError: the server at the URL is not a Graftwerk service.
    """
    try:
        yield
    except ValueError as error:
        raise UnreachableError(
            f"The server at {url} responds, but not as Graftwerk does.",
            "Check the address: --url or GRAFTWERK_URL.",
        ) from error


def refusal(response: httpx.Response) -> ApiError:
    """Returns the error of a response that is not a success."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason_phrase
    code = problem.get("code") or f"http_{response.status_code}"
    extensions = {name: value for name, value in problem.items() if name not in FIELDS}
    return ApiError(
        code, detail, problem.get("hint") or "", status=response.status_code, extensions=extensions
    )


def is_temporary(error: ClientError) -> bool:
    """Returns True if the same request may succeed a moment later."""
    if isinstance(error, ApiError):
        return error.status >= 500 or error.status == 429
    return isinstance(error, UnreachableError)


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
