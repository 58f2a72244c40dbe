"""Parsing of request bodies; each kind of invalid body has its own error."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from flask import current_app, request
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.wsgi import get_input_stream

from api.body_stream import FAULTS, idle_timeout
from api.errors import InvalidFields
from services.errors import InvalidText
from services.files.json_budget import JsonBudget, excess
from services.kinds import KINDS, parse_request
from services.kinds.shared import JobRequest

BODY_BUDGET = JsonBudget(containers=100_000, members=20_000, items=1_000_000, depth=64)
"""Most values of a body: batches of token ids are long, a folder has thousands of digests."""

RECEIVE_SECONDS = 120
"""Time within which a body must have arrived."""

PIECE_BYTES = 64 * 1024

_HALF_PAIR = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB]..\\u....))",
    re.DOTALL,
)
"""Escape of half a surrogate pair without the other half. The bytes of a body in UTF-8 never hold one."""


def parse_job_request() -> JobRequest:
    """Returns the job request in the current body.

    Raises:
        InvalidFields: the JSON is not a request of a known kind (422).
        UnsupportedMediaType, RequestEntityTooLarge, BadRequest, InvalidText: as `read_body`.
    """
    value = read_body()
    try:
        return parse_request(value)
    except ValidationError as error:
        raise InvalidFields.of(error, kinds=KINDS) from error


def read_body() -> Any:
    """Returns the JSON value in the current body.

    Raises:
        UnsupportedMediaType: the Content-Type is not JSON (415).
        RequestEntityTooLarge: the body is longer than BODY_LIMIT_BYTES, or holds more than `BODY_BUDGET` (413).
        BadRequest: the body is not valid JSON, or does not arrive (400).
        InvalidText: a string in it is not valid Unicode (422).
    """
    if not request.is_json:
        found = f"{request.mimetype!r}" if request.mimetype else "none"
        raise UnsupportedMediaType(
            f"The body must be JSON, with Content-Type: application/json (found {found})."
        )
    if (request.content_length or 0) > current_app.config["MAX_CONTENT_LENGTH"]:
        raise RequestEntityTooLarge
    body = _receive()
    too_much = excess(body, BODY_BUDGET)
    if too_much is not None:
        raise RequestEntityTooLarge(f"The body {too_much}.")
    value = read_json(body)
    if _HALF_PAIR.search(body.replace(b"\\\\", b"__")):
        _refuse_surrogates(value)
    return value


def _receive() -> bytes:
    limit, deadline = current_app.config["MAX_CONTENT_LENGTH"], time.monotonic() + RECEIVE_SECONDS
    # werkzeug's own limit silently ends a body in chunks at the limit, and at a malformed chunk
    stream = get_input_stream(request.environ, max_content_length=None)
    body = bytearray()
    try:
        with idle_timeout():
            while len(body) <= limit and (piece := stream.read(PIECE_BYTES)):
                body += piece
                if time.monotonic() > deadline:
                    raise BadRequest(f"The body did not arrive within {RECEIVE_SECONDS} seconds.")
    except FAULTS as error:
        raise BadRequest(f"The body broke off after {len(body)} bytes.") from error
    if len(body) > limit:
        raise RequestEntityTooLarge
    if len(body) < (request.content_length or 0):
        raise BadRequest(f"The body broke off after {len(body)} of {request.content_length} bytes.")
    return bytes(body)


def read_json(body: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8; NaN and Infinity are refused.

    Raises:
        BadRequest: the text is not valid JSON; the message says where.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"The body is not UTF-8: byte 0x{body[error.start]:02x} at offset {error.start}."
        ) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"The body is not JSON: {error.msg} at {where}.") from error
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_surrogates(value: Any) -> None:
    # "\ud800" passes Python's JSON parser and cannot be encoded as UTF-8 later
    for loc, text in _unusual_strings(value):
        if any("\ud800" <= character <= "\udfff" for character in text):
            where = ".".join(map(str, loc)) or "the body"
            raise InvalidText(
                f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is not a character.",
                "Remove or retype that character.",
            )


def _unusual_strings(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields every string of a JSON value beyond ASCII, keys included, with the path to it."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while pending:
        loc, item = pending.pop()
        if isinstance(item, str):
            yield loc, item
        else:
            if isinstance(item, dict):
                yield from ((loc, key) for key in item if not key.isascii())
            children = item.items() if isinstance(item, dict) else enumerate(item)
            pending += [
                ((*loc, step), child)
                for step, child in children
                if (not child.isascii() if isinstance(child, str) else isinstance(child, list | dict))
            ]
