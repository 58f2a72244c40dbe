"""One embed job: its texts one by one to a model, its vectors together as the job's result."""

import struct
import time
from collections.abc import Mapping
from typing import Any

from services.errors import InvalidRequest
from services.generate import embed
from services.kinds.embed import EmbedRequest
from services.progress import Progress
from worker.inference.model_cache import CachedModel, alone
from worker.lifecycle import JobContext


class EmbedSession:
    """The state of one embed job on its model."""

    def __init__(self, request: EmbedRequest, context: JobContext, resident: CachedModel) -> None:
        self.request = request
        self.context = context
        self.resident = resident
        self.request_ids: list[str] = []  # the engine has no part in it
        self.vectors: list[list[float]] = []
        self.tokens = 0
        self._started = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether every text has its vector."""
        return len(self.vectors) == len(self.request.inputs)

    def advance(self) -> None:
        """Turn the next text into its vector.

        Raises PromptTooLong, NonFiniteLogits, InvalidRequest: for all texts, since a list with gaps helps nobody.
        """
        number = len(self.vectors)
        loaded = self.resident.loaded
        token_ids = loaded.tokenizer.encode(self.request.inputs[number])
        if not token_ids:
            raise InvalidRequest(f"inputs[{number}] has no tokens and so no vector", "Leave it out.")
        (vector,) = embed(loaded, [token_ids], self.context.execution.check_canceled)
        self.vectors.append([_shortest(number) for number in vector])
        self.tokens += len(token_ids)

    def report(self) -> None:
        """Say how far it is."""
        self.context.execution.report(
            Progress("embedding", len(self.vectors), len(self.request.inputs), "texts")
        )

    def result(self) -> Mapping[str, Any]:
        """The job's result."""
        loaded = self.resident.loaded
        return {
            "embeddings": self.vectors,
            "usage": {"prompt_tokens": self.tokens, "total_tokens": self.tokens},
            "seconds": round(time.monotonic() - self._started, 3),
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
        }


def embed_once(request: EmbedRequest, context: JobContext) -> Mapping[str, Any]:
    """The result of a job that has a model to itself."""
    resident = alone(request, context)
    embedding = EmbedSession(request, context, resident)
    while not embedding.is_done:
        embedding.advance()
        embedding.report()
    return embedding.result()


def _shortest(number: float) -> float:
    """The float32 `number` with no more decimals than tell it from its neighbours: half the text in JSON."""
    for digits in range(6, 9):
        short = float(f"{number:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", number):
            return short
    return float(f"{number:.9g}")
