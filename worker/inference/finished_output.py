"""Finished outputs of the engine as outputs of a result: thinking and calls apart, log-probabilities, usage."""

import math
from dataclasses import dataclass
from typing import Any

from services.chat_output import OutputParser
from services.generate import BuiltPrompt, Completion, TokenLogprob
from services.kinds.generate import GenerateRequest, Logprob, Output
from services.kinds.shared import Usage
from services.tokenizers import Tokenizer
from worker.inference.output_form import calls_of, warnings_of


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """A prompt that the engine works on.

    Attributes:
        number: Its place among the request's prompts.
        prompt: Its tokens, and the form of its outputs.
        text: Its text as the result has it.
        dropped_turns: Number of turns that were left out to fit the context, None if none may be.
        seed: The request's, or a random one: the ids of calls follow from it.
    """

    number: int
    prompt: BuiltPrompt
    text: str
    dropped_turns: int | None
    seed: int

    def call_seed(self, index: int) -> str:
        """Returns the seed of the ids of an output's calls."""
        return f"{self.seed} {self.number} {index}"


class OutputWriter:
    """Writes the outputs of one request on one model."""

    def __init__(self, request: GenerateRequest, tokenizer: Tokenizer) -> None:
        """Keeps the special tokens, which log-probabilities name."""
        self._request = request
        self._special_ids = frozenset(tokenizer.special_tokens.values())

    def output(self, opened: OpenPrompt, completion: Completion, parser: OutputParser) -> Output:
        """Returns a finished output, whose text the parser has read to its end."""
        form, parts = opened.prompt.form, parser.parts
        fields: dict[str, Any] = {}
        reason: str = completion.finish_reason
        if parts.reasoning:
            fields["reasoning"] = parts.reasoning
        if parts.calls:
            fields["tool_calls"] = calls_of(form, parts.calls, seed=opened.call_seed(completion.index))
            reason = "tool_calls" if reason == "stop" else reason
        warnings = warnings_of(parser)
        if warnings:
            fields["warnings"] = warnings
        if completion.prompt_logprobs is not None:
            fields["prompt_logprobs"] = [self.logprob(item) for item in completion.prompt_logprobs]
        if self._request.return_token_ids:
            fields["prompt_token_ids"] = list(opened.prompt.token_ids)
            fields["token_ids"] = completion.token_ids
        if opened.dropped_turns is not None:
            fields["dropped_turns"] = opened.dropped_turns
        if completion.stop_string is not None:
            fields["stop_string"] = completion.stop_string
        if completion.logprobs is not None:
            fields["logprobs"] = [self.logprob(item) for item in completion.logprobs]
        # Not validated: the values are the engine's own, and there may be a thousand of them.
        return Output.model_construct(
            prompt=opened.text,
            index=completion.index,
            text=parts.text,
            finish_reason=reason,
            usage=self._usage(completion, parser, thinks=form.thinks),
            seed=completion.seed,
            **fields,
        )

    def logprob(self, item: TokenLogprob) -> Logprob:
        """Returns the log-probability of a token, and those of the most likely ones in its place."""
        fields: dict[str, Any] = {}
        if item.token_id in self._special_ids:
            fields["special"] = True
        if item.top:
            fields["top"] = [self.logprob(other) for other in item.top]
        value = item.logprob if item.logprob is not None and math.isfinite(item.logprob) else None
        return Logprob.model_construct(token=item.piece, token_id=item.token_id, logprob=value, **fields)

    def _usage(self, completion: Completion, parser: OutputParser, *, thinks: bool) -> Usage:
        written = len(completion.token_ids)
        fields = {}
        if thinks and self._request.sampling.num_beams == 1:  # beams are not read token by token
            fields["reasoning_tokens"] = min(parser.reasoning_tokens, written)
        return Usage(
            **fields,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=written,
            total_tokens=completion.prompt_tokens + written,
        )
