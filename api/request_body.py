"""Parsing of request bodies; each kind of invalid body has its own error."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from flask import request
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from api.errors import InvalidFields
from services.errors import InvalidText
from services.kinds import KINDS, parse_request
from services.kinds.shared import JobRequest

BODY_LIMIT_BYTES = 8 * 2**20
"""Largest body; long lists of prompts belong in a file on the volume (`prompts_file`)."""


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
        RequestEntityTooLarge: the body is longer than `BODY_LIMIT_BYTES` (413).
        BadRequest: the body is not valid JSON (400).
        InvalidText: a string in it is not valid Unicode (422).
    """
    if not request.is_json:
        found = f"{request.mimetype!r}" if request.mimetype else "none"
        raise UnsupportedMediaType(
            f"The body must be JSON, with Content-Type: application/json (found {found})."
        )
    value = read_json(_read_bytes())
    _refuse_surrogates(value)
    return value


def _read_bytes() -> bytes:
    body = request.get_data(cache=False)
    # Flask refuses a body with Content-Length; a chunked one it silently truncates at the limit
    if request.content_length is None and len(body) >= BODY_LIMIT_BYTES:
        raise RequestEntityTooLarge
    return body


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
    except RecursionError as error:
        raise BadRequest("The body nests too deeply.") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_surrogates(value: Any) -> None:
    # "\ud800" passes Python's JSON parser and cannot be encoded as UTF-8 later
    for loc, text in _strings(value):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            where = ".".join(map(str, loc)) or "the body"
            raise InvalidText(
                f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is not a character.",
                "Remove or retype that character.",
            )


def _strings(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields every string of a JSON value, keys included, with the path to it; iterative because of deep nesting."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while pending:
        loc, item = pending.pop()
        if isinstance(item, str):
            yield loc, item
        elif isinstance(item, list):
            pending += [((*loc, index), child) for index, child in enumerate(item)]
        elif isinstance(item, dict):
            yield from ((loc, key) for key in item)
            pending += [((*loc, key), child) for key, child in item.items()]
