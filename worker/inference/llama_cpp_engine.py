"""llama.cpp behind the interface of the reference engine: requests go to its process, tokens come back as events.

Stop strings, text, ends and grammars are those of the reference engine's sequences; llama.cpp chooses the tokens.
"""

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from services.backend import check_forms, llama_cpp_fields
from services.engines.llama_cpp_server import LlamaCppServer
from services.engines.vllm_request import OutputRequest, ServedToken
from services.errors import GraftwerkError, InvalidSettings, NotReady, UnsupportedOption, UnsupportedSchema
from services.generate import Event, GenerationRequest, ServedModel
from services.generate.guide import GuideMaker
from services.generate.request_checks import checked
from services.generate.sampler import Choice
from services.generate.sequence import SequenceState
from services.sampling import SEED_BITS
from worker.lifecycle import catching

MODEL = "model"


@dataclass(slots=True, eq=False)
class Running:
    """A sequence and the call that generates it."""

    sequence: SequenceState
    call: "Future[None] | None" = None


@dataclass(frozen=True, slots=True)
class Received:
    """New tokens of a sequence, or the end of its call with its error."""

    running: Running
    tokens: Sequence[ServedToken] = ()
    is_end: bool = False
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class LlamaCppEngine:
    """The sequences of one model and its adapters. Only `cancel` may be called from another thread.

    `notify` is called in another thread when something has arrived.
    """

    loaded: ServedModel
    server: LlamaCppServer
    slots: int
    notify: Callable[[], None]
    _running: list[Running] = field(default_factory=list)
    _received: SimpleQueue[Received] = field(default_factory=SimpleQueue)
    _ended: list[Event] = field(default_factory=list)
    _canceled: set[str] = field(default_factory=set)
    _guides: GuideMaker = field(init=False)
    _drops_spaces: bool = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.loaded.tokenizer
        self._drops_spaces = bool(tokenizer.without_first_space(tokenizer.token_bytes()))
        self._guides = GuideMaker(self.loaded.tokenizer, self.loaded.rows)

    computes_here = False

    @property
    def is_lost(self) -> bool:
        """True once the process has ended."""
        return self.server.is_lost

    @property
    def stage(self) -> str | None:
        """Progress of a job that waits until the model is loaded, None once it is."""
        return None if self.server.is_ready else "loading into llama.cpp"

    @property
    def free_slots(self) -> int:
        """Number of further sequences that the process takes now."""
        return max(0, self.slots - len(self._running)) if self.server.is_ready else 0

    def submit(self, request: GenerationRequest) -> str:
        """Sends a request to the process and returns its id.

        Raises:
            UnsupportedOption: llama.cpp does not have a setting of it, or does not score prompts.
            GraftwerkError: as `Engine.submit`.
        """
        llama_cpp_fields(request.sampling)
        if request.grammar is not None:
            check_forms(drops_spaces=self._drops_spaces)
        if request.prompt_logprobs is not None:
            raise UnsupportedOption(
                "llama.cpp does not return log-probabilities of the prompt.",
                "Leave score_prompt out, or convert the model to huggingface.",
            )
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

    def step(self) -> list[Event]:
        """Returns the events of what has arrived.

        Raises:
            NotReady: the process has ended, or has not loaded the model in time; all requests are lost.
        """
        self.server.check()
        events, self._ended = self._ended, []
        events += self._end_canceled()
        try:
            while True:
                events += self._take(self._received.get_nowait())
        except Empty:
            return events

    def close(self) -> None:
        """Ends all requests and the process."""
        for running in self._running:
            _stop(running)
        self._running.clear()
        self.server.stop()

    def _begin(self, sequence: SequenceState) -> None:
        request = sequence.request
        if request.sampling.max_new_tokens == 0:
            self._ended.append(sequence.finish("length"))
            self.notify()
            return
        output = OutputRequest(
            model=MODEL,
            prompt_token_ids=request.prompt_token_ids,
            sampling=request.sampling,
            seed=sequence.seed,
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

    def _take(self, received: Received) -> list[Event]:
        running, sequence = received.running, received.running.sequence
        if sequence.is_finished:
            return []
        if received.is_end:
            return [self._finish(running, self._end_of(sequence, received.error))]
        events: list[Event] = []
        for token in received.tokens:
            if not sequence.is_finished:
                events += self._accept(sequence, _choice(token, sequence.request.sampling.logprobs))
        if sequence.is_finished:
            self._running.remove(running)
            if not sequence.is_full:  # else the call is about to end, and its connection is used again
                _stop(running)
        return events

    def _accept(self, sequence: SequenceState, choice: Choice) -> list[Event]:
        try:
            return sequence.accept(choice)
        except UnsupportedSchema as error:
            failure = InvalidSettings(
                f"llama.cpp wrote a token that the requested form does not allow: {error.message}",
                "Install the version of xllamacpp that pyproject.toml names.",
            )
            return [sequence.fail(failure)]

    def _end_of(self, sequence: SequenceState, error: Exception | None) -> Event:
        """Returns the end of a sequence whose call has ended before it. Raises NotReady if the process has ended."""
        if error is None:  # a token that llama.cpp knows as an end, and the model's files do not name
            return sequence.finish("stop")
        self.server.check()
        if isinstance(error, GraftwerkError):
            return sequence.fail(error)
        return sequence.fail(NotReady(f"llama.cpp failed: {type(error).__name__}: {error}.", "Try again."))

    def _finish(self, running: Running, event: Event) -> Event:
        self._remove(running)
        return event

    def _remove(self, running: Running) -> None:
        _stop(running)
        self._running.remove(running)

    def _arrived(self, running: Running, tokens: Sequence[ServedToken]) -> None:
        self._received.put(Received(running, tokens))
        self.notify()

    def _done(self, running: Running, call: "Future[None]") -> None:
        with catching() as caught:
            if not call.cancelled():
                call.result()
        self._received.put(Received(running, is_end=True, error=caught.error))
        self.notify()


def _stop(running: Running) -> None:
    if running.call is not None:
        running.call.cancel()


def _choice(token: ServedToken, top: int | None) -> Choice:
    if top is None:
        return Choice(token.token_id)
    return Choice(token.token_id, token.logprob, token.top[:top])
