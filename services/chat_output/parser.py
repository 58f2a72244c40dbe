"""Incremental parser of an output: the parts of a stream together are those of the whole text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from services.chat_output.formats import END_THINK, THINK, OutputForm, before_mark


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call of a function that was offered, with its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(slots=True)
class OutputParts:
    """Parts that a piece of text has added to: thinking, answer, calls."""

    reasoning: str = ""
    text: str = ""
    calls: list[ParsedCall] = field(default_factory=list)

    def add(self, other: "OutputParts") -> None:
        """Appends the parts of the text that follows."""
        self.reasoning += other.reasoning
        self.text += other.text
        self.calls += other.calls


class State(Enum):
    """Part of the output that the parser is in; START is before it is known."""

    START = auto()
    THINKING = auto()
    ANSWER = auto()
    CALL = auto()


class OutputParser:
    """Parts of one output while it grows.

    Thinking is at the beginning of an output. White space around thinking and calls belongs to no part. A call is returned
    once it is complete: one that is cut off, is not JSON, or names a function that was not offered, stays text.
    """

    def __init__(self, form: OutputForm) -> None:
        self.parts = OutputParts()
        self.reasoning_tokens = 0
        self.has_read = False
        self._form = form
        self._state = State.THINKING if form.begins_thinking else State.START
        self._held = ""
        self._has_thought = False
        self._opening = ""  # the mark before the call that is being read, and white space before it

    def feed(self, text: str) -> OutputParts:
        """Takes the text of one token, which may be empty, and returns the parts that are certain with it."""
        self.has_read = True
        if self._form.is_plain:
            return self._added(OutputParts(text=text))
        was_thinking = self._state is State.THINKING
        self._held += text
        new = self._advance(is_last=False)
        if was_thinking or self._state is State.THINKING:
            self.reasoning_tokens += 1
        return self._added(new)

    def finish(self) -> OutputParts:
        """Returns the parts of the text that was held back, when no text follows."""
        return self._added(OutputParts() if self._form.is_plain else self._advance(is_last=True))

    def _added(self, new: OutputParts) -> OutputParts:
        self.parts.add(new)
        return new

    def _advance(self, *, is_last: bool) -> OutputParts:
        new = OutputParts()
        steps = {
            State.START: self._start, State.THINKING: self._think, State.ANSWER: self._answer, State.CALL: self._call,
        }  # fmt: skip
        before = None
        while before != (self._state, self._held):
            before = (self._state, self._held)
            steps[self._state](new, is_last)
        return new

    def _start(self, new: OutputParts, is_last: bool) -> None:
        """Finds if the text begins with thinking, or with a call that no mark opens."""
        held, calls = self._held.lstrip(), self._form.calls
        may_think = self._form.thinks and not self._has_thought
        if may_think and held.startswith(THINK):
            self._state, self._held = State.THINKING, held.removeprefix(THINK)
        elif is_last or (held and not (may_think and THINK.startswith(held))):
            is_bare = calls is not None and calls.may_be_bare and held.startswith("{")
            self._state, self._opening = State.CALL if is_bare else State.ANSWER, ""
            self._held = held if self._has_thought or is_bare else self._held

    def _think(self, new: OutputParts, is_last: bool) -> None:
        thought, mark, rest = self._held.partition(END_THINK)
        if mark or is_last:
            certain, self._held = thought.rstrip(), rest
            self._state, self._has_thought = State.START, True
        else:
            certain = thought[: len(thought) - _possible_beginning(END_THINK, thought)].rstrip()
            self._held = thought[len(certain) :]
        new.reasoning += certain if self.parts.reasoning or new.reasoning else certain.lstrip()

    def _answer(self, new: OutputParts, is_last: bool) -> None:
        calls = self._form.calls
        if calls is None:
            new.text += self._held
            self._held = ""
            return
        text, mark, rest = self._held.partition(calls.begin)
        if mark:
            certain, self._held = text.rstrip(), rest
            self._state, self._opening = State.CALL, text[len(certain) :] + mark
        elif is_last:
            certain, self._held = text, ""
        else:
            certain = text[: len(text) - _possible_beginning(calls.begin, text)].rstrip()
            self._held = text[len(certain) :]
        has_calls = self.parts.calls or new.calls
        if certain.strip() or not has_calls:
            new.text += certain

    def _call(self, new: OutputParts, is_last: bool) -> None:
        calls = self._form.calls
        assert calls is not None  # else no call has begun
        end = before_mark(self._held, calls.end) if calls.end else None
        if end is None and not is_last:
            return
        if end is None:  # left out, or within a string that has no end
            body, mark, rest = self._held.partition(calls.end) if calls.end else (self._held, "", "")
        else:
            body, mark, rest = self._held[:end], calls.end, self._held[end + len(calls.end) :]
        found = self._read(body)
        if found is None:
            new.text += self._opening + body + mark
        elif not self._form.one_call:
            new.calls += found
        elif not self.parts.calls and not new.calls:
            new.calls += found[:1]
        self._state, self._held = State.ANSWER, rest

    def _read(self, body: str) -> list[ParsedCall] | None:
        calls = self._form.calls
        assert calls is not None
        found: list[ParsedCall] = []
        for part in _split(body, calls.begin):
            read = calls.read(part)
            if read is None or any(name not in self._form.names for name, _ in read):
                return None
            found += [ParsedCall(*call) for call in read]
        return found


def _split(text: str, mark: str) -> Iterator[str]:
    """Yields the parts of a text between marks that are not within JSON strings."""
    while (end := before_mark(text, mark)) is not None:
        yield text[:end]
        text = text[end + len(mark) :]
    yield text


def _possible_beginning(mark: str, text: str) -> int:
    """Returns the length of the longest end of a text with which the mark begins."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if mark.startswith(text[-length:])), 0)
