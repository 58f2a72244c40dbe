"""From the bytes of a body to a request, each way of being wrong with its own answer."""

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
"""More is refused with 413: long lists of prompts belong in a file on the volume (`prompts_file`)."""


def parse_job_request() -> JobRequest:
    """The job request in the current body.

    Raises:
        InvalidFields: it is JSON of another shape (422).
        Also whatever `read_body` raises.
    """
    value = read_body()
    try:
        return parse_request(value)
    except ValidationError as error:
        raise InvalidFields.of(error, kinds=KINDS) from error


def read_body() -> Any:
    """The JSON value in the current body.

    Raises:
        UnsupportedMediaType: the body is not announced as JSON (415).
        RequestEntityTooLarge: it is longer than `BODY_LIMIT_BYTES` (413).
        BadRequest: it is no JSON (400).
        InvalidText: a string in it is no Unicode text (422).
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
    # a body of announced length is refused unread; one that comes in chunks is cut at the limit without a word
    if request.content_length is None and len(body) >= BODY_LIMIT_BYTES:
        raise RequestEntityTooLarge
    return body


def read_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8, in which NaN and Infinity have no place.

    Raises:
        BadRequest: with where it goes wrong.
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
    raise ValueError(f"{name} is no JSON number")


def _refuse_surrogates(value: Any) -> None:
    # "\ud800" passes Python's JSON parser and cannot be encoded again: every later room would fall over it
    for loc, text in _strings(value):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            where = ".".join(map(str, loc)) or "the body"
            raise InvalidText(
                f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            )


def _strings(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every string of a JSON value, keys too, with the way to it; a list instead of recursion bounds the depth."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        loc, item = waiting.pop()
        if isinstance(item, str):
            yield loc, item
        elif isinstance(item, list):
            waiting += [((*loc, index), child) for index, child in enumerate(item)]
        elif isinstance(item, dict):
            yield from ((loc, key) for key in item)
            waiting += [((*loc, key), child) for key, child in item.items()]
