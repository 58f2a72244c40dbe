"""Events of a streamed response, numbered from 0: the response, its items and their parts, each from its beginning to its end."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from api import sse
from api.openai.responses_api.items import Json
from api.openai.responses_api.response import ResponseObject, status_of_item
from services.errors import GraftwerkError
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Logprob, TokenPiece


class TextItem:
    """The message that is being written: its text and log-probabilities so far."""

    def __init__(self, response: ResponseObject, index: int) -> None:
        self._response, self._index = response, index
        self._text = ""
        self._logprobs: list[Logprob] = []

    def begin(self) -> Iterator[tuple[str, Json]]:
        """Returns the events that begin the item and its only part."""
        item = self._response.message(self._index, "", None, "in_progress")
        yield "response.output_item.added", {"output_index": self._index, "item": item}
        part = self._response.text_part("", None)
        yield "response.content_part.added", self._place() | {"part": part}

    def add(self, piece: TokenPiece) -> Iterator[tuple[str, Json]]:
        """Returns the event of new text."""
        self._text += piece.text
        self._logprobs += piece.logprobs or []
        own = {"delta": piece.text, "logprobs": self._without_bytes(piece.logprobs)}
        yield "response.output_text.delta", self._place() | own

    def end(self, status: str) -> Iterator[tuple[str, Json]]:
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


class ResponseEvents:
    """Frames of one streamed response."""

    def __init__(self, response: ResponseObject) -> None:
        self._response = response
        self._number = 0
        self._items: list[Json] = []
        self._current: TextItem | None = None

    def opening(self) -> Iterable[str]:
        """Returns the events that begin the response."""
        yield self._frame("response.created", response=self._response.open("in_progress"))
        yield self._frame("response.in_progress", response=self._response.open("in_progress"))

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the events of new text."""
        if not (piece.text or piece.logprobs):
            return
        if self._current is None:
            self._current = TextItem(self._response, len(self._items))
            yield from self._frames(self._current.begin())
        yield from self._frames(self._current.add(piece))

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the events that end the last item; an output without text has an empty one."""
        current = self._current
        if current is None:
            current = TextItem(self._response, len(self._items))
            yield from self._frames(current.begin())
        status = status_of_item(result.outputs[index])
        yield from self._frames(current.end(status))
        self._items.append(current.item(status))
        self._current = None

    def ending(self, job: Job, result: GenerateResult) -> Iterable[str]:
        """Returns the event with the whole response."""
        whole = ResponseObject(job, self._response.note).whole(result, self._items)
        yield self._frame(f"response.{whole['status']}", response=whole)

    def failure(self, error: GraftwerkError) -> Iterable[str]:
        """Returns the event of a response that has failed."""
        yield self._frame("response.failed", response=self._response.open("failed", error))

    def _frames(self, events: Iterable[tuple[str, Json]]) -> Iterator[str]:
        yield from (self._frame(name, **fields) for name, fields in events)

    def _frame(self, name: str, **fields: Any) -> str:
        data = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.frame(json.dumps(data, ensure_ascii=False), event=name)


def _without_bytes(item: Json) -> Json:
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in item["top_logprobs"]]
    return {"token": item["token"], "logprob": item["logprob"], "top_logprobs": top}
