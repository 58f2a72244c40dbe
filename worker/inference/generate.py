"""Session of a generate job, or of one variant of a compare job: prompts to an engine, outputs to the result."""

import secrets
from collections import deque

from services.chat_output import OutputParser, OutputParts
from services.errors import GraftwerkError, InvalidRequest, TemplateLimitExceeded
from services.generate import (
    BuiltPrompt,
    Event,
    GenerationRequest,
    OutputFailed,
    OutputFinished,
    TokenGenerated,
)
from services.isolation.process import Steps, advance
from services.jobs.status import WaitingFor
from services.kinds.generate import ComputedBy, GenerateRequest, GenerateResult
from services.progress import Progress
from services.sampling import SEED_BITS
from worker.inference.cached_model import CachedModel
from worker.inference.engine_choice import generating_key
from worker.inference.finished_output import OpenPrompt, OutputWriter
from worker.inference.model_key import ModelKey
from worker.inference.output_collector import ALL, OutputCollector, Slice, prompts_of
from worker.inference.output_form import grammar_for, pieces_of, shown_tokens
from worker.inference.prompt_builder import PromptBuilder
from worker.lifecycle import JobContext

MAX_SCORED_TOKENS = 100_000
"""Most tokens of all prompts whose log-probabilities one job returns: its result is one record in Redis."""


