"""New text of a job's outputs, published in batches while it grows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.kinds.generate import Logprob, TokenPiece
from services.kinds.tools import ToolCallPiece

FLUSH_SECONDS = 0.03
"""Minimum time between two batches of a job."""

Publish = Callable[[Sequence[TokenPiece]], None]


@dataclass(slots=True)
class _Pending:
    """Part of an output that is not published yet."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCallPiece] = field(default_factory=list)
    finish_reason: str | None = None


class TokenStream:
    """Collects the new tokens of each output and publishes them as one `TokenPiece` per output and batch.

    Offsets count characters from the start of an output: a job that is run again starts at 0 again.
    """

    def __init__(
        self, publish: Publish, *, with_token_ids: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._publish = publish
        self._with_token_ids = with_token_ids
        self._clock = clock
        self._flushed_at: float | None = None
        self._pending: dict[int, _Pending] = {}
        self._offsets: dict[int, int] = {}
        self._reasoning_offsets: dict[int, int] = {}
        self._prompt_tokens: dict[int, int] = {}

    def begin(self, index: int, prompt_tokens: int) -> None:
        """Begins an output, whose first piece has the number of its prompt's tokens."""
        self._prompt_tokens[index] = prompt_tokens

    def add(
        self, index: int, text: str, *, token_id: int | None = None, logprobs: Sequence[Logprob] = ()
    ) -> None:
        """Adds a token and the text that it completes, which may be empty."""
        if not text and not logprobs and not self._with_token_ids:
            return
        pending = self._pending.setdefault(index, _Pending())
        pending.texts.append(text)
        pending.logprobs += logprobs
        if token_id is not None and self._with_token_ids:
            pending.token_ids.append(token_id)

    def add_parts(self, index: int, *, reasoning: str, calls: Sequence[ToolCallPiece]) -> None:
        """Adds new thinking and new calls."""
        pending = self._pending.setdefault(index, _Pending())
        pending.reasoning.append(reasoning)
        for call in calls:
            if call.offset and pending.calls and pending.calls[-1].index == call.index:
                last = pending.calls[-1]
                pending.calls[-1] = last.model_copy(update={"arguments": last.arguments + call.arguments})
            else:
                pending.calls.append(call)

    def finish(self, index: int, finish_reason: str) -> None:
        """Adds the finish reason of an output."""
        self._pending.setdefault(index, _Pending()).finish_reason = finish_reason

    def flush_if_due(self) -> None:
        """Publishes what is pending, unless the last batch is less than `FLUSH_SECONDS` old."""
        if self._flushed_at is None or self._clock() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Publishes what is pending."""
        if not self._pending:
            return
        self._publish([self._piece(index, pending) for index, pending in self._pending.items()])
        self._pending.clear()
        self._flushed_at = self._clock()

    def _piece(self, index: int, pending: _Pending) -> TokenPiece:
        text = "".join(pending.texts)
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        reasoning = "".join(pending.reasoning)
        more: dict[str, Any] = {
            "token_ids": pending.token_ids, "logprobs": pending.logprobs, "reasoning": reasoning, "tool_calls": pending.calls,
        }  # fmt: skip
        if index in self._prompt_tokens:
            more["prompt_tokens"] = self._prompt_tokens.pop(index)
        if reasoning:
            more["reasoning_offset"] = self._reasoning_offsets.get(index, 0)
            self._reasoning_offsets[index] = self._reasoning_offsets.get(index, 0) + len(reasoning)
        # Not validated: there are many pieces, and their values are the engine's own.
        return TokenPiece.model_construct(
            index=index,
            offset=offset,
            text=text,
            finish_reason=pending.finish_reason,
            **{name: value for name, value in more.items() if value},
        )
