"""Requests to the engine and its events: plain values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from services.errors import GraftwerkError
from services.generate.adapter_stack import AdapterStack
from services.grammar import Grammar
from services.sampling import Sampling

FinishReason = Literal["stop", "length", "canceled"]


def _new_id() -> str:
    return uuid4().hex


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt with `sampling.n` outputs.

    `stop` and `stop_token_ids` come from the prompt's template, in addition to those of the sampling and the model. With
    `prompt_logprobs` each output has the log-probabilities of the prompt's tokens, and of this many most likely ones. With a
    `grammar` each output is one of its texts, unless its tokens end before. The special tokens
    `shown_ids` are written in texts. `adapters` are applied to its rows alone; the token ids are those of their tokenizer.
    """

    prompt_token_ids: Sequence[int]
    sampling: Sampling
    stop: Sequence[str] = ()
    stop_token_ids: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    shown_ids: frozenset[int] = frozenset()
    adapters: AdapterStack | None = None
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability by the model itself, before penalties, temperature and cut-offs.

    None for the first token of a prompt, before which nothing is. `top` are the most likely tokens at the same position.
    """

    token_id: int
    piece: str
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished output.

    `token_ids` are all generated tokens, including the one that ended the output and those of a stop string, which are
    not part of `text`. `stop_string` is the text that ended it, None if none did. `seed` reproduces the output.
    """

    index: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    stop_string: str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class TokenGenerated:
    """A token of one output, and the text that it completes; the concatenation of all texts is the output's text."""

    request_id: str
    index: int
    token_id: int
    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class OutputFinished:
    """One of a request's `n` outputs is complete."""

    request_id: str
    index: int
    output: Completion


@dataclass(frozen=True, slots=True)
class OutputFailed:
    """One of a request's `n` outputs cannot be completed; the others are not affected."""

    request_id: str
    index: int
    error: GraftwerkError


Event = TokenGenerated | OutputFinished | OutputFailed
