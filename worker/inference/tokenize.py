"""Session of a tokenize job: some texts per step, all of them together as the result. No model is loaded."""

from collections.abc import Sequence
from concurrent.futures import Future, wait

from services.errors import InvalidRequest
from services.generate import BuiltPrompt, Event
from services.isolation.process import Steps, advance
from services.kinds.tokenize import TokenizeRequest, TokenizeResult
from services.models.prompt_file import PromptEntry
from services.preflight.plan import NO_ARCHIVES, NO_SERVERS, Inputs
from services.preflight.tokenize import TokenizerSource, tokenizer_source
from services.progress import Progress
from services.templates import OWN_TEMPLATE
from worker.inference.cached_model import CachedModel
from worker.inference.prompt_builder import PromptBuilder
from worker.inference.tokenizer_cache import LoadedTokenizer, loading_tokenizer
from worker.lifecycle import JobContext

STEP_SIZE = 100_000
"""Characters or token ids after which a step ends: streams of other jobs wait for it."""

WAIT_SECONDS = 0.01
"""Longest time that a step waits for a tokenizer: one that is loaded already takes less."""

OUTPUT_CHARACTERS = 16_000_000
"""Most characters of the texts of a job; a damaged vocabulary may have tokens of any length."""


class TokenizeSession:
    """Turns the texts or the conversation of one tokenize request into token ids, or its token ids into texts."""

    has_prompts = False

    def __init__(self, request: TokenizeRequest, context: JobContext) -> None:
        self._request, self._context = request, context
        self._inputs: Sequence[str] | Sequence[list[int]] = request.texts or request.token_ids or []
        self._count = len(self._inputs) if request.messages is None else 1
        self._ids: list[list[int]] = []
        self._texts: list[str] = []
        self._characters = 0
        self._loading: Future[LoadedTokenizer] | None = None
        self._builder: PromptBuilder | None = None
        self._building: Steps[tuple[BuiltPrompt, int | None]] | None = None
        self._template: str | None = None

    @property
    def done(self) -> bool:
        """True once every text has its token ids, or the other way round."""
        return len(self._ids) == self._count

    @property
    def _loaded(self) -> LoadedTokenizer:
        """The tokenizer. Raises why it could not be loaded."""
        assert self._loading is not None  # the first step begins with it
        return self._loading.result()

    def _source(self) -> TokenizerSource:
        inputs = Inputs(self._request, self._context.store, (), NO_ARCHIVES, NO_SERVERS)
        return tokenizer_source(self._request, inputs)

    def needs(self) -> None:
        """Returns None: the job runs on no model."""

    def attach(self, model: CachedModel) -> None:
        """Does nothing: the session needs no model."""

    def step(self) -> None:
        """Turns the next texts or token ids, once the tokenizer is loaded.

        Raises:
            UnreadableTokenizer: the tokenizer is damaged.
            InvalidRequest: a token id is beyond the vocabulary, the texts become too long, or the conversation's template
                cannot express it.
            TemplateLimitExceeded: rendering the model's own template reached a limit.
            GraftwerkError: as `tokenizer_source`.
        """
        self._loading = self._loading or loading_tokenizer(self._source)
        wait([self._loading], WAIT_SECONDS)
        if not self._loading.done():
            return
        if self._request.messages is not None:
            self._build()
            return
        size = 0
        while not self.done and size < STEP_SIZE:
            given = self._inputs[len(self._ids)]
            size += len(given)
            self._encode(given) if isinstance(given, str) else self._decode(given)

    def _build(self) -> None:
        """Goes on building the prompt of the conversation."""
        request = self._request.conversation
        adds_prompt = self._request.add_generation_prompt is not False
        if self._builder is None or self._building is None:
            self._builder = PromptBuilder(
                request, self._loaded.model, self._context.store, add_generation_prompt=adds_prompt
            )
            self._building = self._builder.build(PromptEntry(messages=tuple(request.messages or ())))
        built = advance(self._building)
        if built is None:
            return
        prompt, _ = built
        if not adds_prompt and prompt.template != OWN_TEMPLATE:
            raise InvalidRequest(
                f"The template {prompt.template} always ends with the beginning of an answer.",
                "Leave add_generation_prompt out, or use a model that has a chat template of its own.",
            )
        self._template = prompt.template
        self._ids.append(prompt.token_ids)

    def _encode(self, text: str) -> None:
        add_bos = None if self._request.add_special_tokens else False
        tokenizer = self._loaded.tokenizer
        self._ids.append(tokenizer.encode(text, add_bos=add_bos, parse_special=self._request.parse_special))

    def _decode(self, token_ids: list[int]) -> None:
        tokenizer, number = self._loaded.tokenizer, len(self._ids)
        size = tokenizer.vocabulary_size
        at = next((at for at, token_id in enumerate(token_ids) if token_id >= size), None)
        if at is not None:
            raise InvalidRequest(
                f"token_ids[{number}] has {token_ids[at]} at position {at}, and the tokenizer has {size} tokens.",
                f"Send ids from 0 to {size - 1}, of the model's own tokenizer.",
            )
        self._characters += sum(len(tokenizer.piece(token_id)) for token_id in token_ids)
        if self._characters > OUTPUT_CHARACTERS:
            raise InvalidRequest(
                f"The texts of token_ids have {self._characters} characters up to list {number}; at most "
                f"{OUTPUT_CHARACTERS} are returned.",
                "Send fewer ids in one job.",
            )
        self._texts.append(tokenizer.decode(token_ids, skip_special=False))
        self._ids.append(token_ids)

    def on_event(self, event: Event) -> None:
        """Ignores it: the session submits nothing to an engine."""

    def report(self) -> None:
        """Reports the number of texts that are done."""
        self._context.execution.report(Progress("tokenizing", len(self._ids), self._count, "texts"))

    def result(self) -> TokenizeResult:
        """Returns token ids or texts in the order of the request."""
        found: dict[str, object] = (
            {"token_ids": self._ids} if self._request.token_ids is None else {"texts": self._texts}
        )
        if self._request.return_pieces:
            piece = self._loaded.tokenizer.piece
            found["pieces"] = [[piece(token_id) for token_id in ids] for ids in self._ids]
        if self._builder is not None:
            found["template"] = self._template
        if self._builder is not None and self._builder.ignored:
            found["ignored"] = sorted(self._builder.ignored)
        return TokenizeResult.model_validate({**found, "tokenizer": self._loaded.facts})

    def cancel(self) -> None:
        """Does nothing: a step is short."""

    def close(self) -> None:
        """Ends the rendering of a template."""
        if self._building is not None:
            self._building.close()


def open_session(request: TokenizeRequest, context: JobContext) -> TokenizeSession:
    """Returns the session of a tokenize job."""
    return TokenizeSession(request, context)
