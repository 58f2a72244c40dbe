"""Parts of outputs in jobs: the grammar of a required call, the special tokens that separate parts, ids of calls."""

import hashlib
from collections.abc import Mapping, Sequence

from services.bounded_text import cut
from services.chat_output import END_THINK, THINK, CallFormat, OutputForm, OutputParser, ParsedCall
from services.errors import UnsupportedOption
from services.grammar import CallRule, Grammar, Mark, Thought, grammar_of
from services.kinds.generate import GenerateRequest
from services.kinds.tools import Tool, ToolCall, ToolCallPiece

SpecialTokens = Mapping[str, int]
"""Id of every special or added token by its text."""


def grammar_for(request: GenerateRequest, form: OutputForm, special: SpecialTokens) -> Grammar | None:
    """Returns the grammar of a request's outputs after a prompt, None if they have no form; thinking comes before it.

    Raises:
        UnsupportedOption: the prompt has opened the thinking, and no token of the vocabulary closes it.
    """
    if request.is_call_required and form.calls is not None:
        grammar = _grammar_of_calls(request.offered_tools, form.calls, special)
    else:
        plain = grammar_of(request.schema_text, request.guided_regex)
        if plain is None:
            return None
        grammar = plain
    return Grammar(grammar.schema, grammar.pattern, grammar.calls, grammar.marks, _thought(form, special))


def shown_tokens(form: OutputForm, special: SpecialTokens) -> frozenset[int]:
    """Returns the special tokens that separate the parts of outputs: their text has to be seen."""
    return frozenset(special[mark] for mark in form.marks if mark in special)


def calls_of(form: OutputForm, calls: Sequence[ParsedCall], *, seed: str) -> list[ToolCall]:
    """Returns the calls of an output with their ids, which are the same when it is generated again.

    Args:
        seed: text that is the output's own.
    """
    return [
        ToolCall(id=_call_id(form, number, call, seed), name=call.name, arguments=call.arguments)
        for number, call in enumerate(calls)
    ]


def pieces_of(form: OutputForm, calls: Sequence[ParsedCall], *, first: int, seed: str) -> list[ToolCallPiece]:
    """Returns new calls, or pieces of one, as parts of a stream.

    Args:
        first: number of calls of the output that have begun before.
        seed: text that is the output's own.
    """
    pieces: list[ToolCallPiece] = []
    for call in calls:
        first += 0 if call.offset else 1
        pieces.append(
            ToolCallPiece(
                index=first - 1,
                id=_call_id(form, first - 1, call, seed),
                name=call.name,
                arguments=call.arguments,
                offset=call.offset,
            )
        )
    return pieces


def warnings_of(parser: OutputParser) -> list[str]:
    """Returns a sentence for each text of an output that opens a call and is not one, or does not end as one."""
    unread = [
        f"The text {cut(text, 200)!r} opens a call of a tool and is not one: it is not complete, its arguments are not a JSON "
        "object, or it names a function that was not offered."
        for text in parser.unread
    ]
    broken = [
        f"The text {cut(text, 200)!r} begins a call of a tool and does not end as one: the call has the arguments as they were "
        "written. Check that they are complete before they are used."
        for text in parser.broken
    ]
    return unread + broken


def _call_id(form: OutputForm, number: int, call: ParsedCall, seed: str) -> str:
    length = 24 if form.calls is None else form.calls.id_length
    prefix = "" if length < 24 else "call_"
    return prefix + hashlib.sha256(f"{seed} {number} {call.name}".encode()).hexdigest()[:length]


def _grammar_of_calls(tools: Sequence[Tool], calls: CallFormat, special: SpecialTokens) -> Grammar:
    rules = tuple(
        CallRule(
            before=calls.before + tool.function.name + calls.between,
            schema=tool.function.schema_text,
            after=calls.after,
        )
        for tool in tools
    )
    begin: Mark = "" if calls.may_be_bare else special.get(calls.begin, calls.begin)
    return Grammar(calls=rules, marks=(begin, special.get(calls.end, calls.end)))


def _thought(form: OutputForm, special: SpecialTokens) -> Thought | None:
    if not form.thinks:
        return None
    close_id = special.get(END_THINK)
    if form.begins_thinking and close_id is None:
        raise UnsupportedOption(
            f"The prompt opens this model's thinking, and its vocabulary has no token {END_THINK} after which a form could begin.",
            "Leave response_format, guided_regex and a required call out, or turn thinking off with chat_template_kwargs.",
        )
    open_id = None if form.begins_thinking else special.get(THINK)
    if close_id is None or (open_id is None and not form.begins_thinking):
        return None
    return Thought(open_id, close_id)
