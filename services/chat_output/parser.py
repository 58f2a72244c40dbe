"""Incremental parser of an output: the parts of a stream together are those of the whole text."""

from dataclasses import dataclass, field
from enum import Enum, auto

from services.chat_output.call_stream import CallStream, ParsedCall, add_piece
from services.chat_output.formats import END_THINK, THINK, CallFormat, OutputForm, before_mark


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
            add_piece(self.calls, call)


BRACKETS = " \t\r\n;,]}"
"""Characters that may be missing or too many after the arguments of a call."""


class State(Enum):
    """Part of the output that the parser is in; START is before it is known, DONE after the only call."""

    START = auto()
    THINKING = auto()
    ANSWER = auto()
    CALL = auto()
    DONE = auto()


class OutputParser:
    """Parts of one output while it grows.

    Thinking is at the beginning of an output. White space around thinking and calls belongs to no part. A call is returned as it
    is written, from the beginning of its arguments on; one whose name or arguments are not certain before its end is returned
    then. A text that opens a call and is not one stays text, and is in `unread`. A call that has begun stays one if it is cut off
    or malformed: its arguments are the beginning of a JSON object, what follows them stays text, and it is in `broken`.
    """

    def __init__(self, form: OutputForm) -> None:
        self.parts = OutputParts()
        self.reasoning_tokens = 0
        self.has_read = False
        self.unread: list[str] = []
        self.broken: list[str] = []
        self._form = form
        self._state = State.THINKING if form.begins_thinking else State.START
        self._held = ""
        self._has_thought = False
        self._calls: CallStream | None = None  # of the text that may be calls

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
            State.DONE: self._drop,
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
            self._held = held if self._has_thought or is_bare else self._held
            self._state = State.ANSWER
            if calls is not None and is_bare:
                self._open_call(calls, "")

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
            self._open_call(calls, text[len(certain) :] + mark)
        elif is_last:
            certain, self._held = text, ""
        else:
            certain = text[: len(text) - _possible_beginning(calls.begin, text)].rstrip()
            self._held = text[len(certain) :]
        has_calls = self.parts.calls or new.calls
        if certain.strip() or not has_calls:
            new.text += certain

    def _open_call(self, calls: CallFormat, opening: str) -> None:
        self._state = State.CALL
        self._calls = CallStream(calls, self._form.names, self._form.one_call, opening)

    def _call(self, new: OutputParts, is_last: bool) -> None:
        calls = self._calls
        assert calls is not None  # else no call has been opened
        end_mark = calls.format.end
        end = self._end_of_call(calls, is_last=is_last)
        certain = len(self._held) - _possible_beginning(end_mark, self._held) if end is None else end
        new.calls += calls.feed(self._held[:certain])
        if end is not None:
            mark = end_mark if self._held.startswith(end_mark, end) else ""
            body, self._held = self._held[:end], self._held[end + len(mark) :]
            self._end_calls(calls, new, body, mark)

    def _end_calls(self, calls: CallStream, new: OutputParts, body: str, mark: str) -> None:
        """Reads the whole text of calls, which a mark follows or the end of the output."""
        found, begun = calls.read(body), calls.begun
        if found is not None and found[: len(begun)] == begun:
            new.calls += found[len(begun) : 1 if calls.one_call else None]
        elif begun:
            self._end_broken(calls, new, body, mark)
        else:
            new.text += calls.opening + body + mark
            if calls.opening:
                self.unread.append(calls.opening.lstrip() + body)
        self._state = State.DONE if calls.one_call and (begun or found) else State.ANSWER

    def _end_broken(self, calls: CallStream, new: OutputParts, body: str, mark: str) -> None:
        """Ends calls that have begun in a text that is not calls: what follows them stays text, except brackets."""
        rest = body[calls.end :]
        cut_mark = 0 if mark else _possible_beginning(calls.format.end, rest)
        has_rest = bool(rest[: len(rest) - cut_mark].strip(BRACKETS))
        if has_rest and not calls.one_call:
            new.text += rest + mark
        if (has_rest or calls.is_open or calls.is_broken) and not self._form.is_required:
            self.broken.append(calls.opening.lstrip() + body)

    def _end_of_call(self, calls: CallStream, *, is_last: bool) -> int | None:
        """Returns the place after the text of calls, None if it has not ended."""
        mark = calls.format.end
        end = before_mark(self._held, mark) if mark else calls.end_of_first(self._held)
        if end is not None or not is_last:
            return end
        # the mark is left out, or within a string that has no end
        place = -1 if calls.is_open or not mark else self._held.find(mark, calls.end)
        return len(self._held) if place < 0 else place

    def _drop(self, new: OutputParts, is_last: bool) -> None:
        self._held = ""


def _possible_beginning(mark: str, text: str) -> int:
    """Returns the length of the longest end of a text with which the mark begins."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if mark.startswith(text[-length:])), 0)
