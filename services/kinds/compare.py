"""`compare`: several models get the same prompts, side by side."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.generate_engines import Engine
from services.kinds.generate import GenerateRequest, Output
from services.kinds.shared import (
    JobRequest,
    JobResult,
    ModelChoice,
    Quantization,
    Result,
    unique_names,
)
from services.kinds.tools import ToolOptions

MAX_COMPARED_PROMPTS = 256
"""Maximum number of prompts of a compare job: its result contains the outputs of every variant for each prompt."""


class Variant(ModelChoice):
    """One of the models that are compared."""

    label: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Its name in the result; null is the model's name and those of its adapters, joined by +.",
    )

    @property
    def name(self) -> str:
        """The label, or the names of model and adapters joined by +."""
        return self.label or "+".join([self.model, *(adapter.name for adapter in self.adapters)])


class CompareRequest(JobRequest, ToolOptions):
    """Run several models on the same prompts with the same seed, and report where their outputs differ."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Compare a base, the base with adapters on the fly and a merged model",
        "value": {
            "kind": "compare",
            "variants": [
                {"model": "llama-7b"},
                {"model": "llama-7b", "adapters": ["chinese-llama-lora", "chinese-alpaca-lora"]},
                {"model": "chinese-alpaca-7b", "label": "merged"},
            ],
            "prompt": "Tell me about alpacas.",
            "template": "alpaca",
            "sampling": {"seed": 7, "max_new_tokens": 64},
        },
    }

    kind: Literal["compare"]
    variants: list[Variant] = Field(min_length=2, max_length=8)

    @property
    def reads(self) -> list[str]:
        """The models and adapters of all variants."""
        return unique_names(*(name for variant in self.variants for name in variant.names))

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several variants have the name {', '.join(twice)}: give each a label")
        return self

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if self.prompts is not None and len(self.prompts) > MAX_COMPARED_PROMPTS:
            raise ValueError(
                f"at most {MAX_COMPARED_PROMPTS} prompts are accepted, found {len(self.prompts)}"
            )
        return self

    def request_for(self, variant: Variant, seed: int | None) -> GenerateRequest:
        """Returns the generate request of one variant, with merged adapters: a comparison shows no other differences."""
        prompt = {name: getattr(self, name) for name in ToolOptions.model_fields}
        choice = {name: getattr(variant, name) for name in ModelChoice.model_fields}
        prompt["sampling"] = self.sampling.model_copy(update={"seed": seed})
        return GenerateRequest(kind="generate", return_token_ids=True, exact=True, **prompt, **choice)


class VariantAdapter(Result):
    """Adapter of a variant and the factor on its change."""

    name: str
    scale: float


class VariantSummary(Result):
    """One variant, and engine, device and speed of its generation if it has any output.

    `ignored`: fields of the request that were left out for it, `tools` for example.
    """

    label: str
    model: str
    adapters: list[VariantAdapter] = []
    quantization: Quantization | None = None
    rope_alpha: float | None = None
    template: str | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    device: str | None = None
    dtype: str | None = None
    backend: str | None = None
    engine: Engine | None = None
    ignored: list[str] | None = None


class FirstDifference(Result):
    """Index of the first token and of the first character that differ between two variants; null if none does."""

    variants: list[str]
    token: int | None
    character: int | None


class Comparison(Result):
    """Outputs of all variants for one prompt, and the first difference of each pair."""

    prompt: str
    outputs: list[Output]
    differences: list[FirstDifference]


class PairCount(Result):
    """Number of compared outputs of two variants, and number of those that are equal to the last token."""

    variants: list[str]
    equal: int
    compared: int


class CompareResult(JobResult):
    """Variants in the request's order, one comparison for each prompt and output, one count for each pair."""

    seed: int
    variants: list[VariantSummary]
    comparisons: list[Comparison]
    pairs: list[PairCount]
