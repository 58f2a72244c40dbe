"""Calls while they are written: the place where their arguments begin, and the one where they end."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

from pydantic_core import from_json

from services.chat_output.formats import JSON_STRING, NAME_BEFORE_OBJECT, CallFormat, before_mark

_MEMBERS = rf"(?P<members>(?:{JSON_STRING}\s*:\s*{JSON_STRING}\s*,\s*)*)"
_OBJECT = rf"""\{{\s*{_MEMBERS}"(?:arguments|parameters)"\s*:\s*(?=\{{)"""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call of a function that was offered, with its arguments as JSON text.

    In a stream a call may be in pieces: each has the name and new text of the arguments, and `offset` counts their characters
    before it.
    """

    name: str
    arguments: str
    offset: int = 0


def add_piece(calls: list[ParsedCall], piece: ParsedCall) -> None:
    """Adds a new call, or new text of the last one's arguments."""
    if piece.offset:
        calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)
    else:
        calls.append(piece)


@dataclass(slots=True)
class ObjectEnd:
    """End of the first JSON object in a text that arrives in parts."""

    is_closed: bool = False
    _depth: int = 0
    _in_string: bool = False
    _is_escaped: bool = False

    def feed(self, text: str, start: int) -> int:
        """Takes the text from a place on, and returns the place after the object, or the end of the text."""
        for at in range(start, len(text)):
            self._take(text[at])
            if self.is_closed:
                return at + 1
        return len(text)

    def _take(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._is_escaped or character != '"'
            self._is_escaped = character == "\\" and not self._is_escaped
        elif character in "{[" and (self._depth or character == "{"):
            self._depth += 1
        elif character in "}]" and self._depth:
            self._depth -= 1
            self.is_closed = self._depth == 0
        else:
            self._in_string = character == '"' and self._depth > 0


@dataclass(slots=True)
class CallStream:
    """Calls within a text that may be calls, from the beginning of their arguments on.

    A call begins where the name of an offered function and an object of arguments are certain. Its arguments end before the
    first character with which they are not JSON; no other call begins then. `opening` is the mark before the text, and white space
    before that. `end` is the place after the arguments that have been returned.
    """

    format: CallFormat
    names: frozenset[str]
    one_call: bool
    opening: str
    begun: list[ParsedCall] = field(default_factory=list)
    end: int = 0
    is_broken: bool = False
    _scan: ObjectEnd = field(default_factory=ObjectEnd)
    _first: ObjectEnd = field(default_factory=ObjectEnd)
    _scanned: int = 0

    @property
    def is_open(self) -> bool:
        """True while the arguments of a call have not ended."""
        return bool(self.begun) and not self._scan.is_closed and not self.is_broken

    def feed(self, text: str) -> Iterator[ParsedCall]:
        """Yields new pieces of calls.

        Args:
            text: the whole text so far.
        """
        while self.end < len(text) and not self.is_broken:
            name = self.begun[-1].name if self.is_open else self._next_name(text)
            if name is None:
                return
            before = self.begun[-1].arguments if self.is_open else ""
            self._scan = self._scan if self.is_open else ObjectEnd()
            arguments = before + text[self.end : self._scan.feed(text, self.end)]
            length = _length_of_json(arguments, len(before))
            self.is_broken = length < len(arguments)
            piece = ParsedCall(name, arguments[len(before) : length], len(before))
            self.end += len(piece.arguments)
            if piece.arguments:
                add_piece(self.begun, piece)
                yield piece

    def read(self, text: str) -> list[ParsedCall] | None:
        """Returns the calls of a whole text, None if it is not calls of offered functions."""
        found: list[ParsedCall] = []
        for part in _split(text, self.format.begin):
            calls = self.format.read(part)
            if calls is None and self._first.is_closed:
                calls = self.format.read(part + "]")  # the first of a list
            if calls is None or any(name not in self.names for name, _ in calls):
                return None
            found += [ParsedCall(*call) for call in calls]
        return found

    def end_of_first(self, text: str) -> int | None:
        """Returns the place after the first of several calls, if it is the only one that is wanted."""
        if not self.one_call or self._first.is_closed:
            return None
        self._scanned = self._first.feed(text, self._scanned)
        is_call = self._first.is_closed and self.read(text[: self._scanned]) is not None
        return self._scanned if is_call else None

    def _next_name(self, text: str) -> str | None:
        """Returns the name of the next call, and moves to the place of its arguments."""
        if self.begun and self.one_call:
            return None
        found = _beginning(self.format, bool(self.begun)).match(text, self.end)
        name = None if found is None else _name_in(found)
        if found is None or name not in self.names:
            return None
        self.end = found.end()
        return name


@cache
def _beginning(calls: CallFormat, is_next: bool) -> re.Pattern[str]:
    """Returns the pattern of a call before its arguments, which follows brackets, separators and a mark."""
    before = r"[\s;,\[\]}]*" if is_next else r"[\s;,\[]*"
    forms = f"{_OBJECT}|{NAME_BEFORE_OBJECT}" if calls.may_be_named else _OBJECT
    return re.compile(rf"{before}(?:{re.escape(calls.begin)})?[\s\[]*(?:{forms})", re.DOTALL)


def _name_in(found: re.Match[str]) -> str | None:
    """Returns the name before the arguments, None if there is none, or which one is meant is not known."""
    if found["members"] is None:
        return found["name"]
    try:
        members = json.loads("{" + found["members"] + '"arguments": {}}', object_pairs_hook=list)
    except ValueError:
        return None
    names = [value for key, value in members if key == "name"]
    keys = [key for key, _ in members if key in ("arguments", "parameters")]
    return names[0] if len(names) == len(keys) == 1 else None


def _length_of_json(text: str, certain: int) -> int:
    """Returns the length of the longest beginning of a text with which JSON may begin, at least the certain one."""
    if _may_begin_json(text):
        return len(text)
    return bisect_left(range(len(text)), True, certain, key=lambda end: not _may_begin_json(text[: end + 1]))


def _may_begin_json(text: str) -> bool:
    try:
        from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return False
    return True


def _split(text: str, mark: str) -> Iterator[str]:
    """Yields the parts of a text between marks that are not within JSON strings."""
    while (end := before_mark(text, mark)) is not None:
        yield text[:end]
        text = text[end + len(mark) :]
    yield text