class GenerateSession:
    """Generates the outputs of one generate request on a loaded model."""

    outputs: OutputCollector  # this and the following are set by `attach`
    model: CachedModel
    _builder: PromptBuilder
    _writer: OutputWriter

    def __init__(self, request: GenerateRequest, context: JobContext, part: Slice = ALL) -> None:
        """Reads the prompts.

        Raises:
            SourceNotFound, InvalidName, UnreadableFile, InvalidText: see `prompts_of`.
        """
        self._request, self._context, self._part = request, context, part
        self._prompts = prompts_of(request, context.store)
        self._key: ModelKey | None = None
        self._waiting: deque[int] = deque()
        self._building: tuple[int, Steps[tuple[BuiltPrompt, int | None]]] | None = None
        self._open: dict[str, OpenPrompt] = {}  # by the engine's request id
        self._parsers: dict[
            tuple[str, int], OutputParser
        ] = {}  # by the engine's request id, and the output's index
        self._template = ""
        self._scored = 0

    @property
    def done(self) -> bool:
        """True once every prompt has its outputs."""
        return self._key is not None and not (self._waiting or self._building or self._open)

    @property
    def has_prompts(self) -> bool:
        """True while prompts wait for a free slot of the engine, and none is being built."""
        return bool(self._waiting) and self._building is None

    def needs(self) -> ModelKey | None:
        """Returns the key of the request's model. Raises ModelNotFound."""
        return self._key or generating_key(
            self._request, self._context.store, self._context.settings.generate_engine
        )

    def attach(self, model: CachedModel) -> None:
        """Starts on this model. Raises ExecutionSuperseded, JobCanceled, OSError."""
        self.model = model
        self.outputs = OutputCollector(
            self._request, self._context, self._prompts, model=_identity(model), part=self._part
        )
        self._builder = PromptBuilder(
            self._request, model.loaded, self._context.store, most_tokens=model.engine.most_tokens
        )
        self._writer = OutputWriter(self._request, model.loaded.tokenizer)
        self._waiting.extend(self.outputs.unfinished)
        self._key = model.key

    def step(self) -> None:
        """Builds and submits the next prompt if a slot is free, or goes on building one whose template is being rendered.

        A prompt that is refused gets its error as its output.

        Raises:
            TemplateLimitExceeded: the model's own template reached a limit, as it would with every other prompt.
        """
        if self._building is None and self._waiting and self.model.engine.free_slots:
            number = self._waiting.popleft()
            self._building = number, self._builder.build(self._prompts.entries[number])
        if self._building is not None:
            self._go_on(*self._building)

    def on_event(self, event: Event) -> None:
        """Takes an event of one of the open prompts; events of other requests are ignored."""
        opened = self._open.get(event.request_id)
        if opened is None:
            return
        match event:
            case TokenGenerated():
                self._on_token(opened, event)
                return
            case OutputFinished():
                written = len(event.output.token_ids)
                output = self._writer.output(opened, event.output, self._ended(opened, event))
                self.outputs.finish(opened.number, output, written=written, counted=written)
            case OutputFailed():
                self.outputs.fail(opened.number, event.error)
        if self.outputs.is_finished(opened.number):
            del self._open[event.request_id]

    def _on_token(self, opened: OpenPrompt, event: TokenGenerated) -> None:
        parser = self._parser(opened, event.request_id, event.index)
        before = len(parser.parts.calls)
        parts = parser.feed(event.text)
        self.outputs.add_token(
            opened.number,
            event.index,
            parts.text,
            token_id=event.token_id,
            logprobs=[] if event.logprob is None else [self._writer.logprob(event.logprob)],
        )
        self._publish_parts(opened, event.index, parts, before)
        if parser.is_done and not opened.prompt.form.is_required:  # else the grammar ends it
            self.model.engine.finish(event.request_id, event.index)

    def _ended(self, opened: OpenPrompt, event: OutputFinished) -> OutputParser:
        """Returns the parser of a finished output, with all of its text."""
        parser = self._parser(opened, event.request_id, event.index)
        del self._parsers[event.request_id, event.index]
        if event.output.text and not parser.has_read:  # a beam search has no events of tokens
            parser.feed(event.output.text)
        before = len(parser.parts.calls)
        parts = parser.finish()
        if parts.text:
            self.outputs.add_text(opened.number, event.index, parts.text)
        self._publish_parts(opened, event.index, parts, before)
        return parser

    def _parser(self, opened: OpenPrompt, request_id: str, index: int) -> OutputParser:
        place = request_id, index
        if place not in self._parsers:
            self._parsers[place] = OutputParser(opened.prompt.form)
        return self._parsers[place]

    def _publish_parts(self, opened: OpenPrompt, index: int, parts: OutputParts, first: int) -> None:
        if not parts.reasoning and not parts.calls:
            return
        calls = pieces_of(opened.prompt.form, parts.calls, first=first, seed=opened.call_seed(index))
        self.outputs.add_parts(opened.number, index, reasoning=parts.reasoning, calls=calls)

    def report(self) -> None:
        """Saves complete outputs, reports progress and publishes new text. Raises OSError."""
        stage = self.model.engine.stage
        if stage is None:
            self.outputs.report(self._waiting_for())
        else:
            self._context.execution.report(Progress(stage))

    def result(self) -> GenerateResult:
        """Returns the result. Raises the first error if every prompt failed."""
        self.outputs.raise_if_all_failed()
        return self.outputs.sink.result(self.computed())

    def computed(self) -> ComputedBy:
        """Publishes the rest of the text, and returns device and speed of the generation."""
        # If an earlier execution completed all outputs, no prompt has been built.
        template = self._template or self._builder.template(self._prompts.entries[0])
        loaded = self.model.loaded
        return self.outputs.computed(
            engine=self.model.key.engine,
            template=template,
            device=loaded.device_name,
            dtype=loaded.dtype_name,
            adapters=self.model.adapters,
            ignored=sorted(self._builder.ignored),
        )

    def cancel(self) -> None:
        """Ends the open requests with the engine's next step. May be called from any thread."""
        for request_id in list(self._open):
            self.model.engine.cancel(request_id)

    def close(self) -> None:
        """Ends the rendering of a template, and closes the file of results, if there is one."""
        if self._building is not None:
            self._building[1].close()
        if self._key is not None:
            self.outputs.sink.close()

    def _waiting_for(self) -> WaitingFor | None:
        shortage = self.model.engine.memory_shortage(self._open.keys()) if self._open else None
        if shortage is None:
            return None
        return WaitingFor(
            what="memory",
            message=f"An output needs {shortage.needed_bytes} bytes for keys and values; running ones hold "
            f"{shortage.held_bytes} of {shortage.limit_bytes}.",
        )

    def _go_on(self, number: int, building: Steps[tuple[BuiltPrompt, int | None]]) -> None:
        try:
            built = advance(building)
            if built is None:
                return
            self._submit(number, *built)
        except TemplateLimitExceeded:
            raise
        except GraftwerkError as error:
            self.outputs.refuse(number, error)
        self._building = None

    def _submit(self, number: int, prompt: BuiltPrompt, dropped: int | None) -> None:
        self._template = prompt.template
        sampling = self._builder.fit(prompt)
        special = self.model.loaded.tokenizer.special_tokens
        request = GenerationRequest(
            prompt.token_ids,
            sampling,
            # The form alone determines the end: a stop string would cut it.
            stop=() if self._request.is_guided else prompt.stop,
            stop_token_ids=prompt.stop_token_ids | frozenset(sampling.stop_token_ids or ()),
            prompt_logprobs=self._prompt_logprobs(prompt),
            grammar=grammar_for(self._request, prompt.form, special),
            shown_ids=shown_tokens(prompt.form, special),
        )
        request_id = self.model.submit(request, owner=self._context.execution.name)
        seed = secrets.randbits(SEED_BITS) if sampling.seed is None else sampling.seed
        self._open[request_id] = OpenPrompt(number, prompt, self._text_of(number), dropped, seed)
        self.outputs.begin(
            number, prompt_tokens=len(prompt.token_ids), max_new_tokens=sampling.max_new_tokens
        )

    def _text_of(self, number: int) -> str:
        entry = self._prompts.entries[number]
        if entry.prompt_token_ids is None:
            return entry.text
        return self.model.loaded.tokenizer.decode(entry.prompt_token_ids)

    def _prompt_logprobs(self, prompt: BuiltPrompt) -> int | None:
        """Returns the number of most likely tokens next to each scored one, None if nothing is scored."""
        if not self._request.score_prompt:
            return None
        self._scored += len(prompt.token_ids)
        if self._scored > MAX_SCORED_TOKENS:
            raise InvalidRequest(
                f"The prompts have more than {MAX_SCORED_TOKENS} tokens together, which is the most that one job scores.",
                "Split the request into several, or use a perplexity job for a long text.",
            )
        return self._request.sampling.logprobs or 0


def open_session(request: GenerateRequest, context: JobContext) -> GenerateSession:
    """Returns the session of a generate job on a model of the volume. Raises as `GenerateSession` does."""
    return GenerateSession(request, context)


def _identity(model: CachedModel) -> str:
    """Returns what identifies a model and its engine among those of a file of outputs."""
    key = model.key
    engine = "" if key.engine == "graftwerk" else f" {key.engine}"
    return f"{key}{engine}{' unmerged' if model.stack is not None else ''}"
