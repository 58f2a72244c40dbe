"""`embed`: texts become vectors."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from services.generate_engines import Engine
from services.kinds.shared import JobResult, ModelRequest, TokenIds, Usage
from services.validation import is_none

INPUTS_LIMIT = 256
"""Most texts of a request."""


class EmbedRequest(ModelRequest):
    """Turn texts into vectors: the mean of the last hidden states over a text's tokens, scaled to length 1."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Turn texts into vectors",
        "value": {"kind": "embed", "model": "chinese-alpaca-7b", "inputs": ["Tell me about alpacas."]},
    }

    kind: Literal["embed"]
    inputs: list[Annotated[str, Field(min_length=1, max_length=1_000_000)] | TokenIds] = Field(
        min_length=1, max_length=INPUTS_LIMIT, description="Texts, or token ids of texts."
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        exclude_if=is_none,
        description="Length of the vectors: their first numbers, scaled to length 1 again; at most the width of the model.",
    )


class EmbedResult(JobResult):
    """One vector of length 1 for each text, in order."""

    embeddings: list[list[float]]
    usage: Usage
    seconds: float
    device: str
    dtype: str
    engine: Engine | None = None
