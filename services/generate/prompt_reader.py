"""Reading of one prompt in chunks between the steps of running sequences.

A chunk begins at each multiple of its size, counted from the beginning of the prompt: a prompt is computed in the same pieces
alone and in any crowd, and with other prompts that begin like it. The rest after the last whole chunk may be read in one forward
pass with those of other prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.generate.kv_cache import BatchRunner
from services.generate.prefix_cache import Block, PrefixCache, chain_key
from services.generate.prompt_cache import PromptCache
from services.generate.prompt_scores import scores_of_chunk
from services.generate.request import GenerationRequest
from services.generate.sampler import Choice
from services.generate.sequence import SequenceState

CHUNK_TOKENS = {"cpu": 64, "cuda": 512}
"""Tokens of a chunk, by type of device.

Measured on a CPU with 135 million parameters: chunks of 128 read a prompt in 0.77 of the time, and others wait 1.6 times as long for
each. The size for GPUs is not measured.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Parts that the prompts of one model share: its runner, the tokens of a chunk, and cached prefixes, which `owner` keeps apart."""

    batch: BatchRunner
    chunk: int
    prefixes: PrefixCache
    owner: str


class PromptReader:
    """One prompt while it is read, and the sequences that continue it."""

    def __init__(
        self, reading: Reading, request: GenerationRequest, siblings: Sequence[SequenceState]
    ) -> None:
        self.request = request
        self.siblings = siblings
        self.cache = PromptCache(len(request.prompt_token_ids))
        self.logits = torch.empty(0)
        self._reading = reading
        self._scores = [Choice(request.prompt_token_ids[0])]  # nothing is before the first token
        stack = "" if request.adapters is None else request.adapters.identity
        self._root = f"{reading.owner} {stack}".encode()
        self._keys: list[bytes] = []
        self._is_found = False

    @property
    def next_tokens(self) -> int:
        """Number of tokens of the next chunk, 0 once the prompt is read."""
        return min(self._reading.chunk, len(self.request.prompt_token_ids) - self.cache.length)

    @property
    def may_share_a_pass(self) -> bool:
        """True if the next chunk is neither kept for prompts that begin like this one nor scored."""
        return self.next_tokens < self._reading.chunk and self.request.prompt_logprobs is None

    def begin_chunk(self) -> Sequence[int]:
        """Takes cached chunks; returns the tokens of the next one, whose keys and values are to be appended to `cache`."""
        ids = self.request.prompt_token_ids
        if self.request.prompt_logprobs is None:
            self._take_cached()
        return ids[self.cache.length : self.cache.length + self.next_tokens]

    def end_chunk(self, token_ids: Sequence[int], logits: torch.Tensor) -> None:
        """Counts the tokens of the chunk that `cache` has now.

        After the last one, `logits` (vocabulary,), float32 on the CPU, are those after the prompt.

        Args:
            logits: (tokens, vocabulary), float32 on the CPU, those after all tokens of a chunk that is scored, else those after the last.

        Raises:
            NonFiniteLogits: the model computed NaN or infinity within a prompt whose tokens are scored.
        """
        ids, top = self.request.prompt_token_ids, self.request.prompt_logprobs
        self.logits = logits[-1]
        self._keep(token_ids)
        if top is not None:
            end = self.cache.length
            start = end - len(token_ids)
            self._scores += scores_of_chunk(logits, ids[start + 1 : end + 1], start=start, top=top)
        if not self.next_tokens:
            self._finish()

    def _take_cached(self) -> None:
        """Takes the chunks that an earlier prompt had, except the last one of this prompt, whose logits are needed."""
        reading, ids = self._reading, self.request.prompt_token_ids
        while self.cache.length + reading.chunk < len(ids):
            key = self._key(ids[self.cache.length : self.cache.length + reading.chunk])
            block = reading.prefixes.get(key)
            if block is None:
                return
            reading.prefixes.hits += not self._is_found
            self._is_found = True
            self._keys.append(key)
            self.cache.append(block.keys, block.values)
            reading.prefixes.reused_tokens += reading.chunk

    def _keep(self, token_ids: Sequence[int]) -> None:
        reading = self._reading
        reading.prefixes.read_tokens += len(token_ids)
        if len(token_ids) < reading.chunk:
            return
        self._keys.append(self._key(token_ids))
        if reading.prefixes.limit_bytes and reading.prefixes.get(self._keys[-1]) is None:
            keys, values = self.cache.last(len(token_ids))
            reading.prefixes.put(self._keys[-1], Block(reading.owner, keys, values))

    def _key(self, token_ids: Sequence[int]) -> bytes:
        return chain_key(self._keys[-1] if self._keys else self._root, token_ids)

    def _finish(self) -> None:
        self._reading.prefixes.touch(self._keys)
        if self.request.prompt_logprobs is not None:
            for sequence in self.siblings:
                sequence.take_prompt_scores(self._scores)
