"""One generate job: its prompts one by one to an engine, its answers together as the job's result."""

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from services.errors import GraftwerkError
from services.generate import (
    AnswerFailed,
    AnswerFinished,
    BuiltPrompt,
    Completion,
    Event,
    GenerationRequest,
    TokenGenerated,
    TokenLogprob,
    build_fitting,
    build_prompt,
)
from services.kinds.generate import GenerateRequest
from services.kinds.shared import MAX_STREAMED_OUTPUTS
from services.models.lineage import template_of_lineage
from services.models.prompt_file import Question, read_prompt_file
from services.models.store import ModelStore
from services.progress import Progress
from services.sampling import Sampling
from services.templates import Message
from worker.inference.model_cache import CachedModel, ModelKey, alone
from worker.inference.result_sink import Entry, JsonlSink, MemorySink, ResultSink
from worker.inference.token_stream import TokenStream
from worker.lifecycle import JobContext

ANSWER_SHARE = 4
"""Turns are left out until the answer has room for its new tokens, or for this part of the context."""


@dataclass(slots=True)
class Open:
    """A prompt that the engine works on: its number, how it is sampled, how many turns were left out
    (None where none may be), and the outputs that it has so far."""

    number: int
    prompt: BuiltPrompt
    sampling: Sampling
    dropped_turns: int | None
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slice:
    """What one asking is of its job: the stage that it reports, and the index of its first output there."""

    stage: str = "generating"
    first_index: int = 0


ALL = Slice()


