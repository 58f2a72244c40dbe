"""`convert`: a checkpoint of one layout becomes a model of another."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from services.kinds.made_model import WrittenCheckpoint
from services.kinds.shared import MakeRequest, ModelName, OutputOptions


class ConvertRequest(MakeRequest, OutputOptions):
    """Convert a checkpoint to another layout, with every tensor accounted for."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Convert an original checkpoint",
        "value": {"kind": "convert", "source": "llama-7b-original", "target": "llama-7b"},
    }

    kind: Literal["convert"]
    source: ModelName
    instruct: bool = Field(default=False, description="Llama 3: an instruct model (eos ids, template).")

    @property
    def reads(self) -> list[str]:
        """The source."""
        return [self.source]


class ConvertResult(WrittenCheckpoint):
    """Figures of a conversion; `dropped` are source tensors that the other layout computes itself."""

    dropped: list[str] = []
    ranks: int | None = None
