"""Sampling settings: one frozen value, the same for jobs, the OpenAI-compatible API and the engine.

The defaults are those of Chinese-LLaMA-Alpaca's inference script (`scripts/inference/inference_hf.py`), so that outputs
can be compared; the names are those of transformers' `GenerationConfig` and of OpenAI's API.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.validation import is_none

TokenBias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]
STOP_TOKENS_LIMIT = 256
"""Most tokens that end an output."""

MAX_LOGPROBS = 20
"""Most log-probabilities of likely tokens next to that of each token."""

STOP_LIMIT = 16
"""Most texts that end an output."""

SEED_BITS = 53
"""Bits of a seed drawn by chance: JavaScript and other readers of JSON keep integers up to 2^53 exactly."""

StopText = Annotated[str, Field(min_length=1, max_length=1000)]


class Sampling(BaseModel):
    """Settings of one request. Contradictions are refused, never corrected silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(
        default=0.2,
        ge=0,
        le=100,
        description="Divides the scores: values below 1 favour likely tokens. 0 is greedy.",
    )
    top_k: int = Field(
        default=40, ge=0, description="Only the k most likely tokens can be drawn. 0 keeps all."
    )
    top_p: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Only the most likely tokens that together reach this probability can be drawn. 1 keeps all.",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drops tokens less likely than this share of the most likely one.",
    )
    typical_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Locally typical sampling: the probability mass to keep. 1 keeps all.",
    )
    repetition_penalty: float = Field(
        default=1.1,
        gt=0,
        le=100,
        description="Divides the positive scores of tokens in prompt or output. 1 has no effect.",
    )
    presence_penalty: float = Field(
        default=0,
        ge=-2,
        le=2,
        description="Subtracted once from the score of every token that the output already has.",
    )
    frequency_penalty: float = Field(
        default=0,
        ge=-2,
        le=2,
        description="Subtracted from a token's score once per occurrence in the output.",
    )
    no_repeat_ngram_size: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="No sequence of this many tokens occurs twice, the prompt included. 0 is off.",
    )
    logit_bias: dict[TokenId, TokenBias] = Field(
        default_factory=dict,
        description="Token id to a value added to its score, from -100 (never) to 100 (always).",
    )
    max_new_tokens: int = Field(
        default=400,
        ge=0,
        le=1_000_000,
        description="Maximum number of tokens of an output. 0 only tokenizes the prompt.",
    )
    min_new_tokens: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="The end-of-text token is not drawn before this many tokens.",
    )
    num_beams: int = Field(default=1, ge=1, le=16, description="Beams of a beam search. 1 disables it.")
    do_sample: bool = Field(
        default=True, description="Draw at random. False always takes the most likely token (greedy)."
    )
    stop: tuple[StopText, ...] = Field(
        default=(),
        max_length=STOP_LIMIT,
        description="Texts that end the output; neither they nor any text after them is returned.",
    )
    stop_token_ids: tuple[TokenId, ...] | None = Field(
        default=None,
        max_length=STOP_TOKENS_LIMIT,
        exclude_if=is_none,
        description="Tokens that end the output in addition to the model's own; they have no text.",
    )
    seed: int | None = Field(
        default=None,
        ge=-(2**63),
        le=2**63 - 1,
        description="The same request with the same seed gives the same tokens.",
    )
    n: int = Field(default=1, ge=1, le=16, description="Number of outputs per prompt.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Returns the log-probability of each token and of this many most likely tokens.",
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        """Accepts one text, a list or null, as OpenAI's API does."""
        if stop is None:
            return ()
        # pydantic applies max_length to a tuple after it has checked each element
        if isinstance(stop, list) and len(stop) > STOP_LIMIT:
            raise ValueError(f"at most {STOP_LIMIT} texts are accepted, found {len(stop)}")
        return (stop,) if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _without_contradictions(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            least, most = self.min_new_tokens, self.max_new_tokens
            raise ValueError(f"min_new_tokens ({least}) is larger than max_new_tokens ({most})")
        if self.num_beams > 1 and self.n > self.num_beams:
            raise ValueError(f"a search with {self.num_beams} beams cannot return n = {self.n} outputs")
        if self.num_beams > 1 and self.logprobs is not None:
            raise ValueError("logprobs are not available from a beam search: set num_beams to 1")
        return self

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always taken. Several greedy outputs are allowed, and are equal."""
        return not self.do_sample or self.temperature == 0
