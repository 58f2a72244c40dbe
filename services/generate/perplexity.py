"""Perplexity of a text: windows slide over its tokens, and each token is scored once.

The windows are those of "Perplexity of fixed-length models" in the documentation of transformers: a window begins every
`stride` tokens, its first tokens are context only, and it scores the tokens that no earlier window has scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from services.errors import InvalidRequest, NonFiniteLogits
from services.generate.loading import LoadedModel
from services.progress import CheckCanceled, never_canceled

DEFAULT_CONTEXT = 2048
"""Maximum default window: the context that the first LLaMA was trained with."""

CHUNK_TOKENS = 128
"""Tokens per forward pass: with a vocabulary of 128 k, their logits take 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `end` (exclusive) of a text; those from `scored_from` on are scored."""

    start: int
    scored_from: int
    end: int


@dataclass(frozen=True, slots=True)
class Score:
    """Total negative log-likelihood of `tokens` tokens, in nats."""

    total: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(self.total + other.total, self.tokens + other.tokens)

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean); infinity if it exceeds a float64."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, size_bytes: int) -> float:
        """Returns the bits per byte of the text, which are comparable between vocabularies."""
        return self.total / math.log(2) / size_bytes


def window_sizes(
    context_length: int, *, context: int | None = None, stride: int | None = None
) -> tuple[int, int]:
    """Returns window and stride in tokens; the defaults are the model's context, at most 2048, and half the window.

    Raises:
        InvalidRequest: the window is longer than the model's context, or the stride leaves a token without context.
    """
    window = min(context_length, DEFAULT_CONTEXT) if context is None else context
    if not 2 <= window <= context_length:
        raise InvalidRequest(
            f"The window has {window} tokens and the model's context is {context_length}.",
            f"Set context to between 2 and {context_length}, or leave it out.",
        )
    step = window // 2 if stride is None else stride
    if not 1 <= step < window:
        raise InvalidRequest(
            f"The stride is {step} and the window has {window} tokens: each scored token needs one before it.",
            f"Set stride to {window - 1} at most, or leave it out.",
        )
    return window, step


def windows_of(tokens: int, *, context: int, stride: int) -> list[Window]:
    """Returns the windows over a text of this number of tokens. The first token has no context and is not scored.

    Raises:
        InvalidRequest: the text has fewer than two tokens.
    """
    if tokens < 2:
        raise InvalidRequest(
            f"The text has {tokens} token(s), including the beginning of text: nothing can be scored.",
            "Give a longer text.",
        )
    windows = [Window(0, 1, min(context, tokens))]
    while windows[-1].end < tokens:
        last = windows[-1]
        start = last.start + stride
        windows.append(Window(start, last.end, min(start + context, tokens)))
    return windows


@torch.inference_mode()
def score_window(
    loaded: LoadedModel,
    token_ids: Sequence[int],
    window: Window,
    check_canceled: CheckCanceled = never_canceled,
) -> Score:
    """Returns the score of one window's tokens: log-softmax in float32, summed in float64.

    The window is computed in chunks with a KV cache: memory is the window's cache and the logits of one chunk.

    Args:
        check_canceled: called before each chunk; its exceptions are passed on.

    Raises:
        NonFiniteLogits: the model computed NaN or infinity.
    """
    cache = DynamicCache()
    total = 0.0
    for start in range(window.start, window.end - 1, CHUNK_TOKENS):
        check_canceled()
        end = min(start + CHUNK_TOKENS, window.end - 1)  # the last token is only a target
        kept = end - max(start, window.scored_from - 1)
        logits = read_chunk(loaded, token_ids[start:end], cache, at=start - window.start, kept=max(kept, 1))
        if kept > 0:
            total += _negative_log_likelihood(logits, token_ids[end - kept + 1 : end + 1], end - kept + 1)
    return Score(total, window.end - window.scored_from)


def read_chunk(
    loaded: LoadedModel, token_ids: Sequence[int], cache: DynamicCache, *, at: int, kept: int
) -> torch.Tensor:
    """Returns the logits (kept, vocabulary) in float32 after the last `kept` of these tokens; the first is at position `at`."""
    model: Any = loaded.model
    outcome = model(
        input_ids=torch.tensor([list(token_ids)], device=loaded.device),
        position_ids=torch.arange(at, at + len(token_ids), device=loaded.device)[None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    )
    logits: torch.Tensor = outcome.logits[0]
    return logits.float()


def _negative_log_likelihood(logits: torch.Tensor, expected: Sequence[int], position: int) -> float:
    """Returns the total of the expected tokens in nats; the first of them is at `position` of the text, counted from 0."""
    if not bool(logits.isfinite().all()):
        row = int((~logits.isfinite()).any(dim=-1).nonzero()[0])
        raise NonFiniteLogits(
            f"The model computed NaN or infinity as logits of token {position + row + 1} of the text.",
            "Its weights are damaged, or float16 overflows: verify the model, or load it as float32 or bfloat16.",
        )
    targets = torch.tensor(list(expected), device=logits.device)[:, None]
    likelihoods = logits.log_softmax(dim=-1).gather(-1, targets)
    return -float(likelihoods.double().sum())
