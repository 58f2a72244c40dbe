"""`verify`: a model is checked against its manifest, or against what it was made of."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.computed_checks import ComputedChecks
from services.kinds.shared import AdapterChoice, JobRequest, JobResult, ModelName, Result, unique_names


class VerifyRequest(JobRequest):
    """Check a model: its tensors and files against its manifest; with `base`, also against base and adapters."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Check a model against what it was merged from",
        "value": {
            "kind": "verify",
            "model": "chinese-alpaca-7b",
            "base": "llama-7b",
            "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"],
        },
    }

    kind: Literal["verify"]
    model: ModelName
    base: ModelName | None = Field(
        default=None, description="Base that it was made of; null checks the manifest alone."
    )
    adapters: list[AdapterChoice] = Field(
        default=[], max_length=32, description="Merged into the base in this order."
    )

    @property
    def reads(self) -> list[str]:
        """The model, the adapters and the base."""
        return unique_names(self.model, *(adapter.name for adapter in self.adapters), self.base)

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        if self.adapters and self.base is None:
            raise ValueError("adapters were given without the base that they were merged into")
        if self.base is not None and self.model.lower() == self.base.lower():
            raise ValueError(f"model and base are both {self.model!r}")
        return self


class Difference(Result):
    """Something that is not as it must be: in a `tensor` or in a `file`."""

    tensor: str | None = None
    file: str | None = None
    message: str


class VerifyResult(JobResult, ComputedChecks):
    """Report of a verification; `passed` is the verdict, `differences` are the reasons."""

    model: str
    against: list[str]
    passed: bool
    differences: list[Difference]
    digests_equal: int | None = None
    files: int | None = None
    unlisted_files: list[str] = []
