"""Headers of every response: the request id and security headers."""

import re
from uuid import uuid4

from flask import Flask, Response, g, request

from services.logs import set_log_ids

REQUEST_ID = "X-Request-Id"

NOTHING_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Policy of responses that are not pages: nothing in them may load or run anything."""


def request_id() -> str:
    """Returns the id of the current request: the client's own if it is valid, else a new one."""
    if "request_id" not in g:
        given = request.headers.get(REQUEST_ID, "")
        g.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid4().hex
    found: str = g.request_id
    return found


def add_headers(response: Response) -> Response:
    """Adds the common headers to a response; those that a view has set are kept."""
    response.headers[REQUEST_ID] = request_id()
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    response.headers.setdefault("Content-Security-Policy", NOTHING_POLICY)
    return response


def register(app: Flask) -> None:
    """Adds the headers to every response of the application, and the id of the request to what it logs."""
    app.before_request(lambda: set_log_ids(request=request_id()))
    app.after_request(add_headers)
    app.teardown_request(lambda _: set_log_ids())
