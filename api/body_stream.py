"""Reading of request bodies from the connection: silent senders and damaged chunks end a request cleanly."""

from collections.abc import Iterator
from contextlib import contextmanager

from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

IDLE_SECONDS = 20
"""Time without a byte after which a connection counts as broken, so that its upload is free for the next one.

Shorter than clients keep trying: a half-open connection locks its upload.
"""

FAULTS = (OSError, ClientDisconnected, ParseException)
"""Errors of reading a body: silence, a broken connection, chunks that do not follow HTTP."""


@contextmanager
def idle_timeout() -> Iterator[None]:
    """Limits the time that a read of the block waits for a byte."""
    connection = request.environ.get("gunicorn.socket")
    if connection is None:  # another server, as in tests
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(IDLE_SECONDS)
    try:
        yield
    finally:
        connection.settimeout(before)
