"""`perplexity`: a model scores a text."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.shared import JobResult, ModelRequest


class PerplexityRequest(ModelRequest):
    """Score a text: the likelihood of each token by a model, or by a base with adapters on the fly."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Score a text with a base and adapters on the fly",
        "value": {
            "kind": "perplexity",
            "model": "llama-7b",
            "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"],
            "text_file": "incoming/held-out.txt",
        },
    }

    kind: Literal["perplexity"]
    text: str | None = Field(default=None, min_length=1, max_length=1_000_000)
    text_file: str | None = Field(
        default=None, max_length=1024, description="A UTF-8 text on the volume, under `incoming/`."
    )
    context: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="Tokens per window; null is the model's context, at most 2048.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Tokens from the start of a window to the start of the next; null is half a window.",
    )

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.text is None) == (self.text_file is None):
            found = "none of them" if self.text is None else "both"
            raise ValueError(f"exactly one of text and text_file is needed, found {found}")
        return self

    @model_validator(mode="after")
    def _windows_overlap(self) -> Self:
        if self.context is not None and self.stride is not None and self.stride >= self.context:
            raise ValueError(
                f"stride = {self.stride} must be below context = {self.context}: each scored token needs one before it"
            )
        return self


class PerplexityResult(JobResult):
    """Score of a text; likelihoods in nats per token."""

    perplexity: float | None
    negative_log_likelihood: float | None
    bits_per_byte: float | None
    tokens: int
    windows: int
    context: int
    stride: int
    seconds: float
    device: str
    dtype: str
