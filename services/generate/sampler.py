"""Choice of the next token: transformers' own processors, one row at a time.

The order is that of transformers' `GenerationMixin._get_logits_processor`. Each output draws from its own generator on the
CPU, so that other sequences of a batch and the device do not change its tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from services.sampling import Sampling

FIRST_SORTED = 256
"""Tokens that are sorted for top-p at first; eight times as many each time that they are not enough."""

_GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15


class BiasProcessor(LogitsProcessor):
    """Adds a value to the scores of chosen tokens (OpenAI's `logit_bias`)."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = torch.tensor(list(bias), dtype=torch.long)
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns scores of the same shape (rows, vocabulary)."""
        return scores.index_add(
            1, self._ids.to(scores.device), self._values.to(scores).expand(len(scores), -1)
        )


class PresenceFrequencyProcessor(LogitsProcessor):
    """OpenAI's penalties: subtracts presence once, and frequency times the count, for tokens of the output so far."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns scores of the same shape (rows, vocabulary) for ids (rows, length)."""
        new = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, new, torch.ones_like(new, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; if requested, its log-probability and those of the most likely tokens in descending order."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def own_processors(sampling: Sampling, prompt_length: int) -> list[LogitsProcessor]:
    """Returns the processors that transformers has no class for; they come after transformers' own penalties."""
    processors: list[LogitsProcessor] = []
    if sampling.logit_bias:
        processors.append(BiasProcessor(sampling.logit_bias))
    if sampling.presence_penalty or sampling.frequency_penalty:
        processors.append(
            PresenceFrequencyProcessor(sampling.presence_penalty, sampling.frequency_penalty, prompt_length)
        )
    return processors


def _processors(sampling: Sampling, prompt_length: int, end_ids: Iterable[int]) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    ends = sorted(end_ids)
    if sampling.min_new_tokens and ends:
        processors.append(MinNewTokensLengthLogitsProcessor(prompt_length, sampling.min_new_tokens, ends))
    return processors + own_processors(sampling, prompt_length)


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if sampling.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_p < 1 and sampling.top_k:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p is not None and sampling.typical_p < 1:
        warpers.append(TypicalLogitsWarper(sampling.typical_p))
    return warpers


class Sampler:
    """Chooses the tokens of one output."""

    def __init__(
        self, sampling: Sampling, prompt_token_ids: Sequence[int], *, end_ids: Iterable[int], seed: int
    ) -> None:
        self._sampling = sampling
        prompt = torch.tensor([list(prompt_token_ids)], dtype=torch.long)
        self._length = prompt.shape[1]
        new = torch.zeros((1, sampling.max_new_tokens), dtype=torch.long)
        self._ids = torch.cat([prompt, new], dim=1)
        self._processors = _processors(sampling, self._length, end_ids)
        self._warpers = _warpers(sampling)
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> Choice:
        """Returns the next token.

        Args:
            logits: (vocabulary,), float32, on the CPU, finite. Not modified.
            allowed: (vocabulary,), bool: the tokens that may be chosen, at least one; None allows all.
        """
        scores = logits[None]
        for processor in self._processors:
            scores = processor(self._ids[:, : self._length], scores)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        token_id = most_likely(scores[0]) if self._sampling.greedy else self._draw(scores, allowed)
        if self._length < self._ids.shape[1]:
            self._ids[0, self._length] = token_id
        self._length += 1
        return self._with_logprobs(token_id, logits)

    def _draw(self, scores: torch.Tensor, allowed: torch.Tensor | None) -> int:
        """Draws from the tokens that the cut-offs leave, by the Gumbel-max trick: the largest score plus noise.

        Each token of the vocabulary has its own noise at every step. If rounding swaps two tokens at the edge of a
        cut-off, the choice changes only if one of them was chosen; drawing by cumulative sums would shift all.
        """
        key = int(torch.randint(2**62, (), generator=self._generator))
        candidates = self._candidates(scores[0], allowed)
        scores = scores[:, candidates]
        for warper in self._warpers:
            scores = warper(self._ids, scores)
        gumbel = -(-uniform_noise(candidates, key).log()).log()
        return int(candidates[(scores[0].double() + gumbel).argmax()])

    def _candidates(self, scores: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        """Returns the ids, in ascending order, of the tokens that top-k leaves; without top-k, of those that top-p leaves."""
        if allowed is not None and int(allowed.sum()) <= self._sampling.top_k:
            return allowed.nonzero()[:, 0]
        if not self._sampling.top_k and self._sampling.top_p < 1:
            found = nucleus(scores / self._sampling.temperature, self._sampling.top_p)
        else:
            found = _likeliest(scores, self._sampling.top_k)
        return found if allowed is None else found[allowed[found]]

    def _with_logprobs(self, token_id: int, logits: torch.Tensor) -> Choice:
        if self._sampling.logprobs is None:
            return Choice(token_id)
        return choice_of(logits.log_softmax(-1), token_id, self._sampling.logprobs)


def choice_of(logprobs: torch.Tensor, token_id: int, top: int) -> Choice:
    """Returns a token with its log-probability and those of the `top` most likely tokens; `logprobs` is (vocabulary,)."""
    likeliest = logprobs.topk(min(top, len(logprobs)))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return Choice(token_id, float(logprobs[token_id]), tuple(pairs))


def most_likely(scores: torch.Tensor) -> int:
    """Returns the id of the largest score, the first one of equals; NumPy finds it in a tenth of the time of torch 2.13."""
    return int(scores.numpy().argmax())


def _likeliest(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """Returns the ids of the `top_k` most likely tokens and of those equal to the last one, as transformers' top-k does.

    It comes before the temperature, which does not change the order, so that the following steps sort a few candidates
    instead of the whole vocabulary.
    """
    if not 0 < top_k < len(scores):
        return torch.arange(len(scores))
    values, ids = scores.topk(top_k + 1)
    least, next_one = values[-2:]
    found: torch.Tensor = ids[:top_k].sort().values if least > next_one else (scores >= least).nonzero()[:, 0]
    return found


def nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Returns the ids, in ascending order, of the most likely tokens that together reach the probability `top_p`.

    It is transformers' top-p, which sorts the whole vocabulary, here for as many tokens as are needed.
    """
    probabilities = scores.softmax(-1)
    count = min(FIRST_SORTED, len(scores))
    while True:
        likeliest = probabilities.topk(count)
        before = likeliest.values.cumsum(-1) - likeliest.values
        kept = int((before < top_p).sum())
        if kept < count or count == len(scores):
            return likeliest.indices[: max(kept, 1)].sort().values
        count = min(count * 8, len(scores))


def uniform_noise(ids: torch.Tensor, key: int) -> torch.Tensor:
    """Returns a float64 between 0 and 1 for each token id, a function of the id and the key.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) with the id as its counter: noise for a few candidates does not need
    noise for the whole vocabulary. int64 wraps around, and its right shifts copy the sign, which the masks remove.
    """
    mixed = (ids + 1) * (_GOLDEN_RATIO_64 - 2**64) + key
    mixed = (mixed ^ ((mixed >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    mixed = (mixed ^ ((mixed >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    mixed = mixed ^ ((mixed >> 31) & (2**33 - 1))
    return (((mixed >> 11) & (2**53 - 1)).double() + 0.5) / 2**53


def seed_of_output(seed: int, index: int) -> int:
    """Returns the seed of output number `index`: the request's own for the first one.

    Steps of 2**64 over the golden ratio keep the seeds of consecutive request seeds apart (Knuth, TAOCP 6.4).
    """
    return (seed + index * _GOLDEN_RATIO_64) % 2**63 if index else seed
