"""Session of a tokenize job: some texts per step, all of them together as the result. No model is loaded."""

from collections.abc import Sequence
from functools import cached_property

from services.errors import InvalidRequest
from services.generate import Event
from services.kinds.tokenize import TokenizeRequest, TokenizeResult
from services.preflight.plan import NO_ARCHIVES, NO_SERVERS, Inputs
from services.preflight.tokenize import tokenizer_source
from services.progress import Progress
from worker.inference.model_cache import CachedModel
from worker.inference.tokenizer_cache import LoadedTokenizer, tokenizer_of
from worker.lifecycle import JobContext

STEP_SIZE = 100_000
"""Characters or token ids after which a step ends: streams of other jobs wait for it."""

OUTPUT_CHARACTERS = 16_000_000
"""Most characters of the texts of a job; a damaged vocabulary may have tokens of any length."""


class TokenizeSession:
    """Turns the texts of one tokenize request into token ids, or its token ids into texts."""

    has_prompts = False

    def __init__(self, request: TokenizeRequest, context: JobContext) -> None:
        self._request, self._context = request, context
        self._inputs: Sequence[str] | Sequence[list[int]] = request.texts or request.token_ids or []
        self._ids: list[list[int]] = []
        self._texts: list[str] = []
        self._characters = 0

    @property
    def done(self) -> bool:
        """True once every text has its token ids, or the other way round."""
        return len(self._ids) == len(self._inputs)

    @cached_property
    def _loaded(self) -> LoadedTokenizer:
        inputs = Inputs(self._request, self._context.store, (), NO_ARCHIVES, NO_SERVERS)
        return tokenizer_of(tokenizer_source(self._request, inputs))

    def needs(self) -> None:
        """Returns None: the job runs on no model."""

    def attach(self, model: CachedModel) -> None:
        """Does nothing: the session needs no model."""

    def step(self) -> None:
        """Turns the next texts or token ids.

        Raises:
            UnreadableTokenizer: the tokenizer is damaged.
            InvalidRequest: a token id is beyond the vocabulary, or the texts become too long.
            GraftwerkError: as `tokenizer_source`.
        """
        size = 0
        while not self.done and size < STEP_SIZE:
            given = self._inputs[len(self._ids)]
            size += len(given)
            self._encode(given) if isinstance(given, str) else self._decode(given)

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
        self._context.execution.report(Progress("tokenizing", len(self._ids), len(self._inputs), "texts"))

    def result(self) -> TokenizeResult:
        """Returns token ids or texts in the order of the request."""
        found: dict[str, object] = (
            {"texts": self._texts} if self._request.texts is None else {"token_ids": self._ids}
        )
        if self._request.return_pieces:
            piece = self._loaded.tokenizer.piece
            found["pieces"] = [[piece(token_id) for token_id in ids] for ids in self._ids]
        return TokenizeResult.model_validate({**found, "tokenizer": self._loaded.facts})

    def cancel(self) -> None:
        """Does nothing: a step is short."""

    def close(self) -> None:
        """Does nothing."""


def open_session(request: TokenizeRequest, context: JobContext) -> TokenizeSession:
    """Returns the session of a tokenize job."""
    return TokenizeSession(request, context)
