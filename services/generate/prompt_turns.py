"""Turns of the prompts that are being read: one chunk of each, and between two steps of running sequences one chunk in all."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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
        ended: list[ReadPrompt] = []
        left = self._shared.chunk * (IDLE_CHUNKS if is_idle else 1)
        for number, reader in enumerate(list(self._readers)):
            cost = max(reader.next_tokens, self._shared.chunk // LEAST_SHARE)
            if number and cost > left:
                break
            left -= cost
            self._readers.popleft()
            ended += self._read_chunk(reader)
        return ended

    def _read_chunk(self, reader: PromptReader) -> list[ReadPrompt]:
        try:
            reader.read_chunk()
        except NonFiniteLogits as error:
            return [ReadPrompt(reader, error)]
        if not reader.next_tokens:
            return [ReadPrompt(reader)]
        self._readers.append(reader)
        return []
