"""Continuous batching: many requests on one model, joining and leaving at any token.

Prompts are read in chunks between the steps of running sequences, which wait for one chunk at most.
The engine runs in the thread that calls `step`; only `cancel` may be called from another thread.
"""

import secrets
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from uuid import uuid4

from services.errors import InvalidRequest
from services.generate.adapter_stack import LoadedAdapter
from services.generate.beams import BeamSearch
from services.generate.guide import GuideMaker
from services.generate.kv_cache import BatchRunner
from services.generate.kv_memory import KVMemory
from services.generate.loading import LoadedModel
from services.generate.prompt_reader import CHUNK_TOKENS, Reading
from services.generate.prompt_turns import PromptTurns, ReadPrompt
from services.generate.request import Event, GenerationRequest
from services.generate.request_checks import checked
from services.generate.sequence import SequenceState
from services.generate.sequence_memory import MemoryShortage, SequenceMemory
from services.sampling import SEED_BITS
from services.tokenizers import Tokenizer


class Engine:
    """A model, the sequences that run on it, and those that wait for a free slot. `slots` is the maximum batch size."""

    computes_here = True
    is_lost = False
    stage: str | None = None

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        slots: int = 8,
        chunk: int | None = None,
        memory: KVMemory | None = None,
    ) -> None:
        """Starts without sequences.

        Args:
            chunk: Number of tokens of a prompt that are read at once; None takes the device's.
            memory: Memory of keys and values, which engines share; None is one without a limit and without beginnings of prompts.
        """
        memory = memory or KVMemory(sys.maxsize, prefix_bytes=0)
        self._loaded = loaded
        self._slots = slots
        self._batch = BatchRunner(loaded.model)
        self._shared = Reading(
            batch=self._batch,
            chunk=chunk or CHUNK_TOKENS[loaded.device.type],
            prefixes=memory.prefixes,
            owner=uuid4().hex,
        )
        self._memory = SequenceMemory(memory, self._batch)
        self.guides = GuideMaker(loaded.tokenizer, loaded.rows)
        self._running: list[SequenceState] = []
        self._reading = PromptTurns(self._shared)
        self._waiting: deque[SequenceState] = deque()
        self._searches: list[BeamSearch] = []
        self._canceled: set[str] = set()
        self._completed: set[tuple[str, int]] = set()

    @property
    def active(self) -> int:
        """Number of running sequences."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        """Number of further sequences that can start with the next step."""
        return max(0, self._slots - self._taken - len(self._waiting))

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest sequence whose keys and values fit into the memory."""
        return self._memory.most_tokens

    @property
    def has_work(self) -> bool:
        """True while sequences run or wait, prompts are read, or beams are searched."""
        return bool(self._running or self._reading or self._searches or self._waiting)

    def memory_shortage(self, request_ids: Collection[str]) -> MemoryShortage | None:
        """Returns the memory for which all sequences of these requests wait; None if one of them is being computed."""
        return self._memory.shortage([one for one in self._sequences if one.request.id in request_ids])

    def submit(self, request: GenerationRequest) -> str:
        """Queues a request, which starts with one of the next steps, and returns its id.

        Raises:
            PromptTooLong: prompt and new tokens together exceed the model's context.
            VocabularyMismatch: the prompt has tokens that the model does not have.
            InvalidRequest: the prompt is empty and the model has no beginning-of-text token, `logit_bias` or `stop_token_ids` names tokens that the
                model does not have, a beam search has a grammar, or the id is in use.
            UnsupportedSchema: the grammar cannot be enforced.
            InsufficientMemory: keys and values of one of its sequences never fit.
        """
        request = self._checked(request)
        if request.id in {sequence.request.id for sequence in self._sequences}:
            raise InvalidRequest(f"The request id {request.id} is in use.")
        self._canceled.discard(request.id)
        seed = request.sampling.seed
        seed = secrets.randbits(SEED_BITS) if seed is None else seed
        tokenizer = self._tokenizer(request)
        guides = [self._guide_maker(request).make(request.grammar) for _ in range(request.sampling.n)]
        self._memory.enter(request)
        self._waiting.extend(
            SequenceState(request, tokenizer, index=index, seed=seed, guide=guide)
            for index, guide in enumerate(guides)
        )
        return request.id

    def cancel(self, request_id: str) -> None:
        """Ends all outputs of a request with the next step, which returns them as they are by then."""
        self._canceled.add(request_id)

    def finish(self, request_id: str, index: int) -> None:
        """Ends one running output with the next step, as if the model had ended it."""
        self._completed.add((request_id, index))

    def drop_all(self) -> None:
        """Ends all sequences without events: their jobs are gone."""
        while len(self._batch):
            self._batch.leave(len(self._batch) - 1)
        for search in self._searches:
            search.end()
        self._reading.clear()
        for sequences in (self._running, self._searches, self._waiting, self._canceled, self._completed):
            sequences.clear()
        self._memory.sweep(())

    def close(self) -> None:
        """Frees the memory of the sequences and beginnings of prompts of this model."""
        self.drop_all()
        self._shared.prefixes.forget(self._shared.owner)

    def step(self) -> list[Event]:
        """Reads a part of the prompts while slots are free, then generates one token of each sequence; returns the events."""
        events = self._end_canceled() + self._end_completed()
        events += self._begin_waiting()
        events += self._search()
        events += self._read_prompts()
        events += self._decode()
        self._memory.sweep(set(self._sequences))
        return events

    def _tokenizer(self, request: GenerationRequest) -> Tokenizer:
        return self._loaded.tokenizer if request.adapters is None else request.adapters.tokenizer

    def _rows(self, request: GenerationRequest) -> int:
        return self._loaded.rows if request.adapters is None else request.adapters.rows

    def _guide_maker(self, request: GenerationRequest) -> GuideMaker:
        return self.guides if request.adapters is None else request.adapters.guides

    @property
    def _taken(self) -> int:
        """Number of slots of sequences that run, are searched for, or whose prompt is read."""
        return len(self._sequences) - len(self._waiting)

    @property
    def _sequences(self) -> list[SequenceState]:
        searched = [sequence for search in self._searches for sequence in search.sequences]
        return [*self._running, *self._reading.sequences, *searched, *self._waiting]

    def _checked(self, request: GenerationRequest) -> GenerationRequest:
        return checked(
            request,
            bos_id=self._tokenizer(request).bos_id,
            rows=self._rows(request),
            context_length=self._loaded.context_length,
        )

    def _end_canceled(self) -> list[Event]:
        canceled = set()
        while self._canceled:  # popped one by one, as another thread may add to it meanwhile
            canceled.add(self._canceled.pop())
        if not canceled:
            return []
        for search in self._searches:  # ends with its next step
            search.is_canceled |= search.sequences[0].request.id in canceled
        ended = [sequence for sequence in self._sequences if sequence.request.id in canceled]
        searched = {sequence for search in self._searches for sequence in search.sequences}
        events: list[Event] = [sequence.finish("canceled") for sequence in ended if sequence not in searched]
        self._reading.drop(canceled)
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.is_finished)
        self._drop_finished()
        return events

    def _end_completed(self) -> list[Event]:
        ended = [
            sequence for sequence in self._running if (sequence.request.id, sequence.index) in self._completed
        ]
        self._completed.clear()
        events: list[Event] = [sequence.finish("stop") for sequence in ended]
        if ended:
            self._drop_finished()
        return events

    def _begin_waiting(self) -> list[Event]:
        events: list[Event] = []
        while siblings := self._admitted():
            events += self._begin(siblings)
        return events

    def _admitted(self) -> list[SequenceState]:
        """Returns the next sequences of a request that can start together: they share the computation of the prompt."""
        if not self._waiting or self._taken >= self._slots:
            return []
        request = self._waiting[0].request
        limit = self._slots if request.sampling.num_beams > 1 else self._slots - self._taken
        siblings = [sequence for sequence in islice(self._waiting, limit) if sequence.request is request]
        while siblings and not self._memory.admit(siblings):
            siblings = siblings[: len(siblings) // 2]
        for _ in siblings:
            self._waiting.popleft()
        return siblings

    def _begin(self, siblings: list[SequenceState]) -> list[Event]:
        """Begins to read the prompt of these sequences, unless nothing of it is needed."""
        request = siblings[0].request
        if request.sampling.max_new_tokens == 0 and request.prompt_logprobs is None:
            return [sequence.finish("length") for sequence in siblings]
        self._reading.add(request, siblings)
        return []

    def _read_prompts(self) -> list[Event]:
        events: list[Event] = []
        for read in self._reading.read(is_idle=not self._running and not self._searches):
            events += self._begin_to_run(read)
        return events

    def _begin_to_run(self, read: ReadPrompt) -> list[Event]:
        """Generates the first token of each sequence of a prompt that is read; those that go on, and searches, run from the next step on."""
        reader = read.reader
        if read.error is not None:
            return [sequence.fail(read.error) for sequence in reader.siblings]
        if reader.request.sampling.max_new_tokens == 0:
            return [sequence.finish("length") for sequence in reader.siblings]
        if reader.request.sampling.num_beams > 1:
            loaded = replace(self._loaded, tokenizer=self._tokenizer(reader.request))
            self._searches.append(BeamSearch(loaded, reader.siblings, reader.cache))
            return []
        events: list[Event] = []
        for sequence in reader.siblings:
            events += sequence.advance(reader.logits)
        joining = [sequence for sequence in reader.siblings if not sequence.is_finished]
        for sequence in joining:
            self._batch.join(reader.cache, reader.request.adapters, last=sequence is joining[-1])
        self._running += joining
        return events

    def _search(self) -> list[Event]:
        """Searches one token further for each request with beams."""
        events: list[Event] = []
        for search in self._searches:
            with self._batch.applied(search.sequences[0].request.adapters):
                events += search.step()
        self._searches = [search for search in self._searches if not search.has_ended]
        return events

    def free(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Releases adapters that are no longer used: their tensors can be freed."""
        self._batch.free(adapters)

    def _decode(self) -> list[Event]:
        if not self._running:
            return []
        stalled = self._memory.stalled(self._running)
        logits = self._batch.decode([sequence.token_ids[-1] for sequence in self._running], stalled)
        events: list[Event] = []
        for number, (sequence, row) in enumerate(zip(self._running, logits, strict=True)):
            if number not in stalled:
                events += sequence.advance(row[: self._rows(sequence.request)])
        self._drop_finished()
        return events

    def _drop_finished(self) -> None:
        """Frees the rows of finished sequences, starting with the last: the last row takes the place of a freed one."""
        for row in _finished_rows(self._running):
            self._batch.leave(row)
            self._running[row] = self._running[-1]
            self._running.pop()


def _finished_rows(running: list[SequenceState]) -> Iterable[int]:
    return [row for row in reversed(range(len(running))) if running[row].is_finished]
