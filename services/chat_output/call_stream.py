"""Calls while they are written: the place where the arguments begin, and the one where they end."""

from dataclasses import dataclass

from services.chat_output.formats import CallFormat


@dataclass(slots=True)
class ObjectEnd:
    """End of the first JSON object in a text that arrives in parts."""

    is_closed: bool = False
    _depth: int = 0
    _in_string: bool = False
    _is_escaped: bool = False

    def feed(self, text: str) -> int:
        """Takes the next part of the text, and returns the number of its characters up to the end of the object."""
        for at, character in enumerate(text):
            self._take(character)
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


def begun_call(calls: CallFormat, text: str) -> tuple[str, int] | None:
    """Returns the name of a required call and the place of its arguments, None before they have begun as an object."""
    start = len(text) - len(text.lstrip())
    before = calls.before.lstrip()
    if not text.startswith(before, start):
        return None
    name, between, arguments = text[start + len(before) :].partition(calls.between)
    return (name, len(text) - len(arguments)) if between and arguments.startswith("{") else None
