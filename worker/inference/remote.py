"""One generate job that another server answers: asked in a thread of its own, told and ended by the worker.

The thread runs an event loop, so that a call can be given up at any time; what it hears goes through a queue to the
worker, which alone speaks to Redis.
"""

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import httpx

from services.backend import Backend, Call, Chunk, ServedModel, call_of, check_forwardable, seed_of
from services.errors import GraftwerkError, InvalidSettings, ModelNotFound, NotReady, UnsupportedOption
from services.kinds.generate import GenerateRequest
from services.kinds.shared import MAX_STREAMED_OUTPUTS, NO_TOKEN_LIMIT
from services.progress import Progress
from worker.inference.generate import questions_of
from worker.inference.result_sink import Entry, JsonlSink, MemorySink, ResultSink
from worker.inference.token_stream import TokenStream
from worker.lifecycle import JobContext, attempted

FATAL = (NotReady, InvalidSettings, ModelNotFound)
"""What ends the whole job; any other error is that of one answer."""


Place = tuple[int, int]
"""The number of a prompt, and which of its answers."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer is complete, or has its error."""

    error: GraftwerkError | None = None


@dataclass(slots=True)
class RemoteAnswer:
    """What has come of one answer so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    error: GraftwerkError | None = None
    is_over: bool = False


class RemoteSession:
    """The state of one generate job at another server, which is asked for each answer on its own."""

    resident = None  # no model of ours has a part in it

    def __init__(
        self,
        request: GenerateRequest,
        context: JobContext,
        *,
        backend: Backend,
        model: ServedModel,
        notify: Callable[[], None],
    ) -> None:
        """Begins at once; `notify` is called in another thread whenever something has come.

        Raises UnsupportedOption, and as `questions_of`.
        """
        check_forwardable(request, model)
        self.request = request
        self.context = context
        self.request_ids: list[str] = []  # the engine has no part in it
        self.questions, digest = questions_of(request, context.store)
        self.tokens = 0
        self.template = ""
        self._backend, self._model, self._notify = backend, model, notify
        n, limit = request.sampling.n, request.sampling.max_new_tokens
        self._seed = secrets.randbits(31) if request.sampling.seed is None else request.sampling.seed
        few = len(self.questions) * n <= MAX_STREAMED_OUTPUTS
        self._text = TokenStream(context, with_token_ids=False) if few else None
        self._started = time.monotonic()
        self.answers: ResultSink = MemorySink(len(self.questions))
        if digest is not None:
            asked = _digest_of(request, digest, model)
            self.answers = JsonlSink(context, asked, len(self.questions))
        waiting = sorted(set(range(len(self.questions))) - self.answers.known)
        self._open = {number: [RemoteAnswer() for _ in range(n)] for number in waiting}
        self._expected = len(waiting) * n * limit
        self._first_error: GraftwerkError | None = None
        self._heard: SimpleQueue[tuple[Place, Chunk | Ended] | Exception] = SimpleQueue()
        self._loop = asyncio.new_event_loop()
        places = [(number, index) for number in waiting for index in range(n)]
        self._task = self._loop.create_task(self._ask_all(places, context.settings.generate_slots))
        threading.Thread(target=self._run, name="forwarding", daemon=True).start()

    @property
    def is_done(self) -> bool:
        """Whether every answer is there."""
        return not self._open

    def cancel(self) -> None:
        """Give up what is not answered yet: the connections are closed, and the server stops. From any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._task.cancel)

    def close(self) -> None:
        """Let go of what is open, whether the job has ended or not."""
        self.cancel()
        self.answers.close()

    def advance(self) -> None:
        """Take in what has come. Raises what ends the whole job."""
        with suppress(Empty):
            while True:
                heard = self._heard.get_nowait()
                if isinstance(heard, Exception):
                    self.answers.save()  # what is answered need not be asked again
                    raise heard
                self._hear(*heard)

    def report(self) -> None:
        """Say how far it is, and put the answers that are complete in their place. Raises OSError."""
        self.answers.save()
        self.context.execution.report(self._progress())
        if self._text is not None:
            self._text.tell()

    def _progress(self) -> Progress:
        if self.request.prompts_file is not None:
            total = len(self.questions)
            return Progress("generating", total - len(self._open), total, "prompts")
        unlimited = self.request.sampling.max_new_tokens == NO_TOKEN_LIMIT
        total = 0 if unlimited else max(self.tokens, self._expected)
        return Progress("generating", self.tokens, total, "tokens")

    def result(self) -> Mapping[str, Any]:
        """The job's result. Raises the first answer's error where no answer is without."""
        if self._text is not None:
            self._text.tell_rest()
        if self._first_error is not None and not self.answers.answered:
            raise self._first_error
        seconds = time.monotonic() - self._started
        return {
            **self.answers.result(),
            # Where all answers were there before, nothing has been asked yet.
            "template": self.template or self._call((0, 0)).template,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 2),
            "device": None,
            "dtype": None,
            "backend": self._model.server,
        }

    # ---- in the worker's thread -----------------------------------------------------------------------

    def _hear(self, place: Place, event: Chunk | Ended) -> None:
        number, index = place
        answer = self._open[number][index]
        if isinstance(event, Chunk):
            self._take(place, event)
            return
        answer.is_over, answer.error = True, event.error
        if event.error is None:
            self._check(answer)
        self._first_error = self._first_error or event.error
        written = 0 if answer.usage is None else answer.usage["completion_tokens"]
        self.tokens += written - len(answer.texts)
        self._expected -= self.request.sampling.max_new_tokens - written
        if self._text is not None and answer.finish_reason is not None:
            self._text.end(self._index(place), answer.finish_reason)
        if all(other.is_over for other in self._open[number]):
            entries = [self._entry(number, *item) for item in enumerate(self._open.pop(number))]
            self.answers.put(number, self.questions[number].text, entries)

    def _take(self, place: Place, chunk: Chunk) -> None:
        answer = self._open[place[0]][place[1]]
        answer.finish_reason = chunk.finish_reason or answer.finish_reason
        answer.usage = chunk.usage or answer.usage
        answer.logprobs += chunk.logprobs
        if chunk.text:
            answer.texts.append(chunk.text)
            self.tokens += 1  # about; the server's own count comes at the end
        if self._text is not None:
            self._text.add(self._index(place), chunk.text, 0, None)
            for logprob in chunk.logprobs:
                self._text.add(self._index(place), "", 0, logprob)

    def _index(self, place: Place) -> int:
        """An answer's place among all outputs of the job."""
        return place[0] * self.request.sampling.n + place[1]

    def _check(self, answer: RemoteAnswer) -> None:
        """Refuse an answer that lacks what was asked for. Raises NotReady, InvalidSettings, UnsupportedOption."""
        server = self._model.server
        if answer.finish_reason is None:
            raise NotReady(f"the stream of {server} ended before its answer", "Try again.")
        if answer.usage is None:
            raise InvalidSettings(
                f"{server} does not count the tokens of a stream (stream_options.include_usage)",
                "A newer version of that server does.",
            )
        if self.request.sampling.logprobs is not None and answer.texts and not answer.logprobs:
            raise UnsupportedOption(f"{server} gives no log-probabilities", "Leave sampling.logprobs out.")

    def _entry(self, number: int, index: int, answer: RemoteAnswer) -> Entry:
        prompt = self.questions[number].text
        if answer.error is not None:
            error = answer.error
            failure = {"code": error.code, "message": error.message, "hint": error.hint}
            return {"prompt": prompt, "error": failure}
        entry: Entry = {
            "prompt": prompt,
            "index": index,
            "text": "".join(answer.texts),
            "finish_reason": answer.finish_reason,
            "usage": answer.usage,
            "seed": seed_of(self._seed, index),
        }
        return entry if self.request.sampling.logprobs is None else entry | {"logprobs": answer.logprobs}

    # ---- in the thread that asks ----------------------------------------------------------------------

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            outcome = attempted(lambda: self._loop.run_until_complete(self._task))
            if isinstance(outcome, Exception):
                self._heard.put(outcome.exceptions[0] if isinstance(outcome, ExceptionGroup) else outcome)
                self._notify()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _ask_all(self, places: Sequence[Place], at_once: int) -> None:
        waiting = iter(places)
        async with self._backend.client() as client, asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(places))):
                group.create_task(self._ask_some(client, waiting))

    async def _ask_some(self, client: httpx.AsyncClient, waiting: Iterator[Place]) -> None:
        for place in waiting:
            try:
                await self._ask(client, place)
            except FATAL:
                raise
            except GraftwerkError as error:
                self._tell(place, Ended(error))
            else:
                self._tell(place, Ended())

    async def _ask(self, client: httpx.AsyncClient, place: Place) -> None:
        call = self._call(place)
        self.template = call.template
        async with aclosing(self._backend.stream(client, call.path, call.body)) as chunks:
            async for chunk in chunks:
                self._tell(place, chunk)

    def _call(self, place: Place) -> Call:
        number, index = place
        return call_of(self.request, self.questions[number], self._model, index=index, seed=self._seed)

    def _tell(self, place: Place, event: Chunk | Ended) -> None:
        self._heard.put((place, event))
        self._notify()


def _digest_of(request: GenerateRequest, prompts_digest: str, model: ServedModel) -> str:
    """What the answers of a file of prompts depend on, as far as it is known here: the server may change its model."""
    asked = request.model_dump_json(exclude={"after", "metadata"})
    return hashlib.sha256(f"{prompts_digest}\n{asked}\n{model.server} {model.id}".encode()).hexdigest()
