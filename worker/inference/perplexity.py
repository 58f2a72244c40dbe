"""Session of a perplexity job: one window of the text per step, the total score as the result."""

import math
import time
from collections.abc import Sequence

from services.generate import Event, Score, Window, score_window, window_sizes, windows_of
from services.kinds.perplexity import PerplexityRequest, PerplexityResult
from services.models.store import ModelStore
from services.models.text_file import read_text_file
from services.progress import Progress
from services.templates import check_text
from worker.inference.cached_model import CachedModel
from worker.inference.model_key import ModelKey, key_of
from worker.lifecycle import JobContext


class PerplexitySession:
    """Scores the text of one perplexity request."""

    has_prompts = False
    _model: CachedModel  # this and the following are set by `attach`
    _token_ids: Sequence[int]
    _windows: Sequence[Window]
    _window_size: int
    _stride: int
    _started: float

    def __init__(self, request: PerplexityRequest, context: JobContext) -> None:
        """Reads the text.

        Raises:
            UnreadableFile, SourceNotFound, InvalidName, InvalidText: see `text_of`.
        """
        self._request, self._context = request, context
        self._text = text_of(request, context.store)
        self._key: ModelKey | None = None
        self._score = Score()
        self._next = 0

    @property
    def done(self) -> bool:
        """True once every window is scored."""
        return self._key is not None and self._next == len(self._windows)

    def needs(self) -> ModelKey | None:
        """Returns the key of the request's model. Raises ModelNotFound."""
        return self._key or key_of(self._request, self._context.store)

    def attach(self, model: CachedModel) -> None:
        """Starts on this model. Raises InvalidRequest if the windows or the text do not fit."""
        loaded, request = model.local, self._request
        self._started = time.monotonic()
        self._window_size, self._stride = window_sizes(
            loaded.context_length, context=request.context, stride=request.stride
        )
        self._token_ids = loaded.tokenizer.encode(self._text)
        self._windows = windows_of(len(self._token_ids), context=self._window_size, stride=self._stride)
        self._model, self._key = model, model.key

    def step(self) -> None:
        """Scores the next window. Raises NonFiniteLogits, JobCanceled."""
        window = self._windows[self._next]
        check_canceled = self._context.execution.check_canceled
        self._score += score_window(self._model.local, self._token_ids, window, check_canceled)
        self._next += 1

    def on_event(self, event: Event) -> None:
        """Ignores it: the session submits nothing to the engine."""

    def report(self) -> None:
        """Reports the number of scored tokens."""
        progress = Progress("scoring", self._score.tokens, len(self._token_ids) - 1, "tokens")
        self._context.execution.report(progress)

    def result(self) -> PerplexityResult:
        """Returns the score; numbers that a float64 cannot hold are null."""
        loaded, score = self._model.local, self._score
        return PerplexityResult(
            perplexity=_finite(score.perplexity),
            negative_log_likelihood=_finite(score.mean),
            bits_per_byte=_finite(score.bits_per_byte(len(self._text.encode()))),
            tokens=score.tokens,
            windows=len(self._windows),
            context=self._window_size,
            stride=self._stride,
            seconds=round(time.monotonic() - self._started, 3),
            device=loaded.device_name,
            dtype=loaded.dtype_name,
        )

    def cancel(self) -> None:
        """Does nothing: a step is short, and checks for cancellation itself."""

    def close(self) -> None:
        """Does nothing."""


def open_session(request: PerplexityRequest, context: JobContext) -> PerplexitySession:
    """Returns the session of a perplexity job. Raises as `PerplexitySession` does."""
    return PerplexitySession(request, context)


def text_of(request: PerplexityRequest, store: ModelStore) -> str:
    """Returns the text to score, unchanged except for a byte order mark.

    Raises:
        UnreadableFile: the file is not UTF-8 text.
        SourceNotFound, InvalidName: there is no such file.
        InvalidText: the text has a lone surrogate.
    """
    text = (request.text or "") if request.text_file is None else read_text_file(store, request.text_file)
    check_text(text)
    return text


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
