"""Grammars that outputs are held to: a JSON schema or a regular expression, as llguidance reads them.

llguidance refuses most keywords that it does not enforce; what it would ignore silently is refused here. Its documentation of
the grammar's language: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, lcm
from typing import Any, TypeGuard

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from services.bounded_text import listed
from services.errors import UnsupportedSchema

OPTIONS: Mapping[str, Any] = {"whitespace_pattern": r" ?|\n {0,16}"}
"""White space between the parts of JSON: at most one space, or a new line. Without a limit small models write it forever."""

COMPACT: Mapping[str, Any] = {"whitespace_flexible": False}

DATA_KEYWORDS = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords whose values are data, not schemas."""

NAMES_KEYWORDS = frozenset({"$defs", "definitions", "patternProperties", "properties"})
"""Keywords whose values are schemas by names."""

MULTIPLE_LIMIT = 10_000
"""Largest common multiple of all `multipleOf`, without decimal points: its automaton has a state for each remainder."""

LEXER_STATES = 20_000
"""States that a grammar's automaton may have: 1 to 2 KB each."""


STOP_REASONS: Mapping[str, str] = {
    "LexerTooComplex": "its automaton grows too large",
    "ParserTooComplex": "it can continue in too many ways",
    "NoExtensionBias": "no token of the model's vocabulary continues the output within it",
}
"""Errors that llguidance names by one word."""

_PLACE = re.compile(r"^at \d+\(\d+\): ")
_ENDS_ESCAPED = re.compile(r"(?<!\\)(\\\\)*\\\Z")
_WHITE_SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')
"""Strings of JSON, which are kept, and white space between its parts."""

_GRAMMAR = re.compile(r"\n +\d+ \| ")


Mark = str | int
"""Text, or the id of a special token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRule:
    """One form of a call: fixed text, arguments that a JSON schema admits, and fixed text."""

    before: str
    schema: str
    after: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Thinking before the form: ids of the tokens that open and close it; it is open already where `open_id` is None."""

    open_id: int | None
    close_id: int


@dataclass(frozen=True, slots=True)
class Grammar:
    """One of a JSON schema, as JSON, a regular expression that the whole output matches, and a call.

    `marks` are around the output, and `thought` may be before it.
    """

    schema: str | None = None
    pattern: str | None = None
    calls: tuple[CallRule, ...] = ()
    marks: tuple[Mark, Mark] = ("", "")
    thought: Thought | None = None

    def text(self, before: str = "", *, compact: bool = False) -> str:
        """Returns the grammar in llguidance's language; an output begins with the text `before`.

        Args:
            compact: JSON has no white space between its parts, for versions of llguidance that cannot limit it.
        """
        begin, end = map(_mark, self.marks)
        thought = "" if self.thought is None else "thought " if self.thought.open_id is None else "thought? "
        start = f"{_mark(before)}{thought}{begin}body {end}"
        # Without "no_forcing" parts with one possible text would be cut into tokens by another tokenizer's rules.
        return '%llguidance {"no_forcing": true}\n' + "\n".join(
            [f"start: {start.strip()}", *self._rules(COMPACT if compact else OPTIONS)]
        )

    def _rules(self, options: Mapping[str, Any]) -> Iterator[str]:
        if self.thought is not None:
            opening = "" if self.thought.open_id is None else _mark(self.thought.open_id)
            yield f"thought: {opening}THOUGHT {_mark(self.thought.close_id)}SPACE"
            yield "THOUGHT: /(?s:.*)/"
            yield r"SPACE: /[ \n]*/"
        if not self.calls:
            yield f"body: {self._body(options)}"
            return
        yield "body: " + " | ".join(f"call_{number}" for number in range(len(self.calls)))
        for number, call in enumerate(self.calls):
            yield f"call_{number}: {_mark(call.before)}arguments_{number} {_mark(call.after)}"
            yield f"arguments_{number}: {_json_rule(call.schema, options)}"

    def _body(self, options: Mapping[str, Any]) -> str:
        if self.schema is not None:
            return _json_rule(self.schema, options)
        escaped = json.loads(LLMatcher.grammar_from_regex(self.pattern or ""))
        return str(escaped["grammars"][0]["lark_grammar"]).removeprefix("start: ")


def _json_rule(schema: str, options: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**json.loads(schema), 'x-guidance': options})}"


def _mark(mark: Mark) -> str:
    """Returns a text or a special token in llguidance's language, and a space after it."""
    if isinstance(mark, int):
        return f"<[{mark}]> "
    return f"{json.dumps(mark)} " if mark else ""


