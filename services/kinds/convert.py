"""`convert`: a checkpoint of one layout becomes a model of another."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.made_model import WrittenCheckpoint
from services.kinds.shared import MakeRequest, ModelName, OutputOptions, unique_names


class ConvertRequest(MakeRequest, OutputOptions):
    """Convert a checkpoint to another layout, with every tensor accounted for."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Convert an original checkpoint",
        "value": {"kind": "convert", "source": "llama-7b-original", "target": "llama-7b"},
    }

    kind: Literal["convert"]
    source: ModelName
    instruct: bool = Field(default=False, description="Llama 3: an instruct model (eos ids, template).")

    base: ModelName | None = Field(
        default=None,
        description="Of an adapter that is written as `gguf`: the base model that it belongs to.",
    )

    @property
    def reads(self) -> list[str]:
        """The source, and the base of an adapter."""
        return unique_names(self.source, self.base)

    @model_validator(mode="after")
    def _base_needs_gguf(self) -> Self:
        if self.base is not None and self.output_format != "gguf":
            raise ValueError(
                f"base belongs to an adapter that is written as 'gguf', the request has {self.output_format!r}"
            )
        return self


class ConvertResult(WrittenCheckpoint):
    """Figures of a conversion; `dropped` are source tensors that the other layout computes itself."""

    dropped: list[str] = []
    ranks: int | None = None
