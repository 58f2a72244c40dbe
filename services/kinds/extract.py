"""`extract`: a LoRA adapter is computed from a fine-tuned model and its base."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.adapter_tools import MadeAdapter
from services.kinds.shared import MakeRequest, ModelName, unique_names

MAX_RANK = 8192
"""Largest rank of a request; headers set the limit of each model."""


class ExtractRequest(MakeRequest):
    """Extract a LoRA adapter of a chosen rank from a fine-tuned model and the base it was trained from."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Extract an adapter of rank 32",
        "value": {
            "kind": "extract",
            "base": "llama-7b-hf",
            "model": "vicuna-7b",
            "rank": 32,
            "target": "vicuna-lora",
        },
    }

    kind: Literal["extract"]
    base: ModelName
    model: ModelName
    rank: int = Field(ge=1, le=MAX_RANK)

    @property
    def reads(self) -> list[str]:
        """The base and the fine-tuned model."""
        return unique_names(self.base, self.model)

    @model_validator(mode="after")
    def _model_is_not_the_base(self) -> Self:
        if self.model.lower() == self.base.lower():
            raise ValueError(f"base and model are both {self.model!r}: their difference is nothing")
        return self


class ExtractResult(MadeAdapter):
    """Figures of an extracted adapter; `unchanged` counts the tensors that are equal in both models."""

    unchanged: int
    vocabulary_size: int
