"""Parts of outputs: calls in the forms of published models, thinking, and streams cut at any place."""

import random
from collections.abc import Iterable

import pytest

from services.chat_output import (
    CALL_FORMATS,
    OutputForm,
    OutputParser,
    OutputParts,
    ParsedCall,
    call_format_of,
    thinks,
)

FORMATS = {form.name: form for form in CALL_FORMATS}
NAMES = frozenset({"weather", "time"})
HERMES = OutputForm(calls=FORMATS["hermes"], names=NAMES)
LLAMA = OutputForm(calls=FORMATS["llama3"], names=NAMES)
MISTRAL = OutputForm(calls=FORMATS["mistral"], names=NAMES)
THINKING = OutputForm(thinks=True)

WEATHER = ParsedCall("weather", '{"city": "Zürich"}')
TIME = ParsedCall("time", "{}")

OUTPUTS = {
    "Qwen and Hermes": (
        HERMES,
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
        OutputParts("", "Let me see.", [WEATHER, TIME]),
    ),
    "an end that the model left out": (
        HERMES,
        '<tool_call>\n{"name": "time", "arguments": {}}',
        OutputParts("", "", [TIME]),
    ),
    "Llama 3": (
        LLAMA,
        '{"name": "weather", "parameters": {"city": "Zürich"}}',
        OutputParts("", "", [WEATHER]),
    ),
    "Llama 3 with its tag, two calls": (
        LLAMA,
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Zürich"}}; {"name": "time", "parameters": {}}',
        OutputParts("", "", [WEATHER, TIME]),
    ),
    "JSON that is an answer": (LLAMA, '{"city": "Zürich"}', OutputParts("", '{"city": "Zürich"}')),
    "Mistral's list": (
        MISTRAL,
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich"}}, {"name": "time", "arguments": {}}]',
        OutputParts("", "", [WEATHER, TIME]),
    ),
    "Mistral's newer form": (
        MISTRAL,
        '[TOOL_CALLS]weather[ARGS]{"city": "Zürich"}[TOOL_CALLS]time[ARGS]{}',
        OutputParts("", "", [WEATHER, TIME]),
    ),
    "a call that is cut off": (
        HERMES,
        'So: <tool_call>\n{"name": "weather", "argu',
        OutputParts("", 'So: <tool_call>\n{"name": "weather", "argu'),
    ),
    "a function that was not offered": (
        HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        OutputParts("", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    ),
    "arguments that are a list": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": [1]}</tool_call>',
        OutputParts("", '<tool_call>{"name": "time", "arguments": [1]}</tool_call>'),
    ),
    "an answer with white space": (HERMES, "  1 < 2 <tool \n", OutputParts("", "  1 < 2 <tool \n")),
    "thinking": (THINKING, "<think>\nWell.\n\nSo.\n</think>\n\nYes. ", OutputParts("Well.\n\nSo.", "Yes. ")),
    "thinking that the prompt opened": (
        OutputForm(thinks=True, begins_thinking=True),
        "Well.\n</think>\nYes.",
        OutputParts("Well.", "Yes."),
    ),
    "thinking that is cut off": (THINKING, "<think>Well, </thi", OutputParts("Well, </thi")),
    "no thinking": (THINKING, "<thin air> <think>", OutputParts("", "<thin air> <think>")),
    "empty thinking": (THINKING, "<think>\n\n</think>\n\nYes.", OutputParts("", "Yes.")),
    "thinking before a call": (
        OutputForm(calls=FORMATS["hermes"], names=NAMES, thinks=True),
        '<think>Hm.</think>\n<tool_call>{"name": "time", "arguments": {}}</tool_call>\n',
        OutputParts("Hm.", "", [TIME]),
    ),
    "one call of two": (
        OutputForm(calls=FORMATS["mistral"], names=NAMES, one_call=True),
        '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "time", "arguments": {}}]',
        OutputParts("", "", [TIME]),
    ),
    "marks within an argument": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {"a": "</tool_call> \\" <tool_call>"}}</tool_call> So.',
        OutputParts("", " So.", [ParsedCall("time", '{"a": "</tool_call> \\" <tool_call>"}')]),
    ),
    "Mistral's mark within an argument": (
        MISTRAL,
        '[TOOL_CALLS]time[ARGS]{"a": "[TOOL_CALLS]"}',
        OutputParts("", "", [ParsedCall("time", '{"a": "[TOOL_CALLS]"}')]),
    ),
    "arguments as they were written": (
        HERMES,
        '<tool_call>{"arguments": {"x": 0.10000000000000000001, "y": 1,  "y": 2}, "name": "time"}</tool_call>',
        OutputParts("", "", [ParsedCall("time", '{"x": 0.10000000000000000001, "y": 1,  "y": 2}')]),
    ),
    "arguments as JSON text": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>',
        OutputParts("", "", [ParsedCall("time", '{"a": 1}')]),
    ),
    "arguments that are cut off": (
        HERMES,
        'So: <tool_call>\n{"name": "weather", "arguments": {"city": "Zür',
        OutputParts("", "So:", [ParsedCall("weather", '{"city": "Zür')]),
    ),
    "a number that JSON does not have": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {"a": NaN}}</tool_call> So.',
        OutputParts("", "NaN}}</tool_call> So.", [ParsedCall("time", '{"a": ')]),
    ),
    "a number that JSON does not have, as JSON text": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": "{\\"a\\": NaN}"}</tool_call>',
        OutputParts("", '<tool_call>{"name": "time", "arguments": "{\\"a\\": NaN}"}</tool_call>'),
    ),
    "arguments that a mark ends": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {"a": 1</tool_call>So.',
        OutputParts("", "So.", [ParsedCall("time", '{"a": 1')]),
    ),
    "a string that has no end": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {"a": "1}}</tool_call>So.',
        OutputParts("", "", [ParsedCall("time", '{"a": "1}}</tool_call>So.')]),
    ),
    "a brace that was left out": (
        HERMES,
        '<tool_call>\n{"name": "time", "arguments": {}\n</tool_call>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}}\n</tool_call>',
        OutputParts("", "", [TIME, WEATHER]),
    ),
    "text after a call": (
        LLAMA,
        '{"name": "time", "parameters": {}} is the call.',
        OutputParts("", "} is the call.", [TIME]),
    ),
    "a function that was not offered after one that was": (
        MISTRAL,
        '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "rm", "arguments": {}}]',
        OutputParts("", '}, {"name": "rm", "arguments": {}}]', [TIME]),
    ),
    "members before the arguments": (
        LLAMA,
        '{"type": "function", "name": "weather", "parameters": {"city": "Zürich"}}',
        OutputParts("", "", [WEATHER]),
    ),
    "arguments and parameters": (
        HERMES,
        '<tool_call>{"name": "time", "parameters": {"a": 1}, "arguments": {}}</tool_call>',
        OutputParts("", ', "arguments": {}}</tool_call>', [ParsedCall("time", '{"a": 1}')]),
    ),
    "Mistral's form with ids": (
        MISTRAL,
        '[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Zürich"}',
        OutputParts("", "", [WEATHER]),
    ),
    "a name before arguments in another form": (
        HERMES,
        "<tool_call>time{}</tool_call>",
        OutputParts("", "<tool_call>time{}</tool_call>"),
    ),
    "two names": (
        HERMES,
        '<tool_call>{"name": "rm", "name": "time", "arguments": {}}</tool_call>',
        OutputParts("", '<tool_call>{"name": "rm", "name": "time", "arguments": {}}</tool_call>'),
    ),
    "one call of two, and text after it": (
        OutputForm(calls=FORMATS["hermes"], names=NAMES, one_call=True),
        'So: <tool_call>{"name": "time", "arguments": {}}</tool_call> and <tool_call>{"name": "time", "arguments": {}}</tool_call>',
        OutputParts("", "So:", [TIME]),
    ),
    "one call of two in Llama's form": (
        OutputForm(calls=FORMATS["llama3"], names=NAMES, one_call=True),
        '{"name": "weather", "parameters": {"city": "Zürich"}}; {"name": "time", "parameters": {}}',
        OutputParts("", "", [WEATHER]),
    ),
    "no call before the one that is wanted": (
        OutputForm(calls=FORMATS["mistral"], names=NAMES, one_call=True),
        '[TOOL_CALLS][{"name": "rm", "arguments": {}}, {"name": "time", "arguments": {}}]',
        OutputParts("", '[TOOL_CALLS][{"name": "rm", "arguments": {}}, {"name": "time", "arguments": {}}]'),
    ),
    "no parts": (OutputForm(), "<think><tool_call>", OutputParts("", "<think><tool_call>")),
}


