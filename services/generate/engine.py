"""Continuous batching: many requests on one model, joining and leaving at any token.

The engine runs where its `step` is called; only `cancel` may be called from another thread.
"""

import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from services.errors import InvalidRequest, PromptTooLong, VocabularyMismatch
from services.generate.beams import search_beams
from services.generate.kv_cache import BatchRunner
from services.generate.loading import LoadedModel
from services.generate.request import Event, GenerationRequest
from services.generate.sequence import SequenceState


class Engine:
    """A model, the answers that it is writing and those that wait for a free slot."""

    def __init__(self, loaded: LoadedModel, *, slots: int = 8) -> None:
        self._loaded = loaded
        self._slots = slots
        self._batch = BatchRunner(loaded.model)
        self._running: list[SequenceState] = []
        self._waiting: deque[SequenceState] = deque()
        self._canceled: set[str] = set()

    @property
    def active(self) -> int:
        """How many answers are being written."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        """How many more answers could begin with the next step."""
        return max(0, self._slots - len(self._running) - len(self._waiting))

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def submit(self, request: GenerationRequest) -> str:
        """Take a request in; it begins with one of the next steps. Gives its id.

        Raises:
            PromptTooLong: prompt and new tokens together do not fit the model's context.
            InvalidRequest, VocabularyMismatch: the prompt is empty, or has tokens that the model does not know.
        """
        request = self._checked(request)
        if request.id in {answer.request.id for answer in (*self._running, *self._waiting)}:
            raise InvalidRequest(f"A request with the id {request.id} is already being answered.")
        self._canceled.discard(request.id)
        seed = request.sampling.seed
        seed = secrets.randbits(63) if seed is None else seed
        tokenizer = self._loaded.tokenizer
        self._waiting.extend(
            SequenceState(request, tokenizer, index=index, seed=seed) for index in range(request.sampling.n)
        )
        return request.id

    def cancel(self, request_id: str) -> None:
        """End all answers to a request with the next step, which reports what there is of them."""
        self._canceled.add(request_id)

    def step(self) -> list[Event]:
        """Begin what waits while slots are free, then write one token of every answer."""
        events = self._end_canceled()
        events += self._begin_waiting()
        return events + self._decode()

    def _checked(self, request: GenerationRequest) -> GenerationRequest:
        loaded, sampling = self._loaded, request.sampling
        if not request.prompt_token_ids:
            if loaded.tokenizer.bos_id is None:
                raise InvalidRequest("The prompt is empty and this model has no token that begins a text.")
            request = replace(request, prompt_token_ids=[loaded.tokenizer.bos_id])
        largest = max(request.prompt_token_ids)
        if largest >= loaded.rows or min(request.prompt_token_ids) < 0:
            raise VocabularyMismatch(
                f"The prompt has the token {largest} and the model has {loaded.rows} rows of embeddings.",
                "The tokenizer is not the model's own: put the right one into its folder.",
            )
        if any(token_id >= loaded.rows for token_id in sampling.logit_bias):
            raise InvalidRequest(f"logit_bias names tokens beyond the model's {loaded.rows}.")
        _check_length(len(request.prompt_token_ids), sampling.max_new_tokens, loaded.context_length)
        return request

    def _end_canceled(self) -> list[Event]:
        canceled = set()
        while self._canceled:  # popped one by one, as another thread may add to it meanwhile
            canceled.add(self._canceled.pop())
        if not canceled:
            return []
        ended = [answer for answer in (*self._running, *self._waiting) if answer.request.id in canceled]
        events: list[Event] = [answer.finish("canceled") for answer in ended]
        self._waiting = deque(answer for answer in self._waiting if not answer.is_over)
        self._drop_ended()
        return events

    def _begin_waiting(self) -> list[Event]:
        events: list[Event] = []
        while self._waiting and len(self._running) < self._slots:
            first = self._waiting.popleft()
            if first.request.sampling.num_beams > 1:
                events += self._search(self._with_siblings(first, self._slots))
            else:
                events += self._begin(self._with_siblings(first, self._slots - len(self._running)))
        return events

    def _with_siblings(self, first: SequenceState, limit: int) -> list[SequenceState]:
        """The answers to the same request that can begin together: they share the reading of the prompt."""
        siblings = [first]
        while self._waiting and self._waiting[0].request is first.request and len(siblings) < limit:
            siblings.append(self._waiting.popleft())
        return siblings

    def _begin(self, siblings: list[SequenceState]) -> list[Event]:
        """Read the prompt and write the first token of each answer."""
        request = siblings[0].request
        if request.sampling.max_new_tokens == 0:
            return [answer.finish("length") for answer in siblings]
        logits, cache = self._batch.read_prompt(request.prompt_token_ids)
        events: list[Event] = []
        for answer in siblings:
            events += answer.advance(logits)
            if not answer.is_over:
                self._batch.join(cache)
                self._running.append(answer)
        return events

    def _search(self, siblings: list[SequenceState]) -> list[Event]:
        request_id = siblings[0].request.id
        return search_beams(self._loaded, siblings, lambda: request_id in self._canceled)

    def _decode(self) -> list[Event]:
        if not self._running:
            return []
        logits = self._batch.decode([answer.token_ids[-1] for answer in self._running])
        events: list[Event] = []
        for answer, row in zip(self._running, logits, strict=True):
            events += answer.advance(row)
        self._drop_ended()
        return events

    def _drop_ended(self) -> None:
        """Free the rows of ended answers, from the last one: the last row moves into a freed one's place."""
        for row in _ended_rows(self._running):
            self._batch.leave(row)
            self._running[row] = self._running[-1]
            self._running.pop()


def _ended_rows(running: list[SequenceState]) -> Iterable[int]:
    return [row for row in reversed(range(len(running))) if running[row].is_over]


def _check_length(prompt_tokens: int, max_new_tokens: int, context_length: int) -> None:
    if prompt_tokens + max_new_tokens <= context_length:
        return
    room = context_length - prompt_tokens
    raise PromptTooLong(
        f"The prompt has {prompt_tokens} tokens and {max_new_tokens} new ones are asked for; "
        f"the model's context is {context_length}.",
        f"Lower max_new_tokens to {room} at most." if room > 0 else "Shorten the prompt.",
    )