class GenerateSession:
    """The state of one generate job, or of one variant of a compare job, on its engine."""

    def __init__(
        self, request: GenerateRequest, context: JobContext, resident: CachedModel, part: Slice = ALL
    ) -> None:
        self.request = request
        self.part = part
        self.context = context
        self.resident = resident
        self.questions, digest = questions_of(request, context.store)
        self.first_error: GraftwerkError | None = None
        self.template = ""
        self.tokens = 0
        self._open: dict[str, Open] = {}  # by the engine's id
        self._started = time.monotonic()
        self._special_ids = frozenset(resident.loaded.tokenizer.special_tokens.values())
        few = len(self.questions) * request.sampling.n <= MAX_STREAMED_OUTPUTS
        self._text = TokenStream(context, with_token_ids=request.return_token_ids) if few else None
        self.answers: ResultSink = MemorySink(len(self.questions))
        if digest is not None:
            asked = _digest_of(request, digest, resident.key)
            self.answers = JsonlSink(context, asked, len(self.questions))
        self._waiting = deque(sorted(set(range(len(self.questions))) - self.answers.known))
        self.expected = len(self._waiting) * request.sampling.n * request.sampling.max_new_tokens

    @property
    def has_more(self) -> bool:
        """Whether prompts are left that the engine has not got."""
        return bool(self._waiting)

    @property
    def is_done(self) -> bool:
        """Whether every prompt has its answers."""
        return not self.has_more and not self._open

    @property
    def request_ids(self) -> list[str]:
        """The engine's ids of the prompts that it works on."""
        return list(self._open)

    def ask_next(self) -> None:
        """Give the engine the next prompt; one that it refuses gets its error as its answer."""
        number = self._waiting.popleft()
        try:
            prompt, dropped = self._built(self.questions[number])
            sampling = self._fitted(prompt)
            request = GenerationRequest(
                prompt.token_ids, sampling, stop=prompt.stop, stop_token_ids=prompt.stop_token_ids
            )
            self._open[self.resident.engine.submit(request)] = Open(number, prompt, sampling, dropped)
        except GraftwerkError as error:
            self.expected -= self.request.sampling.max_new_tokens * self.request.sampling.n
            self.answers.put(number, self.questions[number].text, [self._failure(number, error)])
        else:
            self.expected -= (self.request.sampling.max_new_tokens - sampling.max_new_tokens) * sampling.n

    def hear(self, event: Event) -> bool:
        """Take an event of the engine; False if it is somebody else's."""
        asked = self._open.get(event.request_id)
        if asked is None:
            return False
        if isinstance(event, TokenGenerated):
            self._hear_token(asked, event)
            return True
        if isinstance(event, AnswerFinished):
            self._hear_end(asked, event.output)
        elif isinstance(event, AnswerFailed):
            self.expected -= asked.sampling.max_new_tokens
            asked.entries.append(self._failure(asked.number, event.error))
        if len(asked.entries) == asked.sampling.n:
            del self._open[event.request_id]
            entries = sorted(asked.entries, key=_index)
            self.answers.put(asked.number, self.questions[asked.number].text, entries)
        return True

    def _hear_token(self, asked: Open, event: TokenGenerated) -> None:
        self.tokens += 1
        if self._text is not None:
            logprob = None if event.logprob is None else self._logprob(event.logprob)
            self._text.add(self._place(asked, event.index), event.text, event.token_id, logprob)

    def _hear_end(self, asked: Open, output: Completion) -> None:
        asked.entries.append(self._entry(asked, output))
        self.expected -= asked.sampling.max_new_tokens - len(output.token_ids)
        if self._text is not None:
            self._text.end(self._place(asked, output.index), output.finish_reason)

    def _place(self, asked: Open, index: int) -> int:
        """An answer's place among all outputs of the job."""
        return self.part.first_index + asked.number * asked.sampling.n + index

    def report(self) -> None:
        """Say how far it is, and put the answers that are complete in their place. Raises OSError."""
        self.answers.save()
        self.context.execution.report(self._progress())
        if self._text is not None:
            self._text.tell()

    def _progress(self) -> Progress:
        """In tokens; a file of prompts has too many of them that are never written, and is counted in prompts."""
        if self.request.prompts_file is None:
            return Progress(self.part.stage, self.tokens, max(self.tokens, self.expected), "tokens")
        total = len(self.questions)
        return Progress(self.part.stage, total - len(self._waiting) - len(self._open), total, "prompts")

    def result(self) -> Mapping[str, Any]:
        """The job's result.

        Raises the first prompt's error where no prompt has an answer.
        """
        if self.first_error is not None and not self.answers.answered:
            raise self.first_error
        return {**self.answers.result(), **self.facts()}

    def facts(self) -> dict[str, Any]:
        """What the result says of the answers as a whole; the last of their text is told."""
        if self._text is not None:
            self._text.tell_rest()
        seconds = time.monotonic() - self._started
        loaded = self.resident.loaded
        return {
            # Where all answers were there before, nothing has been built yet.
            "template": self.template or self._built(self.questions[0])[0].template,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 2),
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "backend": None,
        }

    def close(self) -> None:
        """Let go of what is open, whether the job has ended or not."""
        self.answers.close()

    @cached_property
    def _template_of_lineage(self) -> str | None:
        adapters = [choice.name for choice in self.request.adapters]
        return template_of_lineage(self.context.store, self.request.model, adapters)

    def _template_for(self, question: Question) -> str | None:
        """The request's, or for a conversation with a model that has none of its own that of the model's lineage."""
        given = self.request.template
        if given is not None or question.messages is None or self.resident.loaded.chat_template:
            return given
        return self._template_of_lineage

    def _built(self, question: Question) -> tuple[BuiltPrompt, int | None]:
        """A question's prompt, and how many turns of a conversation were left out where the request allows that."""
        if question.messages is None or self.request.fit_context is not True:
            return self._build(question, question.messages), None
        context = self.resident.loaded.context_length
        room = min(self.request.sampling.max_new_tokens, context // ANSWER_SHARE)
        return build_fitting(partial(self._build, question), question.messages, context - room)

    def _build(self, question: Question, messages: Sequence[Message] | None) -> BuiltPrompt:
        loaded, request = self.resident.loaded, self.request
        prompt = build_prompt(
            loaded.tokenizer,
            template=self._template_for(question),
            prompt=question.prompt,
            messages=messages,
            system=request.system if question.system is None else question.system,
            input=request.input if question.input is None else question.input,
            chat_template=loaded.chat_template,
        )
        self.template = prompt.template
        return prompt

    def _fitted(self, prompt: BuiltPrompt) -> Sampling:
        """The request's sampling, with as many new tokens as there is room for where the request allows that."""
        sampling = self.request.sampling
        room = self.resident.loaded.context_length - len(prompt.token_ids)
        if not self.request.fit_context or room < 1 or sampling.max_new_tokens <= room:
            return sampling
        least = min(sampling.min_new_tokens, room)
        return sampling.model_copy(update={"max_new_tokens": room, "min_new_tokens": least})

    def _failure(self, number: int, error: GraftwerkError) -> Entry:
        self.first_error = self.first_error or error
        failure = {"code": error.code, "message": error.message, "hint": error.hint}
        return {"prompt": self.questions[number].text, "error": failure}

    def _entry(self, asked: Open, output: Completion) -> Entry:
        entry: Entry = {
            "prompt": self.questions[asked.number].text,
            "index": output.index,
            "text": output.text,
            "finish_reason": output.finish_reason,
            "usage": output.usage,
            "seed": output.seed,
        }
        if self.request.return_token_ids:
            entry |= {"prompt_token_ids": list(asked.prompt.token_ids), "token_ids": output.token_ids}
        if asked.dropped_turns is not None:
            entry["dropped_turns"] = asked.dropped_turns
        if output.logprobs is not None:
            entry["logprobs"] = [self._logprob(item) for item in output.logprobs]
        return entry

    def _logprob(self, item: TokenLogprob) -> dict[str, Any]:
        fields: dict[str, Any] = {"token": item.piece, "token_id": item.token_id, "logprob": item.logprob}
        if item.token_id in self._special_ids:
            fields["special"] = True
        return fields | ({"top": [self._logprob(other) for other in item.top]} if item.top else {})


def questions_of(request: GenerateRequest, store: ModelStore) -> tuple[list[Question], str | None]:
    """The prompts of a request in order, or its one conversation; and the digest of the file that they stand in.

    Raises UnreadableFile, InvalidText, SourceNotFound, InvalidName.
    """
    if request.messages is not None:
        return [Question(messages=tuple(request.messages))], None
    if request.prompts_file is not None:
        found = read_prompt_file(store.incoming(request.prompts_file), request.prompts_file)
        return found.questions, found.digest
    prompts = [request.prompt] if request.prompt is not None else request.prompts or []
    return [Question(prompt=prompt) for prompt in prompts], None


def _digest_of(request: GenerateRequest, prompts_digest: str, model: ModelKey) -> str:
    """What the answers of a file of prompts depend on: file, request and the model's files."""
    asked = request.model_dump_json(exclude={"after", "metadata"})
    return hashlib.sha256(f"{prompts_digest}\n{asked}\n{model}".encode()).hexdigest()


def answer_once(request: GenerateRequest, context: JobContext) -> Mapping[str, Any]:
    """The result of a job that has a model and an engine to itself."""
    resident = alone(request, context)
    with closing(GenerateSession(request, context, resident)) as asking:
        answer_all(asking)
        return asking.result()


def answer_all(asking: GenerateSession) -> None:
    """Have all its prompts answered, with the engine for them alone."""
    while not asking.is_done:
        asking.context.execution.check_canceled()
        while asking.has_more and asking.resident.engine.free_slots:
            asking.ask_next()
        for event in asking.resident.engine.step():
            asking.hear(event)
        asking.report()


def _index(entry: Mapping[str, Any]) -> int:
    index: int = entry.get("index", 0)
    return index
