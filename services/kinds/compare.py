"""`compare`: several models are asked the same, side by side."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.kinds.generate import GenerateRequest, Output
from services.kinds.shared import (
    JobRequest,
    JobResult,
    ModelChoice,
    PromptOptions,
    Result,
    unique_names,
)

MAX_COMPARED_PROMPTS = 256
"""Most prompts of a compare job: its result holds every variant's outputs for each of them."""


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
        """The label, or the names that stand for it."""
        return self.label or "+".join([self.model, *(adapter.name for adapter in self.adapters)])


class CompareRequest(JobRequest, PromptOptions):
    """Ask several models the same, with the same seed, and report where their outputs differ."""

    example: ClassVar[dict[str, Any]] = {
        "summary": "Ask a base, the base with an adapter on the fly and a merged model the same",
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
            raise ValueError(f"several variants are called {', '.join(twice)}: give them labels of their own")
        return self

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if self.prompts is not None and len(self.prompts) > MAX_COMPARED_PROMPTS:
            raise ValueError(
                f"at most {MAX_COMPARED_PROMPTS} prompts are compared, found {len(self.prompts)}"
            )
        return self

    def request_for(self, variant: Variant, seed: int | None) -> GenerateRequest:
        """Returns the generate request that one variant answers."""
        prompt = {name: getattr(self, name) for name in PromptOptions.model_fields}
        choice = {name: getattr(variant, name) for name in ModelChoice.model_fields}
        prompt["sampling"] = self.sampling.model_copy(update={"seed": seed})
        return GenerateRequest(kind="generate", return_token_ids=True, **prompt, **choice)


class VariantSummary(Result):
    """One variant, and how it was computed if it has any output."""

    label: str
    model: str
    seconds: float | None = None
    tokens_per_second: float | None = None


class FirstDifference(Result):
    """Where the outputs of two variants first differ, counted from 0: token and character; null if they do not."""

    variants: list[str]
    token: int | None
    character: int | None


class Comparison(Result):
    """Outputs of all variants for one prompt, and where each pair differs."""

    prompt: str
    outputs: list[Output]
    differences: list[FirstDifference]


class PairCount(Result):
    """How many outputs of two variants are equal to the last token, of those compared."""

    variants: list[str]
    equal: int
    compared: int


class CompareResult(JobResult):
    """Variants in the request's order, one comparison for each prompt and output, one count for each pair."""

    seed: int
    variants: list[VariantSummary]
    comparisons: list[Comparison]
    pairs: list[PairCount]
