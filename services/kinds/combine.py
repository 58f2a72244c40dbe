"""`combine`: several adapters of one base become one adapter."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.adapter_tools import MadeAdapter
from services.kinds.extract import MAX_RANK
from services.kinds.shared import AdapterChoice, MakeRequest, unique_names

DENSITY = 0.5
"""Default of `density`."""


class CombineRequest(MakeRequest):
    """Combine several LoRA adapters of one base into one adapter."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Add two adapters, the second by half",
        "value": {
            "kind": "combine",
            "adapters": ["style-lora", {"name": "facts-lora", "scale": 0.5}],
            "method": "concatenate",
            "target": "style-and-facts",
        },
    }

    kind: Literal["combine"]
    adapters: list[AdapterChoice] = Field(min_length=1, max_length=32)
    method: Literal["concatenate", "linear", "ties", "dare"] = Field(
        default="concatenate",
        description="concatenate and linear add the changes; ties and dare leave parts of them out.",
    )
    density: float = Field(
        default=DENSITY,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of elements that ties and dare keep.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the elements that dare keeps.")
    rank: int | None = Field(
        default=None, ge=1, le=MAX_RANK, description="null: the sum of the ranks, with which a sum is exact."
    )

    @property
    def reads(self) -> list[str]:
        """The adapters."""
        return unique_names(*(adapter.name for adapter in self.adapters))

    @model_validator(mode="after")
    def _density_fits_the_method(self) -> Self:
        if self.density != DENSITY and self.method not in ("ties", "dare"):
            raise ValueError(
                f"density = {self.density} applies to the methods 'ties' and 'dare', the request has {self.method!r}"
            )
        return self


class CombineResult(MadeAdapter):
    """Figures of a combined adapter."""