def parts_of(form: OutputForm, pieces: Iterable[str]) -> tuple[OutputParts, list[str], list[str]]:
    """Returns the parts of a stream, which are those of the parser, and the texts that it names."""
    parser, streamed = OutputParser(form), OutputParts()
    for piece in pieces:
        streamed.add(parser.feed(piece))
    streamed.add(parser.finish())
    assert streamed == parser.parts
    return streamed, parser.unread, parser.broken


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_has_its_parts_wherever_its_stream_is_cut(name: str) -> None:
    form, text, expected = OUTPUTS[name]
    for seed in range(50):
        chance, pieces, at = random.Random(seed), list[str](), 0
        while at < len(text):
            pieces.append(text[at : at + (chance.randint(1, 8) if seed else len(text))])
            at += len(pieces[-1])
        assert parts_of(form, pieces)[0] == expected


def test_a_required_call_without_an_object_is_read_at_its_end() -> None:
    form = OutputForm(calls=FORMATS["hermes"], names=NAMES, is_required=True)
    parser = OutputParser(form)
    parser.feed('<tool_call>\n{"name": "time", "arguments": [1]}\n</tool_call>')
    assert not parser.finish().calls
    assert parser.parts.text == '<tool_call>\n{"name": "time", "arguments": [1]}\n</tool_call>'
    assert parser.unread == ['<tool_call>\n{"name": "time", "arguments": [1]}\n']


