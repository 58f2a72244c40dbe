"""`convert`: a checkpoint of one layout becomes a model of another."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.made_model import WrittenCheckpoint
from services.kinds.shared import MakeRequest, ModelName, OutputOptions, Result, Shape, unique_names
from services.validation import is_none


class TextFile(Shape):
    """A text on the volume."""

    text_file: str = Field(max_length=1024, description="A UTF-8 text on the volume, under `incoming/`.")


class Measurement(Result):
    """Loss of an output against its source: mean divergence of the next token's probabilities in nats, share of equal top tokens."""

    kl_divergence: float
    same_top_token: float
    tokens: int


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
        exclude_if=is_none,
        description="Of an adapter that is written as `gguf`: the base model that it belongs to.",
    )

    measure: TextFile | None = Field(
        default=None,
        exclude_if=is_none,
        description="Of a `gguf` output: a text on which it is compared with its source.",
    )

    @property
    def reads(self) -> list[str]:
        """The source, and the base of an adapter."""
        return unique_names(self.source, self.base)

    @model_validator(mode="after")
    def _options_of_gguf(self) -> Self:
        for name in ("base", "measure"):
            if getattr(self, name) is not None and self.output_format != "gguf":
                raise ValueError(
                    f"{name} applies to output_format 'gguf' only, the request has {self.output_format!r}"
                )
        for name in ("measure", "imatrix"):
            if self.base is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} applies to models, and base is given: the source is an adapter")
        return self


class ConvertResult(WrittenCheckpoint):
    """Figures of a conversion; `dropped` are source tensors that the other layout computes itself."""

    dropped: list[str] = []
    ranks: int | None = None
    kl_divergence: float | None = None
    same_top_token: float | None = None
