"""Events of a streamed message: its beginning, the blocks with their pieces, its end."""

import json
from collections.abc import Iterable
from typing import Any

from api import sse
from api.anthropic.errors import error_object
from api.anthropic.message import MessageBuilder, text_block, usage_of
from services.errors import GraftwerkError
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, TokenPiece


class MessageEvents:
    """Frames of one streamed message."""

    def __init__(self, message: MessageBuilder) -> None:
        self._message = message
        self._has_block = False

    def opening(self) -> Iterable[str]:
        """Returns the event that begins the message."""
        yield _frame("message_start", message=self._message.opening())
        yield _frame("ping")

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the events of new text."""
        if not piece.text:
            return
        if not self._has_block:
            self._has_block = True
            yield _frame("content_block_start", index=0, content_block=text_block(""))
        yield _frame("content_block_delta", index=0, delta={"type": "text_delta", "text": piece.text})

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the events that end the block, and say why the message ends."""
        if self._has_block:
            yield _frame("content_block_stop", index=0)
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


def _frame(name: str, **fields: Any) -> str:
    return sse.frame(json.dumps({"type": name, **fields}, ensure_ascii=False), event=name)
