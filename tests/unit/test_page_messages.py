"""The playground's scripts without a browser: JSON that people write, messages of requests, pieces of a stream."""

import json
from typing import Any

import pytest

from services.kinds import parse_request
from services.kinds.generate import TokenPiece
from tests.page_module import call, call_all

WEATHER = {"type": "function", "function": {"name": "weather"}}
CALLS = [
    {"id": "a", "name": "weather", "arguments": '{"city": "北京"}'},
    {"id": "b", "name": "clock", "arguments": "{}"},
]
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "text": "Rain?"},
    {"role": "assistant", "text": "", "reasoning": "I look.", "tool_calls": CALLS},
    {
        "role": "tool",
        "text": "no\n\nnoon",
        "results": [
            {"id": "a", "name": "weather", "text": "no"},
            {"id": "b", "name": "clock", "text": "noon"},
        ],
    },
    {"role": "assistant", "text": "No."},
]


@pytest.mark.parametrize(
    ("function", "text", "problem"),
    [
        ("readSchema", " ", {"key": "noSchema"}),
        ("readSchema", "[]", {"key": "schemaForm"}),
        ("readSchema", "null", {"key": "schemaForm"}),
        ("readSchema", '{\n  "type"', {"key": "notJsonAt", "line": 2, "column": 9}),
        ("readTools", "{}", {"key": "toolsForm"}),
        ("readTools", json.dumps([WEATHER, {"name": "weather"}]), {"key": "toolForm", "number": 2}),
        ("readTools", json.dumps([{"type": "function", "function": None}]), {"key": "toolForm", "number": 1}),
        (
            "readTools",
            '[{"type": "function",\n"function" {}}]',
            {"key": "notJsonAt", "line": 2, "column": 12},
        ),
    ],
)
def test_a_text_that_cannot_be_used_has_a_reason(function: str, text: str, problem: dict[str, Any]) -> None:
    assert call("playground-json.js", function, text) == {"problem": problem}


def test_json_is_read_and_formatted() -> None:
    schema, tools, none, pretty, partial = call_all(
        "playground-json.js",
        [
            ["readSchema", '{"type": "object"}'],
            ["readTools", json.dumps([WEATHER])],
            ["readTools", ""],
            ["formatted", '{"a":[1]}'],
            ["formatted", '{"a":[1'],
        ],
    )
    assert schema == {"value": {"type": "object"}}
    assert tools == {"value": [WEATHER]}
    assert none == {"value": []}
    assert pretty == '{\n  "a": [\n    1\n  ]\n}'
    assert partial == '{"a":[1'


def test_calls_and_results_become_messages_that_the_service_reads() -> None:
    messages = call("playground-messages.js", "apiMessages", CONVERSATION, "Be brief.")
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I look.",
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "北京"}'},
                },
                {"id": "b", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "name": "weather", "content": "no"},
        {"role": "tool", "tool_call_id": "b", "name": "clock", "content": "noon"},
        {"role": "assistant", "content": "No."},
    ]
    request: Any = parse_request({"kind": "generate", "model": "m", "messages": messages[:-1]})
    assert [message.model_dump(exclude_none=True) for message in request.messages] == messages[:-1]


def test_markdown_has_the_calls_with_their_arguments() -> None:
    text = call("playground-messages.js", "withCalls", "I look.", CALLS[:1])
    assert text == 'I look.\n\n`weather`\n\n```json\n{\n  "city": "北京"\n}\n```'


def piece(**fields: Any) -> dict[str, Any]:
    return TokenPiece.model_validate({"index": 0, "offset": 0, "text": "", **fields}).model_dump(mode="json")


def reply_of(reply: dict[str, Any], pieces: list[dict[str, Any]]) -> dict[str, Any]:
    for one in pieces:
        reply = call("playground-messages.js", "addPiece", reply, one)
    return reply


def test_pieces_of_calls_are_joined_and_a_second_run_replaces_the_first() -> None:
    pieces = [
        piece(text="So "),
        piece(offset=3, tool_calls=[CALLS[0] | {"index": 0, "arguments": '{"city": '}]),
        piece(offset=3, tool_calls=[CALLS[0] | {"index": 0, "arguments": '"北京"}'}]),
        piece(offset=3, tool_calls=[CALLS[1] | {"index": 1}]),
    ]
    reply = reply_of({"text": ""}, pieces)
    assert reply == {"text": "So ", "tool_calls": CALLS}
    again = [piece(text="No"), piece(offset=2, tool_calls=[CALLS[1] | {"index": 0, "id": "c"}])]
    assert reply_of(reply, again) == {"text": "No", "tool_calls": [CALLS[1] | {"id": "c"}]}
