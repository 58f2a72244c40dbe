"""Items of an output while they are written: each from its beginning to its end, as events of a stream."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from api.openai.responses_api.items import Json
from api.openai.responses_api.response import ResponseObject, call_item, reasoning_item, status_of_call
from services.kinds.generate import Logprob, TokenPiece
from services.kinds.tools import ToolCallPiece

NamedEvent = tuple[str, Json]
"""Type and fields of an event; its number is added when it is sent."""


class OpenItem(Protocol):
    """The item that is being written."""

    def begin(self) -> Iterator[NamedEvent]:
        """Returns the events that begin the item."""

    def add(self, piece: TokenPiece) -> Iterator[NamedEvent]:
        """Returns the event of new text."""

    def end(self, status: str) -> Iterator[NamedEvent]:
        """Returns the events that end the item."""

    def item(self, status: str) -> Json:
        """Returns the whole item."""


class TextItem:
    """The message: its text and log-probabilities so far."""

    def __init__(self, response: ResponseObject, index: int) -> None:
        self._response, self._index = response, index
        self._text = ""
        self._logprobs: list[Logprob] = []

    def begin(self) -> Iterator[NamedEvent]:
        """Returns the events that begin the item and its only part."""
        item = self._response.message(self._index, "", None, "in_progress")
        yield "response.output_item.added", {"output_index": self._index, "item": item}
        part = self._response.text_part("", None)
        yield "response.content_part.added", self._place() | {"part": part}

    def add(self, piece: TokenPiece) -> Iterator[NamedEvent]:
        """Returns the event of new text."""
        self._text += piece.text
        self._logprobs += piece.logprobs or []
        own = {"delta": piece.text, "logprobs": self._without_bytes(piece.logprobs)}
        yield "response.output_text.delta", self._place() | own

    def end(self, status: str) -> Iterator[NamedEvent]:
        """Returns the events that end the part and the item."""
        own = {"text": self._text, "logprobs": self._without_bytes(self._logprobs)}
        yield "response.output_text.done", self._place() | own
        part = self._response.text_part(self._text, self._logprobs)
        yield "response.content_part.done", self._place() | {"part": part}
        yield "response.output_item.done", {"output_index": self._index, "item": self.item(status)}

    def item(self, status: str) -> Json:
        """Returns the whole item."""
        return self._response.message(self._index, self._text, self._logprobs, status)

    def _place(self) -> Json:
        item_id = self._response.item_id("msg", self._index)
        return {"item_id": item_id, "output_index": self._index, "content_index": 0}

    def _without_bytes(self, items: Sequence[Logprob] | None) -> list[Json]:
        return [_without_bytes(item) for item in self._response.logprobs(items)]


class ThinkingItem:
    """The model's thinking so far."""

    def __init__(self, response: ResponseObject, index: int) -> None:
        self._index, self._item_id = index, response.item_id("rs", index)
        self._text = ""

    def begin(self) -> Iterator[NamedEvent]:
        """Returns the events that begin the item and its only part."""
        item = reasoning_item(self._item_id, "", "in_progress")
        yield "response.output_item.added", {"output_index": self._index, "item": item}
        yield "response.content_part.added", self._place() | {"part": {"type": "reasoning_text", "text": ""}}

    def add(self, piece: TokenPiece) -> Iterator[NamedEvent]:
        """Returns the event of new thinking."""
        self._text += piece.reasoning
        yield "response.reasoning_text.delta", self._place() | {"delta": piece.reasoning}

    def end(self, status: str) -> Iterator[NamedEvent]:
        """Returns the events that end the part and the item."""
        yield "response.reasoning_text.done", self._place() | {"text": self._text}
        part = {"type": "reasoning_text", "text": self._text}
        yield "response.content_part.done", self._place() | {"part": part}
        yield "response.output_item.done", {"output_index": self._index, "item": self.item(status)}

    def item(self, status: str) -> Json:
        """Returns the whole item."""
        return reasoning_item(self._item_id, self._text, status)

    def _place(self) -> Json:
        return {"item_id": self._item_id, "output_index": self._index, "content_index": 0}


class CallItem:
    """The call of a function so far."""

    def __init__(self, response: ResponseObject, index: int) -> None:
        self._index, self._item_id = index, response.item_id("fc", index)
        self._call = ToolCallPiece(index=0, id="", name="", arguments="")

    def begin(self) -> Iterator[NamedEvent]:
        """Returns no event: the item begins with the first piece of its call."""
        return iter(())

    def add(self, piece: TokenPiece) -> Iterator[NamedEvent]:
        """Returns the events of the piece's only call: the item's beginning, if it is new, and new text of its arguments."""
        (call,) = piece.tool_calls
        whole = self._call.arguments + call.arguments
        if not call.offset:
            item = call_item(self._item_id, call.model_copy(update={"arguments": ""}), "in_progress")
            yield "response.output_item.added", {"output_index": self._index, "item": item}
        self._call = call.model_copy(update={"arguments": whole})
        yield "response.function_call_arguments.delta", self._place() | {"delta": call.arguments}

    def end(self, status: str) -> Iterator[NamedEvent]:
        """Returns the events that end the arguments and the item."""
        done = {"name": self._call.name, "arguments": self._call.arguments}
        yield "response.function_call_arguments.done", self._place() | done
        yield "response.output_item.done", {"output_index": self._index, "item": self.item(status)}

    def item(self, status: str) -> Json:
        """Returns the whole item, whose status depends on its own arguments."""
        return call_item(self._item_id, self._call, status_of_call(self._call))

    def _place(self) -> Json:
        return {"item_id": self._item_id, "output_index": self._index}


def _without_bytes(item: Json) -> Json:
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in item["top_logprobs"]]
    return {"token": item["token"], "logprob": item["logprob"], "top_logprobs": top}
