"""Sequences of one engine in the memory of its worker: what each needs in the columns of the KV cache."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.errors import InsufficientMemory
from services.generate.kv_cache import BatchRunner
from services.generate.kv_memory import Holding, KVMemory
from services.generate.request import GenerationRequest
from services.generate.sequence import SequenceState


@dataclass(frozen=True, slots=True)
class MemoryShortage:
    """Bytes of keys and values that a sequence needs at most, that all sequences hold now, and the limit."""

    needed_bytes: int
    held_bytes: int
    limit_bytes: int


class SequenceMemory:
    """The sequences of one engine, from their place in line to their end."""

    def __init__(self, memory: KVMemory, batch: BatchRunner) -> None:
        self._memory, self._batch = memory, batch
        self._table = None if batch.is_grouped else self
        self._rows: dict[SequenceState, Holding] = {}  # in the order of their admission
        self._numbers: dict[str, int] = {}  # by the id of a request
        self._stalled: set[SequenceState] = set()

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest sequence for which the whole memory is enough."""
        return self._batch.limit_tokens(self._memory.limit_bytes)

    def enter(self, request: GenerationRequest) -> None:
        """Gives a new request its place in line.

        Raises:
            InsufficientMemory: one of its sequences never fits.
        """
        self._batch.limit_tokens(self._memory.limit_bytes)
        needed = self._holding(request).claim
        if needed > self._memory.limit_bytes:
            raise InsufficientMemory(
                f"A prompt of {len(request.prompt_token_ids)} tokens and {request.sampling.max_new_tokens} new ones need {needed} "
                f"bytes for keys and values; all sequences of this worker may use {self._memory.limit_bytes}.",
                "Lower max_new_tokens, shorten the prompt, or give the worker more (GRAFTWERK_KV_CACHE_BYTES).",
            )
        self._numbers[request.id] = self._memory.next_number()

    def admit(self, siblings: Sequence[SequenceState]) -> bool:
        """Takes sequences of one request, whose prompt is read next; returns False while they must wait."""
        request = siblings[0].request
        is_search = request.sampling.num_beams > 1  # all beams have one
        found = [self._holding(request) for _ in (siblings[:1] if is_search else siblings)]
        if not self._memory.admit(self._numbers[request.id], found):
            return False
        self._rows |= zip(siblings, found, strict=False)
        return True

    def shortage(self, sequences: Sequence[SequenceState]) -> MemoryShortage | None:
        """Returns the memory for which these sequences wait, in line or between two tokens; None unless all do."""
        if (
            not (self._stalled or self._memory.waiting)
            or not sequences
            or not all(map(self._waits, sequences))
        ):
            return None
        claim = self._holding(sequences[0].request).claim
        return MemoryShortage(claim, self._memory.held_bytes, self._memory.limit_bytes)

    def _waits(self, sequence: SequenceState) -> bool:
        if sequence in self._rows:
            return sequence in self._stalled
        own = self._numbers[sequence.request.id]
        return any(number <= own and self._memory.is_waiting(number) for number in self._numbers.values())

    def stalled(self, running: Sequence[SequenceState]) -> set[int]:
        """Lets the rows grow for the next step but one; returns the numbers of those that must wait for it."""
        numbers = {sequence: number for number, sequence in enumerate(running)}
        self._stalled = {
            sequence
            for sequence, row in self._rows.items()
            if sequence in numbers
            and not self._may_go_on(sequence, row, self._batch.lengths[numbers[sequence]])
        }
        return {numbers[sequence] for sequence in self._stalled}

    def _may_go_on(self, sequence: SequenceState, row: Holding, length: int) -> bool:
        # One column is left then, in which the waiting row computes its last token again.
        needed = min(row.claim, self._batch.row_bytes(length + 2))
        return needed <= row.held or self._memory.grow(row, needed)

    def sweep(self, live: Collection[SequenceState]) -> None:
        """Frees the memory of all other sequences, and their places in line."""
        self._stalled.intersection_update(live)
        for sequence in [sequence for sequence in self._rows if sequence not in live]:
            self._memory.release(self._rows.pop(sequence))
        for request_id in self._numbers.keys() - {sequence.request.id for sequence in live}:
            self._memory.leave_line(self._numbers.pop(request_id))

    def _holding(self, request: GenerationRequest) -> Holding:
        """Returns that of one sequence, or of all beams of a search. The cache of a prompt is smaller than the row that it becomes."""
        tokens, sampling = len(request.prompt_token_ids), request.sampling
        if sampling.num_beams > 1:
            whole = sampling.num_beams * (tokens + sampling.max_new_tokens) * self._batch.token_bytes
            return Holding(whole, whole)
        claim = self._batch.row_bytes(tokens + max(1, sampling.max_new_tokens))
        return Holding(claim, self._batch.row_bytes(tokens + 1), self._table)
