"""What every response carries: the request's id, and what browsers need to know to be careful."""

import re
from uuid import uuid4

from flask import Flask, Response, g, request

REQUEST_ID = "X-Request-Id"

NOTHING_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Data is not a page: nothing in it may load or run anything."""


def request_id() -> str:
    """The id of the current request: the client's own where it has the form of one, else a new one."""
    if "request_id" not in g:
        given = request.headers.get(REQUEST_ID, "")
        g.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid4().hex
    found: str = g.request_id
    return found


def add_headers(response: Response) -> Response:
    """The response with the headers that all have; those that a view has set stay."""
    response.headers[REQUEST_ID] = request_id()
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    response.headers.setdefault("Content-Security-Policy", NOTHING_POLICY)
    return response


def register(app: Flask) -> None:
    """Every response of the application gets them."""
    app.after_request(add_headers)
