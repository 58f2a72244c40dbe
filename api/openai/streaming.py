"""Streaming responses: a job's events as the events of an endpoint's stream."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from flask import Response

from api import sse
from api.openai.errors import error_object
from api.openai.job_waiter import POLL_SECONDS, JobWaiter, ended_job, generated
from api.openai.responses import Json, ResponseBuilder
from services.errors import GraftwerkError, InternalError
from services.jobs.events import Event
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Output, TokenPiece
from services.kinds.tools import ToolCall, ToolCallPiece

FIRST_TEXT_SECONDS = 10
"""Longest time that status and headers wait for the first text: an error before them has its own HTTP status."""

DONE = sse.frame("[DONE]")


@dataclass(slots=True)
class Sent:
    """Parts of one output that a stream has sent."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCallPiece] = field(default_factory=list)  # each with all of its arguments that were sent
    logprobs: int = 0

    def calls_with(self, pieces: Sequence[ToolCallPiece]) -> list[ToolCallPiece] | None:
        """Returns the calls that were sent, with these pieces of them; None if the pieces do not continue them."""
        calls = [*self.calls]
        for piece in pieces:
            if piece.index == len(calls) and not piece.offset:
                calls.append(piece)
            elif piece.index == len(calls) - 1 and piece.offset == len(calls[-1].arguments):
                whole = calls[-1].arguments + piece.arguments
                calls[-1] = calls[-1].model_copy(update={"arguments": whole})
            else:
                return None
        return calls

    def rest_of_calls(self, calls: Sequence[ToolCall]) -> list[ToolCallPiece] | None:
        """Returns the pieces of an output's calls that were not sent; None if what was sent is not of these calls."""
        begins = [
            (call.name, call.arguments[: len(sent.arguments)])
            for call, sent in zip(calls, self.calls, strict=False)
        ]
        if begins != [(sent.name, sent.arguments) for sent in self.calls]:
            return None
        sizes = [len(sent.arguments) for sent in self.calls] + [0] * (len(calls) - len(self.calls))
        return [
            ToolCallPiece(
                index=index, id=call.id, name=call.name, arguments=call.arguments[offset:], offset=offset
            )
            for index, (call, offset) in enumerate(zip(calls, sizes, strict=True))
            if index >= len(self.calls) or call.arguments[offset:]
        ]


class StreamState:
    """Parts that a stream has sent of each output.

    A job whose worker died runs again from its beginning. Its new text, which is the same because of the seed, is not
    sent twice: the end of the job brings the rest.
    """

    def __init__(self) -> None:
        self._sent: dict[int, Sent] = defaultdict(Sent)
        self._stale: set[int] = set()

    def take(self, piece: TokenPiece) -> TokenPiece | None:
        """Returns the piece if it continues what was sent, else None."""
        sent = self._sent[piece.index]
        is_next = (
            piece.offset == len(sent.text)
            and (not piece.reasoning or piece.reasoning_offset == len(sent.reasoning))
            and sent.calls_with(piece.tool_calls) is not None
        )
        if not is_next:
            self._stale.add(piece.index)
        if piece.index in self._stale:
            return None
        return self._record(piece)

    def rest(self, index: int, output: Output) -> TokenPiece | None:
        """Returns the parts of a finished output that have not been sent, None if all have.

        Raises:
            InternalError: the output does not begin with the parts that were sent.
        """
        sent, text, reasoning = self._sent[index], output.text or "", output.reasoning or ""
        calls = sent.rest_of_calls(output.tool_calls or [])
        if calls is None or not text.startswith(sent.text) or not reasoning.startswith(sent.reasoning):
            raise InternalError("The job ran again and its output differs from the text sent so far.")
        piece = TokenPiece(
            index=index,
            offset=len(sent.text),
            text=text[len(sent.text) :],
            reasoning=reasoning[len(sent.reasoning) :],
            reasoning_offset=len(sent.reasoning),
            tool_calls=calls,
            logprobs=None if output.logprobs is None else output.logprobs[sent.logprobs :],
        )
        return self._record(piece) if is_news(piece) else None

    def _record(self, piece: TokenPiece) -> TokenPiece:
        sent = self._sent[piece.index]
        sent.text += piece.text
        sent.reasoning += piece.reasoning
        sent.calls = sent.calls_with(piece.tool_calls) or []
        sent.logprobs += len(piece.logprobs or [])
        return piece


def is_news(piece: TokenPiece) -> bool:
    """Returns True if a piece adds anything to its output."""
    return bool(piece.text or piece.logprobs or piece.reasoning or piece.tool_calls)


def in_order(piece: TokenPiece) -> Iterator[TokenPiece]:
    """Yields the rest of a call that an earlier piece has begun, and then the other parts, which come after it."""
    rest = [call for call in piece.tool_calls if call.offset]
    if rest:
        yield TokenPiece(index=piece.index, offset=piece.offset, text="", tool_calls=rest)
        piece = piece.model_copy(update={"tool_calls": piece.tool_calls[len(rest) :]})
    if is_news(piece) or not rest:
        yield piece


