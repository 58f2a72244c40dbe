"""Calls in a stream: pieces of their arguments as they are written, the same parts wherever the stream is cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chat_output import CALL_FORMATS, OutputForm, OutputParser, OutputParts, ParsedCall
from tests.unit.test_chat_output import FORMATS, HERMES, LLAMA, MISTRAL, NAMES, parts_of

WORDS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", '{"name": "time", "arguments": ',
    '"parameters": {', '{"name": "rm", "arguments": {}}', "time[ARGS]", "weather", '"name": ', '"', "\\", "{", "}", "[", "]", ",",
    ";", " ", "\n", "<", '{"a": 1}', "NaN", "é",
]  # fmt: skip
"""Parts of texts that are calls, nearly calls, or none."""


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_any_text_has_the_same_parts_wherever_its_stream_is_cut(data: st.DataObject) -> None:
    form = OutputForm(
        calls=data.draw(st.sampled_from(CALL_FORMATS)),
        names=NAMES,
        thinks=data.draw(st.booleans()),
        one_call=data.draw(st.booleans()),
    )
    text = "".join(data.draw(st.lists(st.sampled_from(WORDS), max_size=14)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parts_of(form, [text])
    assert parts_of(form, pieces) == parts_of(form, text) == whole
    parts, _, broken = whole
    assert broken or all(isinstance(json.loads(call.arguments), dict) for call in parts.calls)


ARGUMENTS = ['{"city": "a } \\\\\\" {", "n": [1, {"x": []}]}', "{}", '{"a": "\\\\"}']
"""Objects whose end is not at their first brace."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("thought", ["", "<think>{</think>\n"])
@pytest.mark.parametrize("is_required", [True, False])
def test_a_call_is_streamed_as_it_is_written(
    name: str, arguments: str, thought: str, is_required: bool
) -> None:
    calls = FORMATS[name]
    begin = "" if calls.may_be_bare else calls.begin
    form = OutputForm(calls=calls, names=NAMES, thinks=True, is_required=is_required)
    beginning = f"{thought}{begin}{calls.before}weather{calls.between}"
    text = f"{beginning}{arguments}{calls.after}{calls.end}"
    for cut in range(len(text) + 1):
        parser, streamed = OutputParser(form), OutputParts()
        for character in text[:cut]:
            streamed.add(parser.feed(character))
        before_the_end = [call.arguments for call in streamed.calls]
        streamed.add(parser.finish())
        written = arguments[: max(0, cut - len(beginning))]
        assert before_the_end == ([written] if written else []), "all that is written has been streamed"
        assert streamed == parser.parts
        assert [(call.name, call.arguments) for call in parser.parts.calls] == [
            ("weather", text) for text in [written] if text
        ]
        assert bool(parser.unread) == (not written and bool(begin) and begin in text[:cut])
        assert bool(parser.broken) == (bool(written) and written != arguments and not is_required)


def test_each_of_several_calls_is_streamed_as_it_is_written() -> None:
    for form, text in [
        (MISTRAL, '[TOOL_CALLS][{"name": "time", "arguments": {"a": 1}}, {"name": "weather", "arguments": {"b": '),
        (MISTRAL, '[TOOL_CALLS]time[ARGS]{"a": 1}[TOOL_CALLS]weather[ARGS]{"b": '),
        (LLAMA, '{"name": "time", "parameters": {"a": 1}}; {"name": "weather", "parameters": {"b": '),
        (HERMES, '<tool_call>[{"name": "time", "arguments": {"a": 1}}, {"name": "weather", "arguments": {"b": '),
    ]:  # fmt: skip
        parser = OutputParser(form)
        parser.feed(text)
        assert parser.parts.calls == [ParsedCall("time", '{"a": 1}'), ParsedCall("weather", '{"b": ')]


def test_text_that_begins_a_call_and_does_not_end_as_one_is_named() -> None:
    parser = OutputParser(HERMES)
    parser.feed('Well. <tool_call>{"name": "time", "arguments": {"a": NaN}}</tool_call>')
    parser.feed('<tool_call>{"name": "time", "arguments": {}}} and so on</tool_call>')
    parser.feed('<tool_call>{"name": "time", "arguments": {}</tool_call>')
    parser.finish()
    assert parser.broken == [
        '<tool_call>{"name": "time", "arguments": {"a": NaN}}',
        '<tool_call>{"name": "time", "arguments": {}}} and so on',
    ]
    assert not parser.unread


def test_thousands_of_calls_and_deep_arguments_are_read_or_stay_text() -> None:
    parser = OutputParser(MISTRAL)
    parser.feed("[TOOL_CALLS]" + "time{}" * 20_000)
    parser.finish()
    assert len(parser.parts.calls) == 20_000
    parser = OutputParser(HERMES)
    deep = '<tool_call>{"name": "time", "arguments": ' + '{"a":' * 100_000
    parser.feed(deep)
    parser.finish()
    (call,) = parser.parts.calls
    assert call.arguments + parser.parts.text == '{"a":' * 100_000
    assert len(parser.broken) == 1
    parser = OutputParser(HERMES)
    deep = deep.replace('"name": "time", ', "")
    parser.feed(deep)
    assert parser.finish().text == deep
