"""Session of an embed job: one text per step, all vectors together as the result."""

import struct
import time

from services.errors import InvalidRequest
from services.generate import Event, embed
from services.kinds.embed import EmbedRequest, EmbedResult
from services.kinds.shared import Usage
from services.preflight.embed import check_dimensions
from services.progress import Progress
from worker.inference.cached_model import CachedModel
from worker.inference.model_key import ModelKey, key_of
from worker.lifecycle import JobContext


class EmbedSession:
    """Turns the texts of one embed request into vectors."""

    has_prompts = False
    _model: CachedModel  # this and the following are set by `attach`
    _started: float

    def __init__(self, request: EmbedRequest, context: JobContext) -> None:
        self._request, self._context = request, context
        self._key: ModelKey | None = None
        self._vectors: list[list[float]] = []
        self._tokens = 0

    @property
    def done(self) -> bool:
        """True once every text has its vector."""
        return len(self._vectors) == len(self._request.inputs)

    def needs(self) -> ModelKey | None:
        """Returns the key of the request's model. Raises ModelNotFound."""
        return self._key or key_of(self._request, self._context.store)

    def attach(self, model: CachedModel) -> None:
        """Starts on this model."""
        self._model, self._key = model, model.key
        self._started = time.monotonic()

    def step(self) -> None:
        """Turns the next text into its vector.

        Raises:
            PromptTooLong, NonFiniteLogits, InvalidRequest: the text has no vector; a list with gaps is of no use.
        """
        number = len(self._vectors)
        loaded = self._model.local
        given = self._request.inputs[number]
        token_ids = loaded.tokenizer.encode(given) if isinstance(given, str) else given
        if token_ids and max(token_ids) >= loaded.rows:
            raise InvalidRequest(
                f"inputs[{number}] has the token {max(token_ids)}, and the model has {loaded.rows} tokens.",
                f"Send ids from 0 to {loaded.rows - 1}, of the model's own tokenizer.",
            )
        if not token_ids:
            raise InvalidRequest(f"inputs[{number}] has no tokens and therefore no vector.", "Leave it out.")
        check_dimensions(self._request, loaded.model.config.get_text_config().hidden_size)
        (vector,) = embed(
            loaded, [token_ids], self._context.execution.check_canceled, dimensions=self._request.dimensions
        )
        self._vectors.append([shortest_float32(number) for number in vector])
        self._tokens += len(token_ids)

    def on_event(self, event: Event) -> None:
        """Ignores it: the session submits nothing to the engine."""

    def report(self) -> None:
        """Reports the number of texts that are done."""
        progress = Progress("embedding", len(self._vectors), len(self._request.inputs), "texts")
        self._context.execution.report(progress)

    def result(self) -> EmbedResult:
        """Returns the vectors in the order of the texts."""
        loaded = self._model.local
        return EmbedResult(
            embeddings=self._vectors,
            usage=Usage(prompt_tokens=self._tokens, total_tokens=self._tokens),
            seconds=round(time.monotonic() - self._started, 3),
            device=loaded.device_name,
            dtype=loaded.dtype_name,
            engine="graftwerk",
        )

    def cancel(self) -> None:
        """Does nothing: a step is short, and checks for cancellation itself."""

    def close(self) -> None:
        """Does nothing."""


def open_session(request: EmbedRequest, context: JobContext) -> EmbedSession:
    """Returns the session of an embed job."""
    return EmbedSession(request, context)


def shortest_float32(number: float) -> float:
    """Returns the float32 `number` with the fewest decimals that identify it, which halves its text in JSON."""
    for digits in range(6, 9):
        short = float(f"{number:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", number):
            return short
    return float(f"{number:.9g}")
