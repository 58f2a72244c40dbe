"""Incremental parser of an output: the parts of a stream together are those of the whole text."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from services.chat_output.call_stream import ObjectEnd, begun_call
from services.chat_output.formats import END_THINK, THINK, CallFormat, OutputForm, before_mark


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call of a function that was offered, with its arguments as JSON text.

    In a stream a call may be in pieces: each has the name and new text of the arguments, and `offset` counts their characters
    before it.
    """

    name: str
    arguments: str
    offset: int = 0


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
        for call in other.calls:
            if call.offset:
                whole = self.calls[-1].arguments + call.arguments
                self.calls[-1] = replace(self.calls[-1], arguments=whole)
            else:
                self.calls.append(call)


class State(Enum):
    """Part of the output that the parser is in; START is before it is known, DONE after the only call."""

    START = auto()
    THINKING = auto()
    ANSWER = auto()
    CALL = auto()
    ARGUMENTS = auto()
    DONE = auto()


class OutputParser:
    """Parts of one output while it grows.

    Thinking is at the beginning of an output. White space around thinking and calls belongs to no part. A call is returned
    once it is complete: one that is cut off, is not JSON, or names a function that was not offered, stays text, and is in
    `unread`. A required call cannot be anything else once its arguments have begun: they are returned as they are written, and
    may be cut off.
    """

    def __init__(self, form: OutputForm) -> None:
        self.parts = OutputParts()
        self.reasoning_tokens = 0
        self.has_read = False
        self.unread: list[str] = []
        self._form = form
        self._state = State.THINKING if form.begins_thinking else State.START
        self._held = ""
        self._has_thought = False
        self._opening = ""  # the mark before the call that is being read, and white space before it
        self._name = ""  # of the call whose arguments are being read
        self._scan, self._scanned = ObjectEnd(), 0

    @property
    def is_done(self) -> bool:
        """True once nothing that follows belongs to the output."""
        return self._state is State.DONE

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
            State.ARGUMENTS: self._read_arguments, State.DONE: self._drop,
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
        begun = begun_call(calls, self._held) if self._form.is_required else None
        if begun is not None:
            self._name, at = begun
            self._state, self._held = State.ARGUMENTS, self._held[at:]
            return
        end = self._end_of_call(calls, is_last=is_last)
        if end is None:
            return
        body, mark = self._held[:end], calls.end if self._held.startswith(calls.end, end) else ""
        found = self._read(body)
        self._state, self._held = State.ANSWER, self._held[end + len(mark) :]
        self._scan, self._scanned = ObjectEnd(), 0
        if found is None:
            new.text += self._opening + body + mark
            if self._opening:
                self.unread.append(self._opening.lstrip() + body)
        elif self._form.one_call:
            self._state = State.DONE
            new.calls += found[:1]
        else:
            new.calls += found

    def _end_of_call(self, calls: CallFormat, *, is_last: bool) -> int | None:
        """Returns the place after a call's text, None if it has not ended."""
        end = before_mark(self._held, calls.end) if calls.end else self._end_of_first()
        if end is not None or not is_last:
            return end
        # the mark is left out, or within a string that has no end
        place = self._held.find(calls.end) if calls.end else -1
        return len(self._held) if place < 0 else place

    def _end_of_first(self) -> int | None:
        """Returns the place after the first of several calls, if it is the only one that is wanted."""
        if not self._form.one_call or self._scan.is_closed:
            return None
        self._scanned += self._scan.feed(self._held[self._scanned :])
        is_call = self._scan.is_closed and self._read(self._held[: self._scanned]) is not None
        return self._scanned if is_call else None

    def _read_arguments(self, new: OutputParts, is_last: bool) -> None:
        length = self._scan.feed(self._held)
        if length:
            new.calls.append(ParsedCall(self._name, self._held[:length], self._scanned))
        self._scanned, self._held = self._scanned + length, self._held[length:]
        if self._scan.is_closed:
            self._state = State.DONE

    def _drop(self, new: OutputParts, is_last: bool) -> None:
        self._held = ""

    def _read(self, body: str) -> list[ParsedCall] | None:
        calls = self._form.calls
        assert calls is not None
        found: list[ParsedCall] = []
        for part in _split(body, calls.begin):
            read = calls.read(part)
            if read is None and self._scan.is_closed:
                read = calls.read(part + "]")  # the first of a list
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
