"""What the engine is asked for and what it gives back: plain values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from services.errors import GraftwerkError
from services.sampling import Sampling

FinishReason = Literal["stop", "length", "canceled"]


def _new_id() -> str:
    return uuid4().hex


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be answered `sampling.n` times.

    `stop` and `stop_token_ids` are those of the prompt's template; they add to the sampling's and the model's.
    """

    prompt_token_ids: Sequence[int]
    sampling: Sampling
    stop: Sequence[str] = ()
    stop_token_ids: frozenset[int] = frozenset()
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability by the model itself, before penalties, temperature and cuts."""

    token_id: int
    piece: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer.

    `token_ids` are all tokens that were generated, the one that ended the answer and those of a stop text
    included; `text` leaves these out. `seed` reproduces the answer.
    """

    index: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    logprobs: list[TokenLogprob] | None = None

    @property
    def usage(self) -> dict[str, int]:
        """Counts of tokens under OpenAI's names."""
        completion = len(self.token_ids)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


@dataclass(frozen=True, slots=True)
class TokenGenerated:
    """A token of one answer, and the text that is certain since; the sum of all texts is the output's text."""

    request_id: str
    index: int
    token_id: int
    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """One of a request's `n` answers is complete."""

    request_id: str
    index: int
    output: Completion


@dataclass(frozen=True, slots=True)
class AnswerFailed:
    """One of a request's `n` answers cannot be completed; the others are not touched."""

    request_id: str
    index: int
    error: GraftwerkError


Event = TokenGenerated | AnswerFinished | AnswerFailed