def test_text_that_opens_a_call_and_is_none_is_named() -> None:
    parser = OutputParser(HERMES)
    parser.feed('Well. <tool_call>{"name": "rm"}</tool_call> <tool_call>{"name": "time"}</tool_call>')
    parser.finish()
    assert parser.unread == ['<tool_call>{"name": "rm"}']
    parser = OutputParser(LLAMA)
    parser.feed('{"an": "answer"}')
    parser.finish()
    assert not parser.unread


def test_tokens_of_thinking_are_counted_with_those_that_open_and_close_it() -> None:
    parser = OutputParser(THINKING)
    for token in ["<think>", "\n", "Hm", ".", "\n", "</think>", "\n\n", "Yes", "."]:
        parser.feed(token)
    parser.finish()
    assert parser.reasoning_tokens == 6


TOOLS_BLOCK = "{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TOOLS_BLOCK + "<tool_call>\n{...}\n</tool_call>", "hermes"),
        (TOOLS_BLOCK + "[TOOL_CALLS]", "mistral"),
        (TOOLS_BLOCK + "<|start_header_id|>", "llama3"),
        (TOOLS_BLOCK + "<tool_call><function=x>", None),
        (TOOLS_BLOCK, None),
        ("{{ 'tools' }} tools <tool_call>", None),
        ("{{ message.tools }}<tool_call>", None),
        ("{% set tools = [] %}<tool_call>", None),
    ],
)
def test_the_form_of_calls_is_found_in_the_template(template: str, expected: str | None) -> None:
    found = call_format_of(template)
    assert (found and found.name) == expected


def test_thinking_is_found_in_the_template() -> None:
    assert thinks("{{ content.split('</think>')[-1] }}")
    assert not thinks("{{ content }}")
