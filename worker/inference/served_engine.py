"""An engine's server behind the interface of the reference engine: requests go to it, tokens come back as events.

Stop strings, text, ends and grammars are those of the reference engine's sequences; the server chooses the tokens.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import ClassVar

from services.engines.engine_server import EngineServer
from services.engines.output import OutputRequest, ServedAdapter, ServedToken
from services.errors import GraftwerkError, InvalidSettings, NotReady, UnsupportedSchema
from services.generate import Event, GenerationRequest, MemoryShortage, ServedModel
from services.generate.guide import GuideMaker
from services.generate.request_checks import checked
from services.generate.sampler import Choice
from services.generate.sequence import SequenceState
from services.sampling import SEED_BITS
from worker.lifecycle import catching


@dataclass(slots=True, eq=False)
class Running:
    """A sequence and the call that generates it."""

    sequence: SequenceState
    call: "Future[None] | None" = None

    def stop(self) -> None:
        """Closes the connection of the call."""
        if self.call is not None:
            self.call.cancel()


@dataclass(frozen=True, slots=True)
class Received:
    """New tokens of a sequence and tokens of its prompt, or the end of its call with its error."""

    running: Running
    tokens: Sequence[ServedToken] = ()
    prompt: Sequence[ServedToken] = ()
    is_end: bool = False
    error: Exception | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class ServedEngine(ABC):
    """The sequences of one model, with or without an adapter, on a server. Only `cancel` may be called from another thread.

    `notify` is called in another thread when something has arrived; `on_close` releases the server.
    """

    name: ClassVar[str]
    """The engine in messages."""

    starting: ClassVar[str]
    """Progress of a job that waits until the server is ready."""

    install_hint: ClassVar[str]
    """Advice where the server does not enforce grammars as this process does."""

    computes_here: ClassVar[bool] = False
    most_tokens: ClassVar[int | None] = None

    loaded: ServedModel
    server: EngineServer
    adapter: ServedAdapter | None = None
    slots: int
    notify: Callable[[], None]
    on_close: Callable[[], None]
    _running: list[Running] = field(default_factory=list)
    _received: SimpleQueue[Received] = field(default_factory=SimpleQueue)
    _ended: list[Event] = field(default_factory=list)
    _canceled: set[str] = field(default_factory=set)
    _completed: set[tuple[str, int]] = field(default_factory=set)
    _guides: GuideMaker = field(init=False)

    def __post_init__(self) -> None:
        self._guides = GuideMaker(self.loaded.tokenizer, self.loaded.rows)

    @property
    def is_lost(self) -> bool:
        """True once the server has ended or could not be started."""
        return self.server.is_lost

    @property
    def stage(self) -> str | None:
        """Progress of a job that waits until the server is ready, None once it is."""
        return None if self.server.is_ready else self.starting

    @property
    def free_slots(self) -> int:
        """Number of further sequences that the server takes now."""
        return max(0, self.slots - len(self._running)) if self.server.is_ready else 0

    def memory_shortage(self, request_ids: Collection[str]) -> MemoryShortage | None:
        """Returns None: the server has its own line, and does not say who is in it."""
        return None

    def submit(self, request: GenerationRequest) -> str:
        """Sends a request to the server and returns its id.

        Raises:
            UnsupportedOption: the engine does not have an option of it.
            GraftwerkError: as `Engine.submit`.
        """
        self.check_options(request)
        loaded = self.loaded
        request = checked(
            request, bos_id=loaded.tokenizer.bos_id, rows=loaded.rows, context_length=loaded.context_length
        )
        seed = request.sampling.seed
        seed = secrets.randbits(SEED_BITS) if seed is None else seed
        guides = [self._guides.make(request.grammar) for _ in range(request.sampling.n)]
        for index, guide in enumerate(guides):
            self._begin(SequenceState(request, loaded.tokenizer, index=index, seed=seed, guide=guide))
        return request.id

    def cancel(self, request_id: str) -> None:
        """Ends all outputs of a request with the next step, which returns them as they are by then."""
        self._canceled.add(request_id)
        self.notify()

    def finish(self, request_id: str, index: int) -> None:
        """Ends one output with the next step, as if the model had ended it."""
        self._completed.add((request_id, index))
        self.notify()

    def step(self) -> list[Event]:
        """Returns the events of what has arrived.

        Raises:
            NotReady: the server has ended, or has not started in time; all requests are lost.
        """
        self.server.check()
        events, self._ended = self._ended, []
        events += self._end_canceled() + self._end_completed()
        try:
            while True:
                events += self._take(self._received.get_nowait())
        except Empty:
            return events

    def drop_all(self) -> None:
        """Ends all requests with the next step: their jobs are gone."""
        self._canceled |= {running.sequence.request.id for running in self._running}

    def close(self) -> None:
        """Ends all requests and releases the server."""
        for running in self._running:
            running.stop()
        self._running.clear()
        self.on_close()

    # ---- of each engine -------------------------------------------------------------------------------

    @abstractmethod
    def check_options(self, request: GenerationRequest) -> None:
        """Raises UnsupportedOption if the engine does not have an option of a request; the message names it."""

    @abstractmethod
    def end_of_stream(self, sequence: SequenceState) -> Event:
        """Returns the end of a sequence whose stream has ended without an error, and before the sequence."""

    # ---- sequences ------------------------------------------------------------------------------------

    def _begin(self, sequence: SequenceState) -> None:
        request = sequence.request
        if request.sampling.max_new_tokens == 0 and request.prompt_logprobs is None:
            self._ended.append(sequence.finish("length"))
            self.notify()
            return
        output = OutputRequest(
            prompt_token_ids=request.prompt_token_ids,
            sampling=request.sampling,
            seed=sequence.seed,
            adapter=self.adapter,
            end_ids=sequence.end_ids,
            prompt_logprobs=request.prompt_logprobs,
            grammar=request.grammar,
        )
        running = Running(sequence)
        self._running.append(running)
        running.call = self.server.stream(output, partial(self._arrived, running))
        running.call.add_done_callback(partial(self._done, running))

    def _end_canceled(self) -> list[Event]:
        canceled = set()
        while self._canceled:  # popped one by one, as another thread may add to it meanwhile
            canceled.add(self._canceled.pop())
        ended = [running for running in self._running if running.sequence.request.id in canceled]
        return [self._finish(running, running.sequence.finish("canceled")) for running in ended]

    def _end_completed(self) -> list[Event]:
        ended = [
            running
            for running in self._running
            if (running.sequence.request.id, running.sequence.index) in self._completed
        ]
        self._completed.clear()
        return [self._finish(running, running.sequence.finish("stop")) for running in ended]

    def _take(self, received: Received) -> list[Event]:
        running, sequence = received.running, received.running.sequence
        if sequence.is_finished:
            return []
        if received.is_end:
            return [self._finish(running, self._end_of(sequence, received.error))]
        request = sequence.request
        if received.prompt:
            top = request.prompt_logprobs or 0
            sequence.take_prompt_scores([_choice(token, top) for token in received.prompt])
        if request.sampling.max_new_tokens == 0:
            return [self._finish(running, sequence.finish("length"))]
        events: list[Event] = []
        for token in received.tokens:
            if not sequence.is_finished:
                events += self._accept(sequence, _choice(token, request.sampling.logprobs))
        if sequence.is_finished:
            self._running.remove(running)
            if not sequence.is_full:  # else the call is about to end, and its connection is used again
                running.stop()
        return events

    def _accept(self, sequence: SequenceState, choice: Choice) -> list[Event]:
        try:
            return sequence.accept(choice)
        except UnsupportedSchema as error:
            message = f"{self.name} wrote a token that the requested form does not allow: {error.message}"
            return [sequence.fail(InvalidSettings(message, self.install_hint))]

    def _end_of(self, sequence: SequenceState, error: Exception | None) -> Event:
        """Returns the end of a sequence whose call has ended before it. Raises NotReady if the server is lost."""
        self.server.check()
        if error is None:
            return self.end_of_stream(sequence)
        if isinstance(error, GraftwerkError):
            return sequence.fail(error)
        return sequence.fail(NotReady(f"{self.name} failed: {type(error).__name__}: {error}.", "Try again."))

    def _finish(self, running: Running, event: Event) -> Event:
        running.stop()
        self._running.remove(running)
        return event

    # ---- in the server's thread -----------------------------------------------------------------------

    def _arrived(
        self, running: Running, tokens: Sequence[ServedToken], *, prompt: Sequence[ServedToken] = ()
    ) -> None:
        self._received.put(Received(running, tokens, prompt))
        self.notify()

    def _done(self, running: Running, call: "Future[None]") -> None:
        with catching() as caught:
            if not call.cancelled():
                call.result()
        self._received.put(Received(running, is_end=True, error=caught.error))
        self.notify()


def _choice(token: ServedToken, top: int | None) -> Choice:
    if top is None:
        return Choice(token.token_id)
    return Choice(token.token_id, token.logprob, token.top[:top])
