"""Events of a streamed message: its beginning, the blocks with their pieces, its end."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from api import sse
from api.anthropic.blocks import Json
from api.anthropic.errors import error_object
from api.anthropic.message import MessageBuilder, text_block, thinking_block, tool_use_block, usage_of
from services.errors import GraftwerkError
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, TokenPiece


class MessageEvents:
    """Frames of one streamed message."""

    def __init__(self, message: MessageBuilder) -> None:
        self._message = message
        self._index = -1
        self._open: str | None = None

    def opening(self, prompt_tokens: int | None = None) -> Iterable[str]:
        """Returns the event that begins the message."""
        yield _frame("message_start", message=self._message.opening(prompt_tokens or 0))
        yield _frame("ping")

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the events of new thinking, new text and new calls."""
        if piece.reasoning:
            yield from self._add(thinking_block(""), {"type": "thinking_delta", "thinking": piece.reasoning})
        if piece.text:
            yield from self._add(text_block(""), {"type": "text_delta", "text": piece.text})
        for call in piece.tool_calls:
            if not call.offset:
                yield from self._close()
            arguments = {"type": "input_json_delta", "partial_json": call.arguments}
            yield from self._add(tool_use_block(call, {}), arguments)

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the events that end the block, and say why the message ends."""
        yield from self._close()
        output = result.outputs[index]
        yield _frame(
            "message_delta",
            delta=self._message.end(output),
            usage=usage_of(output),
            graftwerk=self._message.extension(result),
        )

    def ending(self, job: Job, result: GenerateResult) -> Iterable[str]:
        """Returns the last event."""
        yield _frame("message_stop")

    def failure(self, error: GraftwerkError) -> Iterable[str]:
        """Returns the error."""
        found = error_object(error)
        yield sse.frame(json.dumps(found, ensure_ascii=False), event="error")

    def _add(self, block: Json, delta: Json) -> Iterator[str]:
        """Yields new content of a block, which is begun if another one is open."""
        if self._open != block["type"]:
            yield from self._close()
            self._open = block["type"]
            self._index += 1
            yield _frame("content_block_start", index=self._index, content_block=block)
        yield _frame("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[str]:
        if self._open is not None:
            yield _frame("content_block_stop", index=self._index)
            self._open = None


def _frame(name: str, /, **fields: Any) -> str:
    return sse.frame(json.dumps({"type": name, **fields}, ensure_ascii=False), event=name)
