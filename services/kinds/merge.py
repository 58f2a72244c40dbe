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
    base_precision: Literal["original", "dequantized"] = Field(
        default="original",
        description=(
            "dequantized: the base's linear weights are rounded to 4 bits (nf4) and back before the adapters are added, as an "
            "adapter that was trained on a 4-bit base has seen them. Needs bitsandbytes."
        ),
    )
    compare_precisions: bool = Field(
        default=False, description="Measure the difference between the merges into both forms of the base."
    )

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


class BaseQuantization(Result):
    """Rounding of the base's linear weights to 4 bits and back; `stored`: the base's files hold them in 4 bits."""

    tensors: int
    quant_type: str
    block_size: int
    double_quantization: bool
    stored: bool


class PrecisionDifference(Result):
    """Difference between the merges into the original and into the dequantized base, for one kind of module.

    `relative_norm` is the Frobenius norm of the difference relative to that of the original's merge; null if that is zero.
    """

    relative_norm: float | None
    differing_elements: int
    elements: int


class MergeResult(WrittenCheckpoint):
    """Figures of a merge; `verification` is null if it was switched off."""

    adapters: list[AdapterAccount]
    verification: MergeVerification | None
    vocabulary_size: int
    device: str
    base_quantization: BaseQuantization | None = Field(
        default=None, description="Set for a dequantized base, by which adapters see 4 bits."
    )
    precisions: dict[str, PrecisionDifference] | None = Field(
        default=None, description="By kind of module, with compare_precisions."
    )
