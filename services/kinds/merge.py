"""`merge`: adapters are merged into a base model, in order."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from services.kinds.computed_checks import ComputedChecks
from services.kinds.made_model import WrittenCheckpoint
from services.kinds.shared import AdapterChoice, MakeRequest, ModelName, OutputOptions, Result, unique_names


class MergeRequest(MakeRequest, OutputOptions):
    """Merge adapters into a base model, in the order given."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Merge two adapters, in this order",
        "value": {
            "kind": "merge",
            "base": "llama-7b",
            "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"],
            "target": "chinese-alpaca-7b",
        },
    }

    kind: Literal["merge"]
    base: ModelName
    adapters: list[AdapterChoice] = Field(min_length=1, max_length=32)
    rounding: Literal["per_adapter", "once"] = Field(
        default="per_adapter", description="per_adapter equals merging one after another with PEFT."
    )
    verify: bool = True

    @property
    def reads(self) -> list[str]:
        """The base and the adapters."""
        return unique_names(self.base, *(adapter.name for adapter in self.adapters))


class AdapterAccount(Result):
    """Counts of an adapter's tensors by their use, and the Frobenius norm of its change by kind of module (null: NaN or infinity)."""

    adapter: str
    scale: float
    tensors: int
    merged: int
    replaced: int
    rows_replaced: int
    rows_added: int = 0
    change_norms: dict[str, float | None] = {}


class MergeVerification(ComputedChecks):
    """Report of the verification of a merge, before it was published."""

    passed: bool
    digests_equal: int


class MergeResult(WrittenCheckpoint):
    """Figures of a merge; `verification` is null if it was switched off."""

    adapters: list[AdapterAccount]
    verification: MergeVerification | None
    vocabulary_size: int
    device: str
