"""Outputs of one generate request: its prompts, their destination, the token stream, progress and counts."""

import hashlib
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.errors import GraftwerkError
from services.generate_engines import Engine
from services.jobs.status import WaitingFor
from services.kinds.generate import AdapterUse, ComputedBy, GenerateRequest, Logprob, Output
from services.kinds.shared import MAX_STREAMED_OUTPUTS, NO_TOKEN_LIMIT, Failure
from services.kinds.tools import ToolCallPiece
from services.models.prompt_file import PromptEntry, read_prompt_file
from services.models.store import ModelStore
from services.progress import Progress
from worker.inference.result_sink import JsonlSink, MemorySink, ResultSink
from worker.inference.token_stream import TokenStream
from worker.lifecycle import JobContext


@dataclass(frozen=True, slots=True)
class RequestPrompts:
    """Prompts of a request in order, and the SHA-256 of the file that they were read from, if any."""

    entries: list[PromptEntry]
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a job that one session runs: its name as a progress stage, and the index of its first output in the job."""

    stage: str = "generating"
    first_index: int = 0


ALL = Slice()


def prompts_of(request: GenerateRequest, store: ModelStore) -> RequestPrompts:
    """Returns the prompts of a request, or its conversation as the only one.

    Raises:
        SourceNotFound, InvalidName: there is no such file.
        UnreadableFile, InvalidText: see `read_prompt_file`.
    """
    if request.messages is not None:
        return RequestPrompts([PromptEntry(messages=tuple(request.messages))])
    if request.prompts_file is not None:
        file = read_prompt_file(store.incoming(request.prompts_file), request.prompts_file)
        return RequestPrompts(file.prompts, file.digest)
    if request.prompt_token_ids is not None:
        return RequestPrompts([PromptEntry(prompt_token_ids=tuple(ids)) for ids in request.token_id_prompts])
    prompts = [request.prompt] if request.prompt is not None else request.prompts or []
    return RequestPrompts([PromptEntry(prompt=prompt) for prompt in prompts])


class OutputCollector:
    """Collects the outputs of all prompts of a request, in any order, and reports progress.

    A prompt is identified by its number, an output by the prompt's number and its index among the prompt's `n` outputs.
    """

    def __init__(
        self,
        request: GenerateRequest,
        context: JobContext,
        prompts: RequestPrompts,
        *,
        model: str,
        part: Slice = ALL,
    ) -> None:
        """`model` identifies the model: outputs in a file are reused only for the same file, request and model.

        Raises:
            ExecutionSuperseded, JobCanceled, OSError: see `JsonlSink`.
        """
        self.prompts = prompts.entries
        self.tokens = 0
        self.first_error: GraftwerkError | None = None
        self._request, self._execution, self._part = request, context.execution, part
        self._n, self._limit = request.sampling.n, request.sampling.max_new_tokens
        count = len(prompts.entries)
        self.sink: ResultSink = MemorySink(count)
        if prompts.digest is not None:
            self.sink = JsonlSink(context, _digest(request, prompts.digest, model), count)
        self.unfinished = sorted(set(range(count)) - self.sink.completed)
        self._finished = len(self.sink.completed)
        self._partial: dict[int, list[Output]] = defaultdict(list)
        self._limits: dict[int, int] = {}
        self._expected_tokens = len(self.unfinished) * self._n * self._limit
        self._stream: TokenStream | None = None
        if count * self._n <= MAX_STREAMED_OUTPUTS:
            publish = context.execution.publish_tokens
            self._stream = TokenStream(publish, with_token_ids=request.return_token_ids)
        self._started = time.monotonic()

    # ---- outputs --------------------------------------------------------------------------------------

    def begin(self, number: int, *, prompt_tokens: int, max_new_tokens: int) -> None:
        """Begins the outputs of a prompt; their limit of new tokens may be below the request's."""
        if self._stream is not None:
            for index in range(self._n):
                self._stream.begin(self._index(number, index), prompt_tokens)
        self._limits[number] = max_new_tokens
        self._expected_tokens -= (self._limit - max_new_tokens) * self._n

    def add_token(
        self,
        number: int,
        index: int,
        text: str,
        *,
        token_id: int | None = None,
        logprobs: Sequence[Logprob] = (),
    ) -> None:
        """Takes one token of an output and the text that it completes."""
        self.tokens += 1
        self.add_text(number, index, text, token_id=token_id, logprobs=logprobs)

    def add_text(
        self,
        number: int,
        index: int,
        text: str,
        *,
        token_id: int | None = None,
        logprobs: Sequence[Logprob] = (),
    ) -> None:
        """Takes new text of an output without counting a token."""
        if self._stream is not None:
            self._stream.add(self._index(number, index), text, token_id=token_id, logprobs=logprobs)

    def add_parts(self, number: int, index: int, *, reasoning: str, calls: Sequence[ToolCallPiece]) -> None:
        """Takes new thinking and new calls of an output."""
        if self._stream is not None:
            self._stream.add_parts(self._index(number, index), reasoning=reasoning, calls=calls)

    def finish(self, number: int, output: Output, *, written: int, counted: int) -> None:
        """Takes a complete output of `written` tokens; `counted` of them were given to `add_token`."""
        self._count(number, written, counted)
        if self._stream is not None and output.finish_reason is not None:
            self._stream.finish(self._index(number, output.index), output.finish_reason)
        self._add(number, output)

    def fail(self, number: int, error: GraftwerkError, *, counted: int = 0) -> None:
        """Takes an error in place of one output."""
        self._count(number, 0, counted)
        self._add(number, self._failed(number, error))

    def refuse(self, number: int, error: GraftwerkError) -> None:
        """Takes an error in place of all outputs of a prompt."""
        self._expected_tokens -= self._limits.get(number, self._limit) * self._n
        self._store(number, [self._failed(number, error)])

    def is_finished(self, number: int) -> bool:
        """Returns True once a prompt that has an output has all of them."""
        return number not in self._partial

    # ---- reports --------------------------------------------------------------------------------------

    def report(self, waiting_for: WaitingFor | None = None) -> None:
        """Saves complete outputs, reports progress, and the reason if all prompts wait, and publishes new text. Raises OSError."""
        self.sink.save()
        progress = self._progress()
        if waiting_for is not None:
            progress = replace(progress, stage=f"waiting for {waiting_for.what}")
        self._execution.report(progress, waiting_for)
        if self._stream is not None:
            self._stream.flush_if_due()

    def computed(
        self,
        *,
        engine: Engine,
        template: str,
        device: str | None = None,
        dtype: str | None = None,
        backend: str | None = None,
        adapters: AdapterUse | None = None,
        ignored: Sequence[str] = (),
    ) -> ComputedBy:
        """Publishes the rest of the text, and returns engine, device and speed of the generation."""
        if self._stream is not None:
            self._stream.flush()
        seconds = time.monotonic() - self._started
        return ComputedBy(
            template=template,
            seconds=round(seconds, 3),
            tokens_per_second=round(self.tokens / seconds, 2),
            device=device,
            dtype=dtype,
            backend=backend,
            engine=engine,
            adapters=adapters,
            **({"ignored": list(ignored)} if ignored else {}),
        )

    def raise_if_all_failed(self) -> None:
        """Raises the first error if every prompt failed."""
        if self.first_error is not None and not self.sink.answered:
            raise self.first_error

    # ---- details --------------------------------------------------------------------------------------

    def _index(self, number: int, index: int) -> int:
        """Returns the index of an output among all outputs of the job."""
        return self._part.first_index + number * self._n + index

    def _count(self, number: int, written: int, counted: int) -> None:
        self.tokens += written - counted
        self._expected_tokens -= self._limits.get(number, self._limit) - written

    def _add(self, number: int, output: Output) -> None:
        outputs = self._partial[number]
        outputs.append(output)
        if len(outputs) == self._n:
            self._store(number, sorted(self._partial.pop(number), key=lambda output: output.index))

    def _store(self, number: int, outputs: list[Output]) -> None:
        self._limits.pop(number, None)
        self._finished += 1
        self.sink.add(number, self.prompts[number].text, outputs)

    def _failed(self, number: int, error: GraftwerkError) -> Output:
        self.first_error = self.first_error or error
        failure = Failure(code=error.code, message=error.message, hint=error.hint)
        return Output(prompt=self.prompts[number].text, error=failure)

    def _progress(self) -> Progress:
        """Returns the progress in tokens; in prompts for a file of prompts, most of which end before their limit."""
        if self._request.prompts_file is not None:
            return Progress(self._part.stage, self._finished, len(self.prompts), "prompts")
        total = max(self.tokens, self._expected_tokens)
        if self._limit == NO_TOKEN_LIMIT <= total:
            total = 0  # not known before the prompt is built
        return Progress(self._part.stage, self.tokens, total, "tokens")


NOT_IN_THE_DIGEST = {"after", "metadata", "webhook"}
"""Fields on which no output depends."""

NEWER_FIELDS = (
    "prompt_token_ids", "score_prompt", "response_format", "guided_regex", "exact", "tools", "tool_choice",
    "parallel_tool_calls", "chat_template_kwargs",
)  # fmt: skip
"""Fields that a file of outputs from an earlier version does not know: they count only if they request something."""


def _digest(request: GenerateRequest, prompts_digest: str, model: str) -> str:
    """Returns the SHA-256 of what the outputs of a file of prompts depend on: file, request and model."""
    unused = {name for name in NEWER_FIELDS if not getattr(request, name)}
    fields = request.model_dump_json(exclude=NOT_IN_THE_DIGEST | unused)
    return hashlib.sha256(f"{prompts_digest}\n{fields}\n{model}".encode()).hexdigest()
