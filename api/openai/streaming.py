"""A job's events as the chunks of an OpenAI stream."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from api.jobs import KEEPALIVE
from api.openai.errors import error_object
from api.openai.job_waiter import POLL_SECONDS, JobWaiter, ended_job, succeeded
from api.openai.responses import Json, ResponseBuilder
from services.errors import GraftwerkError, InternalError
from services.jobs.events import Event

FIRST_ANSWER_SECONDS = 10
"""So long an answer's status and headers wait for its first text: what fails before is a proper error."""

DONE = "data: [DONE]\n\n"


class StreamState:
    """What a stream has given out of each answer.

    A job whose worker died is run again from its beginning. Its new text, which the seed makes the same, is not
    told again: the end of the job brings what is missing.
    """

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._logprobs: dict[int, int] = {}
        self._stale: set[int] = set()

    def take(self, piece: Json) -> Json | None:
        """A `token` event's data, if it goes on where the last one ended."""
        index = piece["index"]
        if piece["offset"] != len(self._texts.get(index, "")):
            self._stale.add(index)
        if index in self._stale:
            return None
        return self._note(piece)

    def rest(self, index: int, output: Json) -> Json | None:
        """What is missing of a finished answer, if anything is. Raises InternalError where the text is another."""
        sent = self._texts.get(index, "")
        if not output["text"].startswith(sent):
            raise InternalError("the job ran again and gave another text than the one sent so far")
        piece = {"index": index, "offset": len(sent), "text": output["text"][len(sent) :]}
        if output.get("logprobs") is not None:
            piece["logprobs"] = output["logprobs"][self._logprobs.get(index, 0) :]
        return self._note(piece) if piece["text"] or piece.get("logprobs") else None

    def _note(self, piece: Json) -> Json:
        index = piece["index"]
        self._texts[index] = self._texts.get(index, "") + piece["text"]
        self._logprobs[index] = self._logprobs.get(index, 0) + len(piece.get("logprobs", []))
        return piece


class Stream:
    """The frames of one streamed answer."""

    def __init__(self, waiting: JobWaiter, head: ResponseBuilder, *, answers: int, with_usage: bool) -> None:
        self._head = head
        self._answers = answers
        self._with_usage = with_usage
        self._sent = StreamState()
        self._events = waiting.events()

    def begin(self) -> Iterator[str]:
        """The frames, once the first text is there (or after `FIRST_ANSWER_SECONDS`).

        Raises what the job failed with before that, JobCanceled, NotReady, JobNotFound.
        """
        seen: list[Event | None] = []
        for event in self._events:
            seen.append(event)
            job = ended_job(event)
            if job is not None:
                succeeded(job)
            if job is not None or (event is not None and event.name == "token"):
                break
            if seen.count(None) * POLL_SECONDS >= FIRST_ANSWER_SECONDS:
                break
        return self._frames(chain(seen, self._events))

    def close(self) -> None:
        """The client has gone, or the answer is complete."""
        self._events.close()

    def _frames(self, events: Iterator[Event | None]) -> Iterator[str]:
        try:
            yield from self._opened(events)
        except GraftwerkError as error:
            # the status is sent already: the error is the stream's last event
            yield _frame(error_object(error))

    def _opened(self, events: Iterator[Event | None]) -> Iterator[str]:
        if self._head.is_chat:
            yield from (self._chunk(self._head.opening(index)) for index in range(self._answers))
        for event in events:
            if event is None:
                yield KEEPALIVE
            elif event.name == "token":
                yield from self._piece(self._sent.take(json.loads(event.data)))
            job = ended_job(event)
            if job is not None:
                yield from self._end(succeeded(job).result or {})
                return

    def _piece(self, piece: Json | None) -> Iterator[str]:
        if piece is not None and (piece["text"] or piece.get("logprobs")):
            logprobs = piece.get("logprobs")
            chunk = self._head.piece(piece["index"], piece["text"], logprobs, offset=piece["offset"])
            yield self._chunk(chunk)

    def _end(self, result: dict[str, Any]) -> Iterator[str]:
        for index, output in enumerate(result["outputs"]):
            yield from self._piece(self._sent.rest(index, output))
            yield self._chunk(self._head.closing(index, output, result))
        if self._with_usage:
            yield _frame(self._head.counting(result))
        yield DONE

    def _chunk(self, chunk: Json) -> str:
        return _frame(chunk | {"usage": None} if self._with_usage else chunk)


def _frame(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
