"""State of one sequence: its tokens, its text, its end. Every change of state happens here."""

from collections.abc import Sequence

import torch

from services.errors import GraftwerkError, NonFiniteLogits, UnsupportedSchema
from services.generate.guide import Guide
from services.generate.request import (
    Completion,
    Event,
    FinishReason,
    GenerationRequest,
    OutputFailed,
    OutputFinished,
    TokenGenerated,
    TokenLogprob,
)
from services.generate.sampler import Choice, Sampler, seed_of_output
from services.generate.stop_strings import StopStringFilter
from services.tokenizers import Tokenizer


class SequenceState:
    """Output number `index` of a request while it is generated."""

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        *,
        index: int,
        seed: int,
        guide: Guide | None = None,
    ) -> None:
        self.request = request
        self.index = index
        self.seed = seed_of_output(seed, index)
        self.token_ids: list[int] = []
        self.is_finished = False
        self._tokenizer = tokenizer
        self._guide = guide
        self.end_ids = tokenizer.eos_ids | request.stop_token_ids
        self._sampler = Sampler(
            request.sampling, request.prompt_token_ids, end_ids=self.end_ids, seed=self.seed
        )
        self.stop_strings = (*request.sampling.stop, *request.stop)
        self._text = self.new_stop_filter()
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def is_full(self) -> bool:
        """True once the output has the maximum number of tokens."""
        return len(self.token_ids) >= self.request.sampling.max_new_tokens

    def new_stop_filter(self) -> StopStringFilter:
        """Returns a filter for the text of a new output."""
        decoder = self._tokenizer.stream_decoder(shown=self.request.shown_ids)
        return StopStringFilter(decoder, self.stop_strings)

    def take_prompt_scores(self, choices: Sequence[Choice]) -> None:
        """Takes the scores of the prompt's tokens, which the output carries."""
        self._prompt_logprobs = [self._with_pieces(choice) for choice in choices]

    def advance(self, logits: torch.Tensor) -> list[Event]:
        """Chooses the next token from its logits (vocabulary,) and returns its events, including the end."""
        if not is_finite(logits):
            return [self.fail(_non_finite(logits, len(self.token_ids)))]
        if self._guide is None:
            return self.accept(self._sampler.choose(logits))
        try:
            return self.accept(self._sampler.choose(logits, self._guide.allowed(self.end_ids)))
        except UnsupportedSchema as error:
            return [self.fail(error)]

    def accept(self, choice: Choice) -> list[Event]:
        """Appends a token and returns its events; finishes the output if the token ends it."""
        self.token_ids.append(choice.token_id)
        is_end = choice.token_id in self.end_ids
        text = "" if is_end else self._text.feed(choice.token_id)
        is_complete = self._guide is not None and not is_end and self._guide.take(choice.token_id)
        reason: FinishReason | None = "stop" if is_end or is_complete or self._text.stopped else None
        if reason is None and self.is_full:
            reason = "length"
        if reason is not None:
            text += self._text.finish()
            reason = "stop" if self._text.stopped else reason
        logprob = self._logprob(choice)
        events: list[Event] = [
            TokenGenerated(self.request.id, self.index, choice.token_id, text, logprob=logprob)
        ]
        return [*events, self.finish(reason)] if reason else events

    def finish(self, reason: FinishReason) -> OutputFinished:
        """Ends the output. Text that a canceled output held back is dropped."""
        self.is_finished = True
        output = Completion(
            index=self.index,
            token_ids=self.token_ids,
            text=self._text.text,
            finish_reason=reason,
            stop_string=self._text.matched,
            prompt_tokens=len(self.request.prompt_token_ids),
            seed=self.seed,
            logprobs=None if self.request.sampling.logprobs is None else self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
        )
        return OutputFinished(self.request.id, self.index, output)

    def fail(self, error: GraftwerkError) -> OutputFailed:
        """Ends the output with an error."""
        self.is_finished = True
        return OutputFailed(self.request.id, self.index, error)

    def _logprob(self, choice: Choice) -> TokenLogprob | None:
        if choice.logprob is None:
            return None
        self._logprobs.append(self._with_pieces(choice))
        return self._logprobs[-1]

    def _with_pieces(self, choice: Choice) -> TokenLogprob:
        piece = self._tokenizer.piece
        top = tuple(TokenLogprob(token_id, piece(token_id), value) for token_id, value in choice.top)
        return TokenLogprob(choice.token_id, piece(choice.token_id), choice.logprob, top)


def is_finite(logits: torch.Tensor) -> bool:
    """Returns True if no value is NaN or infinite. A finite sum proves it and takes a tenth of the time."""
    return bool(logits.sum().isfinite()) or bool(logits.isfinite().all())


def _non_finite(logits: torch.Tensor, position: int) -> NonFiniteLogits:
    count = int((~logits.isfinite()).sum())
    return NonFiniteLogits(
        f"The model computed NaN or infinity for {count} of {len(logits)} scores of token {position + 1}.",
        "Its weights are damaged, or float16 overflows: verify the model, or load it as float32 or bfloat16.",
    )
