"""Grammars while outputs are generated: the tokens that may follow, as llguidance finds them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from llguidance import LLMatcher, LLTokenizer

from services.errors import UnsupportedSchema
from services.grammar import Grammar, compile_grammar, raise_error_of
from services.tokenizers import Tokenizer

CACHED_GRAMMARS = 8
"""Compiled grammars that a model keeps: the prompts of a job share one."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes of a model's tokens for llguidance, and an end of its own with the id `eos_token_id`.

    Tokens with no bytes are never allowed: special tokens do not occur within an output, and those that end it depend on
    the request.
    """

    tokens: Sequence[bytes]
    eos_token_id: int
    bos_token_id: int | None = None
    special_token_ids: Sequence[int] = ()
    is_tokenizer_wrapper: bool = True

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("a grammar whose parts are not forced needs no tokenizer")


class Guide:
    """The part of one output's grammar that is left."""

    def __init__(self, plain: LLMatcher, spaced: LLMatcher | None, spaces: torch.Tensor) -> None:
        """Begins an output.

        Args:
            plain: at the beginning of the grammar.
            spaced: the same after a space; None if no token loses its space at the beginning of a text.
            spaces: (vocabulary + 1,), bool: the tokens that do.
        """
        self._matcher, self._spaced, self._spaces = plain, spaced, spaces

    def allowed(self, end_ids: Iterable[int]) -> torch.Tensor:
        """Returns the tokens that may follow, (vocabulary,), bool; `end_ids` may follow once the grammar is complete.

        Raises:
            UnsupportedSchema: the grammar is too large for the next step, or no token fits.
        """
        mask = _mask(self._matcher)
        if self._spaced is not None:
            mask = torch.where(self._spaces, _mask(self._spaced), mask)
        # llguidance allows its end wherever a special token may follow
        may_end, mask = bool(mask[-1]) and self._matcher.is_accepting(), mask[:-1]
        mask[list(end_ids)] = may_end
        if not bool(mask.any()):
            raise UnsupportedSchema(
                "The JSON schema or regular expression cannot be enforced: no token of the model ends or continues the output.",
                "Allow texts that the model's vocabulary can write.",
            )
        return mask

    def take(self, token_id: int) -> bool:
        """Takes a token that is not an end; returns True if nothing can follow it.

        Raises:
            UnsupportedSchema: the grammar is too large for this step.
        """
        if self._spaced is not None and bool(self._spaces[token_id]):
            self._matcher = self._spaced
        self._spaced = None
        self._matcher.consume_token(token_id)
        raise_error_of(self._matcher)
        return self._matcher.is_stopped()


class GuideMaker:
    """Guides for one model. Its vocabulary, which takes a second to read, is read with the first grammar."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        self._tokenizer, self._rows = tokenizer, rows
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)

    def make(self, grammar: Grammar | None) -> Guide | None:
        """Returns a guide at the beginning of a grammar, None without one.

        Raises:
            UnsupportedSchema: the grammar cannot be enforced.
        """
        if grammar is None:
            return None
        plain, spaced = self._compiled(grammar)
        return Guide(plain.deep_copy(), None if spaced is None else spaced.deep_copy(), self._vocabulary[1])

    @cached_property
    def _vocabulary(self) -> tuple[LLTokenizer, torch.Tensor]:
        known = self._tokenizer.token_bytes()[: self._rows]
        spaces = torch.zeros(self._rows + 1, dtype=torch.bool)
        spaces[self._tokenizer.without_first_space(known)] = True
        tokens = [*known, *[b""] * (self._rows + 1 - len(known))]
        return LLTokenizer(Vocabulary(tokens, self._rows, special_token_ids=[self._rows])), spaces  # type: ignore[arg-type]

    def _compile(self, grammar: Grammar) -> tuple[LLMatcher, LLMatcher | None]:
        tokenizer, spaces = self._vocabulary
        spaced = compile_grammar(tokenizer, grammar, " ") if bool(spaces.any()) else None
        return compile_grammar(tokenizer, grammar), spaced


def _mask(matcher: LLMatcher) -> torch.Tensor:
    allowed = matcher.compute_logit_bias()
    raise_error_of(matcher)
    return torch.frombuffer(bytearray(allowed), dtype=torch.bool)
