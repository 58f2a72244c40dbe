"""Limit of wrong keys: whoever guesses must wait. Requests with a valid key are never counted or delayed.

Behind a container's gateway all clients have one address. Wrong keys are therefore counted by address and the key's
beginning together, so that one misconfigured program does not change what others are answered, and by address with a
higher limit, so that guesses with many beginnings have one too.
"""

import hashlib
from collections.abc import Callable

from flask import Flask, g, request
from flask_limiter import Limiter, RateLimitExceeded
from redis import Redis
from werkzeug.exceptions import TooManyRequests

BEGINNING = 6
"""Characters of a key that count as its beginning; they are stored as a digest."""

PER_BEGINNING, PER_ADDRESS = "10/minute", "100/minute"
WAIT_SECONDS = 60

SCOPE = "wrong-keys"
"""Scope of both limits: without one each route and the sign-in would count apart."""


def wrong_key_counter(app: Flask, redis: Redis) -> Callable[[str], None]:
    """Returns a function that counts a wrong key of the current request, in Redis or, while it is away, in this process.

    The function raises TooManyRequests if there have been too many.
    """
    limiter = Limiter(
        _address,
        app=app,
        storage_uri="redis://",
        storage_options={"connection_pool": redis.connection_pool},  # type: ignore[dict-item]
        in_memory_fallback_enabled=True,
        key_prefix="graftwerk",
    )

    @limiter.shared_limit(PER_ADDRESS, scope=SCOPE)
    @limiter.shared_limit(PER_BEGINNING, scope=SCOPE, key_func=_address_and_beginning)
    def count() -> None:
        pass

    def count_wrong_key(key: str) -> None:
        g.wrong_key = hashlib.sha256(key[:BEGINNING].encode("utf-8", "surrogateescape")).hexdigest()[:16]
        try:
            count()
        except RateLimitExceeded as error:
            raise TooManyRequests(
                f"There were too many requests with unknown keys. Wait {WAIT_SECONDS} seconds, and check the key.",
                retry_after=WAIT_SECONDS,
            ) from error

    return count_wrong_key


def _address() -> str:
    return request.remote_addr or "unknown"


def _address_and_beginning() -> str:
    return f"{_address()}/{g.wrong_key}"
