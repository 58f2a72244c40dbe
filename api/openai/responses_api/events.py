"""Events of a streamed response, numbered from 0: the response, its items and their parts, each from its beginning to its end."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from api import sse
from api.openai.responses_api.items import Json
from api.openai.responses_api.output_items import CallItem, NamedEvent, OpenItem, TextItem, ThinkingItem
from api.openai.responses_api.response import ResponseObject, status_of_item
from services.errors import GraftwerkError
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Logprob, TokenPiece

ItemKind = type[TextItem] | type[ThinkingItem] | type[CallItem]


class ResponseEvents:
    """Frames of one streamed response."""

    def __init__(self, response: ResponseObject) -> None:
        self._response = response
        self._number = 0
        self._items: list[Json] = []
        self._open: OpenItem | None = None
        self._logprobs: list[Logprob] = []  # of tokens without text since the last text

    @property
    def last_number(self) -> int:
        """Number of the last event so far."""
        return self._number - 1

    def opening(self, prompt_tokens: int | None = None) -> Iterable[str]:
        """Returns the events that begin the response."""
        yield self._frame("response.created", response=self._response.open("in_progress"))
        yield self._frame("response.in_progress", response=self._response.open("in_progress"))

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the events of new thinking, new text and new calls."""
        if piece.reasoning:
            yield from self._add(piece, ThinkingItem)
        logprobs = [*self._logprobs, *(piece.logprobs or [])]
        if piece.text:
            yield from self._add(piece.model_copy(update={"logprobs": logprobs}), TextItem)
            logprobs = []
        self._logprobs = logprobs
        for call in piece.tool_calls:
            if not call.offset:
                yield from self._close("completed")
            yield from self._add(piece.model_copy(update={"tool_calls": [call]}), CallItem)

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the events that end the last item; an output without text and calls has an empty message."""
        output = result.outputs[index]
        if isinstance(self._open, ThinkingItem) and not output.tool_calls:
            yield from self._close("completed")
        if self._open is None and not any(item["type"] != "reasoning" for item in self._items):
            yield from self._begin(TextItem)
        if isinstance(self._open, TextItem) and self._logprobs:
            yield from self._frames(
                self._open.add(TokenPiece(index=index, offset=0, text="", logprobs=self._logprobs))
            )
        yield from self._close(status_of_item(output))

    def ending(self, job: Job, result: GenerateResult) -> Iterable[str]:
        """Returns the event with the whole response."""
        whole = ResponseObject(job, self._response.note).whole(result, self._items)
        yield self._frame(f"response.{whole['status']}", response=whole)

    def failure(self, error: GraftwerkError) -> Iterable[str]:
        """Returns the event of a response that has failed."""
        yield self._frame("response.failed", response=self._response.open("failed", error))

    def _add(self, piece: TokenPiece, kind: ItemKind) -> Iterator[str]:
        if not isinstance(self._open, kind):
            yield from self._close("completed")
            yield from self._begin(kind)
        if self._open is not None:
            yield from self._frames(self._open.add(piece))

    def _begin(self, kind: ItemKind) -> Iterator[str]:
        self._open = kind(self._response, len(self._items))
        yield from self._frames(self._open.begin())

    def _close(self, status: str) -> Iterator[str]:
        if self._open is not None:
            yield from self._frames(self._open.end(status))
            self._items.append(self._open.item(status))
            self._open = None

    def _frames(self, events: Iterable[NamedEvent]) -> Iterator[str]:
        yield from (self._frame(name, **fields) for name, fields in events)

    def _frame(self, name: str, /, **fields: Any) -> str:
        data = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.frame(json.dumps(data, ensure_ascii=False), event=name)
