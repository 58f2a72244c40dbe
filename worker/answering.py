"""One generate job: its prompts one by one to an engine, its answers together as the job's result."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.errors import GraftwerkError, UnreadableFile
from services.generate import (
    AnswerFailed,
    AnswerFinished,
    BuiltPrompt,
    Event,
    GenerationRequest,
    Output,
    TokenGenerated,
    TokenLogprob,
    build_prompt,
)
from services.jobs.requests import TOLD_ANSWERS, GenerateRequest
from services.models.lineage import template_of_lineage
from services.models.store import ModelStore
from services.progress import Progress
from services.sampling import Sampling
from services.templates import Message
from worker.lifecycle import Context
from worker.residents import Resident, Residents
from worker.telling import TextTeller


@dataclass(slots=True)
class Open:
    """A prompt that the engine works on: its number, how it is sampled, and how many answers are missing."""

    number: int
    prompt: BuiltPrompt
    sampling: Sampling
    missing: int


class Asking:
    """The state of one generate job on its engine."""

    def __init__(self, request: GenerateRequest, context: Context, resident: Resident) -> None:
        self.request = request
        self.context = context
        self.resident = resident
        self.questions = questions_of(request, context.store)
        self.entries: list[list[dict[str, Any]]] = [[] for _ in self.questions]
        self.first_error: GraftwerkError | None = None
        self.template = ""
        self.tokens = 0
        self.expected = len(self.questions) * request.sampling.n * request.sampling.max_new_tokens
        self._open: dict[str, Open] = {}  # by the engine's id
        self._next = 0
        self._started = time.monotonic()
        self._template = self._chosen_template()
        self._special_ids = frozenset(resident.loaded.tokenizer.special_tokens.values())
        few = len(self.questions) * request.sampling.n <= TOLD_ANSWERS
        self._text = TextTeller(context, with_token_ids=request.return_token_ids) if few else None

    @property
    def has_more(self) -> bool:
        """Whether prompts are left that the engine has not got."""
        return self._next < len(self.questions)

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
        number = self._next
        self._next += 1
        try:
            prompt = self._build(self.questions[number])
            sampling = self._fitted(prompt)
            request = GenerationRequest(
                prompt.token_ids, sampling, stop=prompt.stop, stop_token_ids=prompt.stop_token_ids
            )
            self._open[self.resident.engine.submit(request)] = Open(number, prompt, sampling, sampling.n)
        except GraftwerkError as error:
            self._refuse(number, error, answers=self.request.sampling.n)
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
        asked.missing -= 1
        if asked.missing == 0:
            del self._open[event.request_id]
        if isinstance(event, AnswerFinished):
            self._hear_end(asked, event.output)
        elif isinstance(event, AnswerFailed):
            self._refuse(asked.number, event.error, answers=1)
        return True

    def _hear_token(self, asked: Open, event: TokenGenerated) -> None:
        self.tokens += 1
        if self._text is not None:
            logprob = None if event.logprob is None else self._logprob(event.logprob)
            index = asked.number * asked.sampling.n + event.index
            self._text.add(index, event.text, event.token_id, logprob)

    def _hear_end(self, asked: Open, output: Output) -> None:
        self.entries[asked.number].append(self._entry(asked.number, asked.prompt, output))
        self.expected -= asked.sampling.max_new_tokens - len(output.token_ids)
        if self._text is not None:
            self._text.end(asked.number * asked.sampling.n + output.index, output.finish_reason)

    def report(self) -> None:
        """Say how far it is."""
        self.context.report(Progress("generating", self.tokens, max(self.tokens, self.expected), "tokens"))
        if self._text is not None:
            self._text.tell()

    def result(self) -> Mapping[str, Any]:
        """The job's result.

        Raises the first prompt's error where no prompt has an answer.
        """
        if self._text is not None:
            self._text.tell_rest()
        answers = [entry for entries in self.entries for entry in sorted(entries, key=_index)]
        if self.first_error is not None and all("error" in answer for answer in answers):
            raise self.first_error
        seconds = time.monotonic() - self._started
        loaded = self.resident.loaded
        return {
            "outputs": answers,
            "template": self.template,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 2),
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
        }

    def _chosen_template(self) -> str | None:
        """The request's, or for a conversation with a model that has none of its own that of the model's lineage."""
        request = self.request
        if request.template is not None or request.messages is None or self.resident.loaded.chat_template:
            return request.template
        adapters = [choice.name for choice in request.adapters]
        return template_of_lineage(self.context.store, request.model, adapters)

    def _build(self, question: "Question") -> BuiltPrompt:
        loaded, request = self.resident.loaded, self.request
        prompt = build_prompt(
            loaded.tokenizer,
            template=self._template,
            prompt=question if isinstance(question, str) else None,
            messages=None if isinstance(question, str) else question,
            system=request.system,
            input=request.input,
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

    def _refuse(self, number: int, error: GraftwerkError, *, answers: int) -> None:
        self.first_error = self.first_error or error
        failure = {"code": error.code, "message": error.message, "hint": error.hint}
        self.entries[number].append({"prompt": _text_of(self.questions[number]), "error": failure})
        self.expected -= self.request.sampling.max_new_tokens * answers

    def _entry(self, number: int, prompt: BuiltPrompt, output: Output) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "prompt": _text_of(self.questions[number]),
            "index": output.index,
            "text": output.text,
            "finish_reason": output.finish_reason,
            "usage": output.usage,
            "seed": output.seed,
        }
        if self.request.return_token_ids:
            entry |= {"prompt_token_ids": list(prompt.token_ids), "token_ids": output.token_ids}
        if output.logprobs is not None:
            entry["logprobs"] = [self._logprob(item) for item in output.logprobs]
        return entry

    def _logprob(self, item: TokenLogprob) -> dict[str, Any]:
        fields: dict[str, Any] = {"token": item.piece, "token_id": item.token_id, "logprob": item.logprob}
        if item.token_id in self._special_ids:
            fields["special"] = True
        return fields | ({"top": [self._logprob(other) for other in item.top]} if item.top else {})


Question = str | list[Message]


def questions_of(request: GenerateRequest, store: ModelStore) -> list[Question]:
    """The prompts of a request in order, or its one conversation.

    Raises UnreadableFile, SourceNotFound, InvalidName.
    """
    if request.messages is not None:
        return [[Message(role=turn.role, content=turn.content) for turn in request.messages]]
    if request.prompts_file is not None:
        return list(_read_prompts(request.prompts_file, store))
    return [request.prompt] if request.prompt is not None else list(request.prompts or [])


def _read_prompts(relative: str, store: ModelStore) -> Iterator[str]:
    """Prompts of a file under `incoming/`: a JSON list of texts, or else one a line."""
    path = store.incoming(relative)
    try:
        text = path.read_text(encoding="utf-8-sig")
        prompts = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"{relative} is no UTF-8 text of prompts: {error}", "One prompt a line, or a JSON list."
        ) from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UnreadableFile(f"{relative} is no JSON list of texts", 'Write it like this: ["Hello"].')
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UnreadableFile(f"{relative} holds no prompt", "One prompt a line, or a JSON list.")
    yield from prompts


def answer_once(request: GenerateRequest, context: Context) -> Mapping[str, Any]:
    """The result of a job that has a model and an engine to itself."""
    settings = context.settings
    resident = Residents(settings.device, sys.maxsize, settings.generate_slots).take(request, context)
    assert resident is not None  # there is always room for the first
    asking = Asking(request, context, resident)
    while not asking.is_done:
        context.check_canceled()
        while asking.has_more and resident.engine.free_slots:
            asking.ask_next()
        for event in resident.engine.step():
            asking.hear(event)
        asking.report()
    return asking.result()


def _index(entry: Mapping[str, Any]) -> int:
    index: int = entry.get("index", 0)
    return index


def _text_of(question: Question) -> str:
    return question if isinstance(question, str) else question[-1].content
