"""Reading of one prompt in chunks between the steps of running sequences.

A chunk begins at each multiple of its size, counted from the beginning of the prompt: a prompt is computed in the same pieces
alone and in any crowd, and with other prompts that begin like it.
"""

from collections.abc import Sequence

import torch

from services.generate.kv_cache import BatchRunner, PromptCache
from services.generate.prompt_scores import scores_of_chunk
from services.generate.request import GenerationRequest
from services.generate.sampler import Choice
from services.generate.sequence import SequenceState

CHUNK_TOKENS = {"cpu": 64, "cuda": 512}
"""Tokens of a chunk, by type of device.

Measured on a CPU with 135 million parameters: chunks of 128 read a prompt in 0.77 of the time, and others wait 1.6 times as long for
each. The size for GPUs is not measured.
"""


class PromptReader:
    """One prompt while it is read, and the sequences that continue it."""

    def __init__(
        self, batch: BatchRunner, request: GenerationRequest, siblings: Sequence[SequenceState], *, chunk: int
    ) -> None:
        """Begins a prompt; `chunk` is the number of tokens of a chunk."""
        self.request = request
        self.siblings = siblings
        self.cache = PromptCache(len(request.prompt_token_ids))
        self.logits = torch.empty(0)
        self._batch = batch
        self._chunk = chunk
        self._scores = [Choice(request.prompt_token_ids[0])]  # nothing is before the first token

    @property
    def next_tokens(self) -> int:
        """Number of tokens of the next chunk, 0 once the prompt is read."""
        return min(self._chunk, len(self.request.prompt_token_ids) - self.cache.length)

    def read_chunk(self) -> None:
        """Reads the next chunk. After the last one, `logits` (vocabulary,), float32 on the CPU, are those after the prompt.

        Raises:
            NonFiniteLogits: the model computed NaN or infinity within a prompt whose tokens are scored.
        """
        ids, top = self.request.prompt_token_ids, self.request.prompt_logprobs
        start = self.cache.length
        end = start + self.next_tokens
        kept = 1 if top is None else end - start
        logits = self._batch.read_chunk(ids[start:end], self.cache, kept=kept, stack=self.request.adapters)
        if top is not None:
            self._scores += scores_of_chunk(logits, ids[start + 1 : end + 1], start=start, top=top)
        self.logits = logits[-1]
        if top is not None and not self.next_tokens:
            for sequence in self.siblings:
                sequence.take_prompt_scores(self._scores)
