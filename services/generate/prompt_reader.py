"""Reading of one prompt in chunks between the steps of running sequences.

A chunk begins at each multiple of its size, counted from the beginning of the prompt: a prompt is computed in the same pieces
alone and in any crowd, and with other prompts that begin like it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.generate.kv_cache import BatchRunner, PromptCache
from services.generate.prefix_cache import Block, PrefixCache, chain_key
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

    def read_chunk(self) -> None:
        """Takes cached chunks and reads the next one.

        After the last one, `logits` (vocabulary,), float32 on the CPU, are those after the prompt.

        Raises:
            NonFiniteLogits: the model computed NaN or infinity within a prompt whose tokens are scored.
        """
        ids, top = self.request.prompt_token_ids, self.request.prompt_logprobs
        if top is None:
            self._take_cached()
        start = self.cache.length
        end = start + self.next_tokens
        kept = 1 if top is None else end - start
        logits = self._reading.batch.read_chunk(
            ids[start:end], self.cache, kept=kept, stack=self.request.adapters
        )
        self.logits = logits[-1]
        self._keep(ids[start:end])
        if top is not None:
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