class Frames(Protocol):
    """Events of one endpoint's streams, as they are sent."""

    def opening(self, prompt_tokens: int | None) -> Iterable[str]:
        """Returns the frames before any text; the tokens of the prompt may not be known yet."""

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the frames of new text of an output."""

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the frames that end an output."""

    def ending(self, job: Job, result: GenerateResult) -> Iterable[str]:
        """Returns the last frames, after all outputs."""

    def failure(self, error: GraftwerkError) -> Iterable[str]:
        """Returns the last frames of a stream that ends with an error."""


class Stream:
    """Frames of one streamed response."""

    def __init__(self, waiter: JobWaiter, frames: Frames) -> None:
        self._frames = frames
        self._state = StreamState()
        self._events = waiter.events()

    def begin(self) -> Iterator[str]:
        """Returns the frames, once the first text is there or `FIRST_TEXT_SECONDS` have passed.

        Raises:
            GraftwerkError: the error that the job ended with before that.
        """
        seen: list[Event | None] = []
        for event in self._events:
            seen.append(event)
            job = ended_job(event)
            if job is not None:
                generated(job)
            if job is not None or (event is not None and event.name == "token"):
                break
            if seen.count(None) * POLL_SECONDS >= FIRST_TEXT_SECONDS:
                break
        return self._guarded(chain(seen, self._events), _prompt_tokens(seen[-1] if seen else None))

    def replay(self) -> Iterator[str]:
        """Returns the frames of a job from its beginning; an error that it ended with is one of them."""
        return self._guarded(self._events, None)

    def close(self) -> None:
        """Stops following the job, which is canceled if it has not ended."""
        self._events.close()

    def _guarded(self, events: Iterator[Event | None], prompt_tokens: int | None) -> Iterator[str]:
        try:
            yield from self._all_frames(events, prompt_tokens)
        except GraftwerkError as error:
            # the status is sent already: the error is the stream's last event
            yield from self._frames.failure(error)

    def _all_frames(self, events: Iterator[Event | None], prompt_tokens: int | None) -> Iterator[str]:
        yield from self._frames.opening(prompt_tokens)
        for event in events:
            if event is None:
                yield sse.KEEPALIVE
            elif event.name == "token":
                yield from self._piece(self._state.take(TokenPiece.model_validate_json(event.data)))
            job = ended_job(event)
            if job is not None:
                yield from self._end(job, generated(job))
                return

    def _piece(self, piece: TokenPiece | None) -> Iterable[str]:
        return chain.from_iterable(map(self._frames.piece, () if piece is None else in_order(piece)))

    def _end(self, job: Job, result: GenerateResult) -> Iterator[str]:
        for index, output in enumerate(result.outputs):
            yield from self._piece(self._state.rest(index, output))
            yield from self._frames.closing(index, result)
        yield from self._frames.ending(job, result)


class Chunks:
    """Chunks of a stream of chat or plain completions."""

    def __init__(self, builder: ResponseBuilder, *, outputs: int, with_usage: bool) -> None:
        """`outputs` is the number of outputs of the job; `with_usage` adds the usage as a last chunk."""
        self._builder = builder
        self._outputs = outputs
        self._with_usage = with_usage

    def opening(self, prompt_tokens: int | None) -> Iterable[str]:
        """Returns the chunks with the role of a chat's outputs."""
        if self._builder.is_chat:
            yield from (self._chunk(self._builder.opening(index)) for index in range(self._outputs))

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the chunks with new parts of an output."""
        if is_news(piece):
            yield from map(self._chunk, self._builder.pieces(piece))

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the last chunk of an output."""
        yield self._chunk(self._builder.closing(index, result))

    def ending(self, job: Job, result: GenerateResult) -> Iterable[str]:
        """Returns the usage if it was requested, and the end of the stream."""
        if self._with_usage:
            yield _frame(self._builder.usage(result))
        yield DONE

    def failure(self, error: GraftwerkError) -> Iterable[str]:
        """Returns the error."""
        yield _frame(error_object(error))

    def _chunk(self, chunk: Json) -> str:
        return _frame(chunk | {"usage": None} if self._with_usage else chunk)


def _prompt_tokens(event: Event | None) -> int | None:
    """Returns the tokens of the prompt, if an event has them: the first text of a job, or its end."""
    job = ended_job(event)
    if job is not None:
        usage = generated(job).outputs[0].usage
        return None if usage is None else usage.prompt_tokens
    if event is None or event.name != "token":
        return None
    return TokenPiece.model_validate_json(event.data).prompt_tokens


def event_stream(waiter: JobWaiter, frames: Frames) -> Response:
    """Returns the streaming response to a request whose job is waited for. Raises as `Stream.begin`."""
    stream = Stream(waiter, frames)
    response = sse.event_stream(stream.begin())
    response.call_on_close(stream.close)
    return response


def replayed_stream(waiter: JobWaiter, frames: Frames) -> Response:
    """Returns the streaming response to a request for the events of a job that may have ended."""
    stream = Stream(waiter, frames)
    response = sse.event_stream(stream.replay())
    response.call_on_close(stream.close)
    return response


def _frame(value: Json) -> str:
    return sse.frame(json.dumps(value, ensure_ascii=False))
