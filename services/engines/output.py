"""One output of a served model: the request to its server, and the tokens that come back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.grammar import Grammar
from services.sampling import Sampling


@dataclass(frozen=True, slots=True)
class ServedToken:
    """A token of a stream; if requested, its log-probability and those of the most likely tokens in descending order."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that a server applies to its base: its name there and its folder."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """One output of a prompt.

    Attributes:
        adapter: Adapter that the server applies for this output; None for the model that it was started with.
        end_ids: Tokens that end the output, among them the model's own.
        prompt_logprobs: Number of most likely tokens next to each token of the prompt; None if the prompt is not scored.
    """

    prompt_token_ids: Sequence[int]
    sampling: Sampling
    seed: int
    adapter: ServedAdapter | None = None
    end_ids: Iterable[int] = ()
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def logprobs(self) -> int | None:
        """Number of most likely tokens that the server returns with each token, None without log-probabilities."""
        asked = [count for count in (self.sampling.logprobs, self.prompt_logprobs) if count is not None]
        return max(asked, default=None)


class TakeTokens(Protocol):
    """Takes new tokens of an output and tokens of its prompt, in the thread of the server's calls."""

    def __call__(self, tokens: Sequence[ServedToken], *, prompt: Sequence[ServedToken] = ()) -> None: ...
