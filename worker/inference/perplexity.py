"""One perplexity job: its text window by window to a model, its sum as the job's result."""

import time
from collections.abc import Mapping
from typing import Any

from services.errors import UnreadableFile
from services.generate import Score, score_window, window_sizes, windows_of
from services.kinds.perplexity import PerplexityRequest
from services.models.store import ModelStore
from services.progress import Progress
from services.templates import check_text
from worker.inference.model_cache import CachedModel, alone
from worker.lifecycle import JobContext


class PerplexitySession:
    """The state of one perplexity job on its model."""

    def __init__(self, request: PerplexityRequest, context: JobContext, resident: CachedModel) -> None:
        """Raises UnreadableFile, SourceNotFound, InvalidName, InvalidText; InvalidRequest: window or text do not fit."""
        self.context = context
        self.resident = resident
        self.request_ids: list[str] = []  # the engine has no part in it
        self.score = Score()
        self._started = time.monotonic()
        loaded = resident.loaded
        self._window, self._stride = window_sizes(
            loaded.context_length, context=request.context, stride=request.stride
        )
        text = text_of(request, context.store)
        self._size_bytes = len(text.encode())
        self._token_ids = loaded.tokenizer.encode(text)
        self._windows = windows_of(len(self._token_ids), context=self._window, stride=self._stride)
        self._next = 0

    @property
    def is_done(self) -> bool:
        """Whether every window is scored."""
        return self._next == len(self._windows)

    def advance(self) -> None:
        """Score the next window. Raises NonFiniteLogits, JobCanceled."""
        window = self._windows[self._next]
        self.score += score_window(
            self.resident.loaded, self._token_ids, window, self.context.execution.check_canceled
        )
        self._next += 1

    def report(self) -> None:
        """Say how far it is."""
        self.context.execution.report(
            Progress("scoring", self.score.tokens, len(self._token_ids) - 1, "tokens")
        )

    def result(self) -> Mapping[str, Any]:
        """The job's result."""
        loaded = self.resident.loaded
        return {
            "perplexity": self.score.perplexity,
            "negative_log_likelihood": self.score.mean,
            "bits_per_byte": self.score.bits_per_byte(self._size_bytes),
            "tokens": self.score.tokens,
            "windows": len(self._windows),
            "context": self._window,
            "stride": self._stride,
            "seconds": round(time.monotonic() - self._started, 3),
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
        }


def text_of(request: PerplexityRequest, store: ModelStore) -> str:
    """The text that is scored, letter for letter. Raises UnreadableFile, SourceNotFound, InvalidName, InvalidText."""
    if request.text_file is None:
        text = request.text or ""
    else:
        try:
            text = store.incoming(request.text_file).read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableFile(
                f"{request.text_file} is no UTF-8 text: {error}", "Save it as UTF-8."
            ) from error
    check_text(text)
    return text


def score_once(request: PerplexityRequest, context: JobContext) -> Mapping[str, Any]:
    """The result of a job that has a model to itself."""
    resident = alone(request, context)
    scoring = PerplexitySession(request, context, resident)
    while not scoring.is_done:
        scoring.advance()
        scoring.report()
    return scoring.result()
