"""Turns of the prompts that are being read: one chunk of each, and between two steps of running sequences one chunk in all."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from services.errors import NonFiniteLogits
from services.generate.prompt_reader import PromptReader, Reading
from services.generate.request import GenerationRequest
from services.generate.sequence import SequenceState

LEAST_SHARE = 4
"""A prompt shorter than this fraction of a chunk takes as long as if it had as many tokens: weights are read from memory."""

IDLE_CHUNKS = 4
"""Chunks between two steps while no sequence runs, so that prompts that arrive together also run together."""


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt that is read to its end, or as far as the `error` of its last chunk."""

    reader: PromptReader
    error: NonFiniteLogits | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a prompt."""

    reader: PromptReader
    token_ids: Sequence[int]

    def may_join(self, other: "Chunk") -> bool:
        """Returns True if one forward pass may read both, which then have the same adapters."""
        mine, theirs = self.reader, other.reader
        return (
            mine.may_share_a_pass
            and theirs.may_share_a_pass
            and _identity(mine.request) == _identity(theirs.request)
        )


class PromptTurns:
    """Prompts that are being read, in the order of their turns."""

    def __init__(self, shared: Reading) -> None:
        self._shared = shared
        self._readers: deque[PromptReader] = deque()

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def sequences(self) -> list[SequenceState]:
        """Sequences that continue these prompts."""
        return [sequence for reader in self._readers for sequence in reader.siblings]

    def add(self, request: GenerationRequest, siblings: Sequence[SequenceState]) -> None:
        """Begins to read the prompt of these sequences with the next turn."""
        self._readers.append(PromptReader(self._shared, request, siblings))

    def drop(self, request_ids: Collection[str]) -> None:
        """Ends the reading of these requests' prompts."""
        self._readers = deque(reader for reader in self._readers if reader.request.id not in request_ids)

    def clear(self) -> None:
        """Ends the reading of all prompts."""
        self._readers.clear()

    def read(self, *, is_idle: bool) -> list[ReadPrompt]:
        """Reads one chunk, or several short prompts that take as long together; returns the prompts that are read to their end.

        If `is_idle`, since no sequence runs, more are read, one chunk of each prompt at most.
        """
        turns: list[PromptReader] = []
        left = self._shared.chunk * (IDLE_CHUNKS if is_idle else 1)
        for reader in self._readers:
            cost = max(reader.next_tokens, self._shared.chunk // LEAST_SHARE)
            if turns and cost > left:
                break
            left -= cost
            turns.append(reader)
        for _ in turns:
            self._readers.popleft()
        ended = [read for pack in self._packs(turns) for read in self._read(pack)]
        over = {read.reader for read in ended}
        self._readers.extend(reader for reader in turns if reader not in over)
        return ended

    def _packs(self, turns: Sequence[PromptReader]) -> Iterator[list[Chunk]]:
        """Returns the next chunks of prompts, together those that one forward pass may read."""
        pack: list[Chunk] = []
        for reader in turns:
            chunk = Chunk(reader, reader.begin_chunk())
            tokens = sum(len(other.token_ids) for other in (*pack, chunk))
            if pack and (tokens > self._shared.batch.packed_tokens or not chunk.may_join(pack[0])):
                yield pack
                pack = []
            pack.append(chunk)
            if not reader.may_share_a_pass:  # read at once: the next prompt may take it
                yield pack
                pack = []
        if pack:
            yield pack

    def _read(self, pack: Sequence[Chunk]) -> list[ReadPrompt]:
        """Reads chunks in one forward pass; returns the prompts that are read to their end."""
        ended = []
        for chunk, logits in zip(pack, self._logits(pack), strict=True):
            try:
                chunk.reader.end_chunk(chunk.token_ids, logits)
            except NonFiniteLogits as error:
                ended.append(ReadPrompt(chunk.reader, error))
                continue
            if not chunk.reader.next_tokens:
                ended.append(ReadPrompt(chunk.reader))
        return ended

    def _logits(self, pack: Sequence[Chunk]) -> Iterable[torch.Tensor]:
        batch, first = self._shared.batch, pack[0].reader
        stack = first.request.adapters
        if len(pack) == 1:
            tokens = pack[0].token_ids
            kept = 1 if first.request.prompt_logprobs is None else len(tokens)
            return [batch.read_chunk(tokens, first.cache, kept=kept, stack=stack)]
        chunks, caches = [chunk.token_ids for chunk in pack], [chunk.reader.cache for chunk in pack]
        return batch.read_together(chunks, caches, stack)[:, None]


def _identity(request: GenerationRequest) -> str | None:
    return None if request.adapters is None else request.adapters.identity