def grammar_of(schema: str | None, pattern: str | None) -> Grammar | None:
    """Returns the grammar of a JSON schema or a regular expression, None without either."""
    return None if schema is None and pattern is None else Grammar(schema, pattern)


def check_grammar(grammar: Grammar) -> None:
    """Refuses a grammar that is not enforced as it is written, or too large.

    Raises:
        UnsupportedSchema: the message has the reason.
    """
    if grammar.schema is not None:
        schemas = [*_schemas(json.loads(grammar.schema))]
        for schema in schemas:
            _check_keywords(schema)
        _check_multiples(schemas)
    elif _ENDS_ESCAPED.search(grammar.pattern or ""):
        raise UnsupportedSchema("The regular expression ends with a single backslash.", "Write two of them.")
    matcher = compile_grammar(LLTokenizer(ByteVocabulary(), slices=[]), grammar)  # type: ignore[arg-type]
    matcher.compute_bitmask()
    raise_error_of(matcher)


def is_text_of(grammar: Grammar, text: str) -> bool:
    """Returns True if a complete output has the form of the grammar, whichever white space its JSON has.

    Raises:
        UnsupportedSchema: the grammar cannot be enforced.
    """
    if grammar.schema is not None:
        text = _WHITE_SPACE.sub(lambda found: found[1] or "", text)
    matcher = compile_grammar(LLTokenizer(ByteVocabulary(), slices=[]), grammar)  # type: ignore[arg-type]
    return matcher.consume_tokens([*text.encode()]) and matcher.is_accepting()


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar, before: str = "") -> LLMatcher:
    """Returns a matcher at the beginning of an output, which begins with the text `before`.

    Raises:
        UnsupportedSchema: llguidance refuses the grammar.
    """
    limits = LLParserLimits(max_lexer_states=LEXER_STATES, verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar.text(before), log_level=0, limits=limits)
    raise_error_of(matcher)
    return matcher


def raise_error_of(matcher: LLMatcher) -> None:
    """Raises UnsupportedSchema if the matcher failed: after an error it allows every output to end."""
    if matcher.is_error():
        reason = _reason(matcher.get_error())
        raise UnsupportedSchema(
            f"The JSON schema or regular expression cannot be enforced: {STOP_REASONS.get(reason, reason)}.",
            "Change the part that is named; docs/jobs/generate.md lists what is supported.",
        )


class ByteVocabulary:
    """Vocabulary of the 256 bytes and an end, for checks without a model."""

    tokens = (*(bytes([value]) for value in range(256)), b"")
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    is_tokenizer_wrapper = True

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def _reason(message: str) -> str:
    """Returns llguidance's message without its place in the grammar and the grammar itself."""
    line = _GRAMMAR.split(message, maxsplit=1)[0].replace("<non-verbose/>", "")
    return " ".join(_PLACE.sub("", line).split()).rstrip(".")


def _schemas(value: Any, *, names: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the schemas in a schema, itself first; with `names` the value has schemas by names."""
    if isinstance(value, list):
        for item in value:
            yield from _schemas(item)
    if not isinstance(value, dict):
        return
    if not names:
        yield value
    for key, inner in value.items():
        if names or key not in DATA_KEYWORDS:
            yield from _schemas(inner, names=not names and key in NAMES_KEYWORDS)


def _check_keywords(schema: Mapping[str, Any]) -> None:
    if isinstance(schema.get("items"), list):
        raise UnsupportedSchema("The schema has a list as items.", "Name the list prefixItems.")
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(name), bool):
            raise UnsupportedSchema(f"The schema has a boolean as {name}.", "Write the bound there.")


def _check_multiples(schemas: Iterable[Mapping[str, Any]]) -> None:
    """Refuses values of `multipleOf` whose common multiple is large; schemas may be combined by allOf and $ref."""
    found = (schema.get("multipleOf") for schema in schemas)
    numbers = [Decimal(str(value)) for value in found if _is_number(value) and value > 0]
    places = max(0, *(-int(number.as_tuple().exponent) for number in numbers), 0)
    common = lcm(*(int(number.scaleb(places)) for number in numbers))
    if common > MULTIPLE_LIMIT:
        raise UnsupportedSchema(
            f"The schema has multipleOf {listed([str(number) for number in numbers])}, with {common} as common multiple without "
            f"the decimal point; {MULTIPLE_LIMIT} is the most.",
            "Leave multipleOf out, and check the numbers yourself.",
        )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
