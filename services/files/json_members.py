"""Members of a large JSON object by their position, so that only those that are needed become Python values.

Half of a `tokenizer.json` is a list of merges, which would take hundreds of megabytes. The bytes are searched as they
are: UTF-8 never has a quote, a bracket or a backslash inside another character.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

Span = tuple[int, int]
"""First byte of a value, and the one after its last."""

MAX_ELEMENTS = 1_000_000
"""Most elements of one value that is read; the largest vocabulary in use has 262,145 tokens, three elements each in a Unigram model."""

MAX_MEMBERS = 1000
"""Most members of an object whose values are found by their position."""

_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'(?:[^"\[\]{}]++|' + _TEXT + rb")*+"
_STRING = re.compile(_TEXT, re.DOTALL)
_SCALAR = re.compile(rb"[^\s,\]}]++")
_UP_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _TEXT + rb"|\[" + _FLAT + rb"\])*+", re.DOTALL)
"""Everything before a bracket; lists without lists in them (merges are pairs) are taken whole. Nothing is tried twice."""
_SPACE = re.compile(rb"[ \t\r\n]*+")


def members(data: bytes, at: int = 0) -> Mapping[str, Span]:
    """Returns the position of each value of the object that begins at a byte, by key.

    Raises:
        ValueError: There is no object at this position, or it does not end.
    """
    at = _expect(data, _skip_space(data, at), b"{")
    found: dict[str, Span] = {}
    while (at := _skip_space(data, at)) < len(data) and data[at : at + 1] != b"}":
        if len(found) >= MAX_MEMBERS:
            raise ValueError(f"an object has more than {MAX_MEMBERS} members")
        if found:
            at = _skip_space(data, _expect(data, at, b","))
        key, at = _key(data, at)
        start = _skip_space(data, _expect(data, _skip_space(data, at), b":"))
        at = _end_of_value(data, start)
        found[key] = (start, at)
    _expect(data, at, b"}")
    return found


def value_at(data: bytes, span: Span) -> Any:
    """Returns the value at a position.

    Raises:
        ValueError: It is not valid JSON, or has more than MAX_ELEMENTS elements.
    """
    elements = sum(data.count(mark, *span) for mark in (b",", b"[", b"{"))
    if elements > MAX_ELEMENTS:
        raise ValueError(f"a value has more than {MAX_ELEMENTS} elements")
    return from_json(data[slice(*span)])


def _key(data: bytes, at: int) -> tuple[str, int]:
    match = _STRING.match(data, at)
    if match is None:
        raise ValueError(f"byte {at} does not begin a key")
    return str(from_json(match.group())), match.end()


def _end_of_value(data: bytes, at: int) -> int:
    if data[at : at + 1] not in (b"{", b"["):
        match = _STRING.match(data, at) or _SCALAR.match(data, at)
        if match is None:
            raise ValueError(f"byte {at} does not begin a value")
        return match.end()
    start, depth = at, 0
    while at < len(data) and data[at] in b"[]{}":
        depth += 1 if data[at] in b"[{" else -1
        at += 1
        if not depth:
            return at
        match = _UP_TO_BRACKET.match(data, at)
        at = match.end() if match else at
    raise ValueError(f"the value that begins at byte {start} does not end")


def _expect(data: bytes, at: int, mark: bytes) -> int:
    if data[at : at + 1] != mark:
        raise ValueError(f"byte {at} is not {mark.decode()!r}")
    return at + 1


def _skip_space(data: bytes, at: int) -> int:
    match = _SPACE.match(data, at)
    return match.end() if match else at
