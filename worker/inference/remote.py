"""Session of a generate job that another server runs: each output is a call of its own."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.backend import Backend, Call, CallPart, Chunk, ServedModel, call_of, check_forwardable, seed_of
from services.bounded_text import cut
from services.errors import GraftwerkError, InvalidSettings, NotReady, UnsupportedOption
from services.generate import Event
from services.grammar import grammar_of, is_text_of
from services.kinds.generate import GenerateRequest, GenerateResult, Logprob, Output
from services.kinds.shared import Usage
from services.kinds.tools import ToolCall, ToolCallPiece
from services.templates import OWN_TEMPLATE
from worker.inference.cached_model import CachedModel
from worker.inference.output_collector import OutputCollector, prompts_of
from worker.inference.remote_calls import CallEnded, Place, RemoteCalls
from worker.lifecycle import JobContext


@dataclass(slots=True)
class RemoteAnswer:
    """Received part of one output."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, list[CallPart]] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)  # characters of the arguments of each call
    finish_reason: str | None = None
    stop_string: str | None = None
    usage: Usage | None = None


class RemoteSession:
    """Generates the outputs of one generate request by calls to another server."""

    has_prompts = False

    def __init__(
        self,
        request: GenerateRequest,
        context: JobContext,
        *,
        backend: Backend,
        model: ServedModel,
        notify: Callable[[], None],
    ) -> None:
        """Reads the prompts and starts the calls; `notify` is called in another thread when data has arrived.

        Raises:
            UnsupportedOption: the server cannot fulfil the request.
            SourceNotFound, InvalidName, UnreadableFile, InvalidText: see `prompts_of`.
            ExecutionSuperseded, JobCanceled, OSError: see `OutputCollector`.
        """
        check_forwardable(request, model)
        self._request, self._served = request, model
        self._grammar = grammar_of(request.schema_text, request.guided_regex)
        prompts = prompts_of(request, context.store)
        self._outputs = OutputCollector(request, context, prompts, model=f"{model.server} {model.id}")
        self._seed = secrets.randbits(31) if request.sampling.seed is None else request.sampling.seed
        places = [(n, index) for n in self._outputs.unfinished for index in range(request.sampling.n)]
        self._open = {place: RemoteAnswer() for place in places}
        self._calls = RemoteCalls(backend, self._call, notify)
        self._calls.start(places, at_once=context.settings.generate_slots)

    @property
    def done(self) -> bool:
        """True once every output is there."""
        return not self._open

    def needs(self) -> None:
        """Returns None: the server has the model."""

    def attach(self, model: CachedModel) -> None:
        """Does nothing: no model of this process is needed."""

    def step(self) -> None:
        """Takes what the server has sent. Raises the error that ended all calls."""
        try:
            for place, received in self._calls.received():
                if isinstance(received, CallEnded):
                    self._end(place, received.error)
                else:
                    self._take(place, received)
        finally:
            self._outputs.sink.save()  # complete outputs are not requested again

    def on_event(self, event: Event) -> None:
        """Ignores it: the session submits nothing to an engine."""

    def report(self) -> None:
        """Saves complete outputs, reports progress and publishes new text. Raises OSError."""
        self._outputs.report()

    def result(self) -> GenerateResult:
        """Returns the result. Raises the first error if every prompt failed."""
        self._outputs.raise_if_all_failed()
        template = self._call((0, 0)).template
        is_left_out = template != OWN_TEMPLATE and self._request.offered_tools
        computed = self._outputs.computed(
            engine="remote",
            template=template,
            backend=self._served.server,
            ignored=[*(["tools"] if is_left_out else []), *self._request.other_tools],
        )
        return self._outputs.sink.result(computed)

    def cancel(self) -> None:
        """Closes the connections, upon which the server stops. May be called from any thread."""
        self._calls.cancel()

    def close(self) -> None:
        """Closes the connections and the file of results."""
        self._calls.cancel()
        self._outputs.sink.close()

    def _call(self, place: Place) -> Call:
        number, index = place
        entry = self._outputs.prompts[number]
        return call_of(self._request, entry, self._served, index=index, seed=self._seed)

    def _take(self, place: Place, chunk: Chunk) -> None:
        answer = self._open[place]
        answer.finish_reason = chunk.finish_reason or answer.finish_reason
        answer.usage = chunk.usage or answer.usage
        answer.stop_string = chunk.stop_string or answer.stop_string
        answer.logprobs += chunk.logprobs
        for part in chunk.calls:
            self._take_call(place, answer, part)
        if chunk.reasoning:
            answer.reasoning.append(chunk.reasoning)
            self._outputs.add_parts(*place, reasoning=chunk.reasoning, calls=[])
        if chunk.text:
            answer.texts.append(chunk.text)
            # An estimate of one token per chunk; the server's own count comes at the end.
            self._outputs.add_token(*place, chunk.text, logprobs=chunk.logprobs)
        elif chunk.logprobs:
            self._outputs.add_text(*place, "", logprobs=chunk.logprobs)

    def _take_call(self, place: Place, answer: RemoteAnswer, part: CallPart) -> None:
        """Takes part of a call, which is published at once if it is the last one so far."""
        answer.calls.setdefault(part.index, []).append(part)
        number, sent = part.index, answer.sent
        if part.arguments and number == max(answer.calls) and number in (len(sent) - 1, len(sent)):
            self._publish_call(place, answer, number, _call_of(answer.calls[number]))

    def _publish_call(self, place: Place, answer: RemoteAnswer, number: int, call: ToolCall) -> None:
        is_new = number == len(answer.sent)
        offset = 0 if is_new else answer.sent[number]
        rest = call.arguments[offset:]
        if is_new or rest:
            piece = ToolCallPiece(index=number, id=call.id, name=call.name, arguments=rest, offset=offset)
            self._outputs.add_parts(*place, reasoning="", calls=[piece])
        if is_new:
            answer.sent.append(0)
        answer.sent[number] = len(call.arguments)

    def _end(self, place: Place, error: GraftwerkError | None) -> None:
        number, index = place
        answer = self._open.pop(place)
        if error is not None:
            self._outputs.fail(number, error, counted=len(answer.texts))
            return
        text = "".join(answer.texts)
        usage = self._checked_usage(answer)
        error = self._form_error(answer, text)
        if error is not None:
            self._outputs.fail(number, error, counted=len(answer.texts))
            return
        fields: dict[str, Any] = {}
        if self._request.sampling.logprobs is not None:
            fields["logprobs"] = answer.logprobs
        if answer.stop_string is not None:
            fields["stop_string"] = answer.stop_string
        if answer.reasoning:
            fields["reasoning"] = "".join(answer.reasoning)
        if answer.calls:
            calls = [_call_of(parts) for _, parts in sorted(answer.calls.items())]
            fields["tool_calls"] = calls
            for number, call in enumerate(calls):
                self._publish_call(place, answer, number, call)
        output = Output.model_construct(
            prompt=self._outputs.prompts[number].text,
            index=index,
            text=text,
            finish_reason=answer.finish_reason,
            usage=usage,
            seed=seed_of(self._seed, index),
            **fields,
        )
        written = usage.completion_tokens
        self._outputs.finish(number, output, written=written, counted=len(answer.texts))

    def _form_error(self, answer: RemoteAnswer, text: str) -> GraftwerkError | None:
        """Returns an error if a complete output does not have the request's form: some servers enforce only a part of it."""
        if self._grammar is None or answer.finish_reason != "stop" or is_text_of(self._grammar, text):
            return None
        return UnsupportedOption(
            f"{self._served.server} has not held the output to its form: {cut(text, 200)!r}.",
            "Simplify the form, or use one of this service's own models.",
        )

    def _checked_usage(self, answer: RemoteAnswer) -> Usage:
        """Returns the counts of a complete output. Raises NotReady, InvalidSettings, UnsupportedOption."""
        server = self._served.server
        if answer.finish_reason is None:
            raise NotReady(f"The stream of {server} ended early.", "Try again.")
        if answer.usage is None:
            raise InvalidSettings(
                f"{server} does not count the tokens of a stream (stream_options.include_usage).",
                "Use a newer version of that server.",
            )
        if self._request.sampling.logprobs is not None and answer.texts and not answer.logprobs:
            raise UnsupportedOption(
                f"{server} does not return log-probabilities.", "Leave sampling.logprobs out."
            )
        return answer.usage


def _call_of(parts: Sequence[CallPart]) -> ToolCall:
    return ToolCall(
        id="".join(part.id for part in parts),
        name="".join(part.name for part in parts),
        arguments="".join(part.arguments for part in parts),
    )
