"""The text of a job's answers as it grows, in pieces for those who watch."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from services.kinds.generate import TokenPiece
from worker.lifecycle import JobContext

TEXT_SECONDS = 0.03
"""New text of a job is told at most this often."""

Piece = dict[str, Any]


class TokenStream:
    """Collects what is new of each answer and tells it in pieces that are not too small.

    A piece has the answer's `index`, its `offset` (characters from the answer's beginning: a job that runs again
    begins at 0 again), its `text`, and `finish_reason`, null before the last piece.
    """

    def __init__(
        self, context: JobContext, *, with_token_ids: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = context.execution.publish_tokens
        self._with_token_ids = with_token_ids
        self._clock = clock
        self._told_at: float | None = None
        self._held: dict[int, Piece] = {}
        self._offsets: dict[int, int] = {}

    def add(self, index: int, text: str, token_id: int, logprob: dict[str, Any] | None) -> None:
        """Take in a token and the text that it made certain, which may be none."""
        if not text and logprob is None and not self._with_token_ids:
            return
        piece = self._piece(index)
        piece["text"] += text
        if self._with_token_ids:
            piece.setdefault("token_ids", []).append(token_id)
        if logprob is not None:
            piece.setdefault("logprobs", []).append(logprob)

    def end(self, index: int, finish_reason: str) -> None:
        """Note why an answer ended."""
        self._piece(index)["finish_reason"] = finish_reason

    def tell(self) -> None:
        """Tell what is held, unless the last time is too short ago."""
        if self._told_at is None or self._clock() - self._told_at >= TEXT_SECONDS:
            self.tell_rest()

    def tell_rest(self) -> None:
        """Tell what is held, whenever the last time was."""
        if not self._held:
            return
        pieces: Sequence[Piece] = list(self._held.values())
        self._tell([TokenPiece.model_validate(piece) for piece in pieces])
        for piece in pieces:
            self._offsets[piece["index"]] = piece["offset"] + len(piece["text"])
        self._held.clear()
        self._told_at = self._clock()

    def _piece(self, index: int) -> Piece:
        empty = {
            "index": index,
            "offset": self._offsets.get(index, 0),
            "text": "",
            "finish_reason": None,
        }
        return self._held.setdefault(index, empty)
