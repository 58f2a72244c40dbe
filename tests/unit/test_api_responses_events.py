"""Streams of `/v1/responses` and `/v1/messages` from pieces and results, in the forms of the official clients' types."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from api.anthropic.events import MessageEvents
from api.anthropic.message import MessageBuilder
from api.openai.responses_api.body import ResponsesBody
from api.openai.responses_api.events import ResponseEvents
from api.openai.responses_api.kept import Note
from api.openai.responses_api.replay import ReplayedEvents
from api.openai.responses_api.response import ResponseObject
from services.errors import DiskFull, InvalidRequest
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Logprob, Output, TokenPiece
from services.kinds.shared import Usage
from services.kinds.tools import ToolCall, ToolCallPiece

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job.model_construct(id="7", status="succeeded", created_at=MOMENT, finished_at=MOMENT, error=None)
RESPONSES: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
MESSAGES: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def result(text: str, *, finish_reason: str = "stop", **fields: Any) -> GenerateResult:
    usage = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    output = Output(prompt="x", text=text, finish_reason=finish_reason, usage=usage, **fields)
    return GenerateResult(outputs=[output], seconds=1, tokens_per_second=1, device="cpu", dtype="float32")


def datas(frames: Iterable[str]) -> list[str]:
    """Returns the data of frames, whose name must be the type in it."""
    found = []
    for frame in frames:
        name, data = frame.strip().split("\n")
        found.append(data.removeprefix("data: "))
        assert json.loads(found[-1])["type"] == name.removeprefix("event: ")
    return found


def response_events() -> ResponseEvents:
    body = ResponsesBody.model_validate({"model": "m", "input": "x", "store": False})
    return ResponseEvents(ResponseObject(JOB, Note(echo=body.echo(), ignored=["user"])))


def message_events(*stop: str) -> MessageEvents:
    return MessageEvents(MessageBuilder(job=JOB, model="m", stop_sequences=stop, max_tokens=2, ignored=[]))


def piece(offset: int, text: str) -> TokenPiece:
    return TokenPiece(index=0, offset=offset, text=text)


def replayed(after: int, *, is_whole: bool, first: int = 0) -> list[tuple[str, int]]:
    """Returns types and numbers of the events of a response of six characters, replayed from the piece at `first` on."""
    body = ResponsesBody.model_validate({"model": "m", "input": "x"})
    response = ResponseObject(JOB, Note(echo=body.echo(), ignored=[]))
    events = ReplayedEvents(response, after, is_whole=is_whole)
    whole = result("abcdef")
    frames = [*events.opening()]
    for offset in range(first, 6):
        frames += events.piece(piece(offset, "abcdef"[offset]))
    frames += [*events.closing(0, whole), *events.ending(JOB, whole)]
    found = [json.loads(data) for data in datas(frames)]
    assert found[-1]["response"]["output"][0]["content"][0]["text"].endswith("f")
    return [(event["type"], event["sequence_number"]) for event in found]


def test_a_replay_keeps_the_numbers_or_is_the_last_event_alone() -> None:
    everything = replayed(-1, is_whole=True)
    assert [number for _, number in everything] == list(range(len(everything)))
    assert replayed(6, is_whole=True) == everything[7:]
    assert replayed(500, is_whole=True) == everything[-1:]
    assert replayed(500, is_whole=False, first=4) == [("response.completed", 501)]
    again = replayed(-1, is_whole=False, first=4)
    assert [number for _, number in again] == list(range(len(again)))


def test_a_response_without_text_has_an_empty_message() -> None:
    events = response_events()
    found = result("")
    frames = [
        *events.opening(),
        *events.piece(piece(0, "")),
        *events.closing(0, found),
        *events.ending(JOB, found),
    ]
    parsed = [RESPONSES.validate_json(data, strict=True) for data in datas(frames)]
    assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
    last = parsed[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == ""
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 5
    assert last.response.model_extra["graftwerk"]["ignored"] == ["user"]  # type: ignore[index]
    assert last.response.model_extra["store"] is False  # type: ignore[index]


def test_the_streamed_items_are_those_of_the_whole_response() -> None:
    events, found = response_events(), result("One two", finish_reason="length")
    frames = [*events.opening(), *events.piece(piece(0, "One ")), *events.piece(piece(4, "two"))]
    frames += [*events.closing(0, found), *events.ending(JOB, found)]
    last = json.loads(datas(frames)[-1])
    assert last["type"] == "response.incomplete"
    assert last["response"] == ResponseObject(JOB, Note(echo=last["response"] | {}, ignored=["user"])).whole(
        found
    )
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_failure_is_the_last_event() -> None:
    for error, code in ((DiskFull("Full."), "server_error"), (InvalidRequest("No."), "invalid_prompt")):
        (data,) = datas(response_events().failure(error))
        event = RESPONSES.validate_json(data, strict=True)
        assert event.type == "response.failed"
        assert event.response.error is not None
        assert (event.response.error.code, event.response.status) == (code, "failed")
    (data,) = datas(message_events().failure(InvalidRequest("No.")))
    assert json.loads(data)["error"] == {
        "type": "invalid_request_error",
        "message": "No.",
        "code": "invalid_request",
    }


def test_a_message_without_text_has_no_block() -> None:
    events, found = message_events(), result("")
    frames = [
        *events.opening(),
        *events.piece(piece(0, "")),
        *events.closing(0, found),
        *events.ending(JOB, found),
    ]
    parsed = [MESSAGES.validate_json(data, strict=True) for data in datas(frames) if '"ping"' not in data]
    assert [event.type for event in parsed] == ["message_start", "message_delta", "message_stop"]


def test_only_a_stop_sequence_of_the_client_is_one() -> None:
    for stop, expected in (
        (("###",), ("stop_sequence", "###")),
        (("##",), ("end_turn", None)),
        ((), ("end_turn", None)),
    ):
        events = message_events(*stop)
        delta = json.loads(datas(events.closing(0, result("x", stop_string="###")))[-1])["delta"]
        assert (delta["stop_reason"], delta["stop_sequence"]) == expected


def test_the_end_of_the_context_is_not_the_limit() -> None:
    builder = MessageBuilder(job=JOB, model="m", stop_sequences=(), max_tokens=3, ignored=[])
    assert (
        builder.whole(result("x", finish_reason="length"))["stop_reason"] == "model_context_window_exceeded"
    )
    limited = MessageBuilder(job=JOB, model="m", stop_sequences=(), max_tokens=2, ignored=[])
    assert limited.whole(result("x", finish_reason="length"))["stop_reason"] == "max_tokens"


CALLS = [ToolCall(id="c1", name="f", arguments='{"a": 1}'), ToolCall(id="c2", name="g", arguments="{}")]


def thinking_with_calls() -> tuple[list[TokenPiece], GenerateResult]:
    """The pieces and the result of an output that thinks, writes and calls twice."""
    first = TokenPiece(index=0, offset=0, text="", reasoning="Hm")
    second = TokenPiece(index=0, offset=0, text="Let me see.", reasoning=".", reasoning_offset=2)
    calls = [ToolCallPiece(index=at, **call.model_dump()) for at, call in enumerate(CALLS)]
    third = TokenPiece(index=0, offset=11, text="", tool_calls=calls)
    usage = Usage(prompt_tokens=3, completion_tokens=9, total_tokens=12, reasoning_tokens=2)
    output = Output(
        prompt="x",
        text="Let me see.",
        reasoning="Hm.",
        tool_calls=CALLS,
        finish_reason="tool_calls",
        usage=usage,
    )
    return [first, second, third], GenerateResult(
        outputs=[output], seconds=1, tokens_per_second=1, device="cpu", dtype="float32", ignored=["x"]
    )


def test_thinking_and_calls_are_items_of_a_response() -> None:
    pieces, found = thinking_with_calls()
    events = response_events()
    frames = [*events.opening(), *(frame for piece in pieces for frame in events.piece(piece))]
    frames += [*events.closing(0, found), *events.ending(JOB, found)]
    texts = datas(frames)
    parsed = [RESPONSES.validate_json(data, strict=True) for data in texts]
    assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
    call = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert [event.type.removeprefix("response.") for event in parsed] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        *call, *call, "completed",
    ]  # fmt: skip
    whole = json.loads(texts[-1])["response"]
    echo = {name: whole[name] for name in ("model", "tools", "tool_choice", "parallel_tool_calls")}
    assert whole["output"] == ResponseObject(JOB, Note(echo=echo, ignored=[])).whole(found)["output"]
    assert [(item["type"], item["id"]) for item in whole["output"]] == [
        ("reasoning", "rs_7_0"), ("message", "msg_7_1"), ("function_call", "fc_7_2"), ("function_call", "fc_7_3"),
    ]  # fmt: skip
    assert [item.get("arguments") for item in whole["output"][2:]] == ['{"a": 1}', "{}"]
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert whole["graftwerk"]["ignored"] == ["user", "x"]


def call_in_pieces(arguments: str, sizes: list[int]) -> list[TokenPiece]:
    """The pieces of one call whose arguments are cut into parts of these sizes."""
    pieces, offset = [], 0
    for size in sizes:
        text = arguments[offset : offset + size]
        call = ToolCallPiece(index=0, id="c1", name="f", arguments=text, offset=offset)
        pieces.append(TokenPiece(index=0, offset=0, text="", tool_calls=[call]))
        offset += size
    return pieces


def test_arguments_in_pieces_are_one_item_and_one_block() -> None:
    for arguments, reason, status in (
        ('{"a": 1}', "tool_calls", "completed"),
        ('{"a": [1, "x', "length", "incomplete"),
    ):
        pieces = call_in_pieces(arguments, [1, 3, 20])
        call = ToolCall(id="c1", name="f", arguments=arguments)
        found = result("", finish_reason=reason, tool_calls=[call])
        events = response_events()
        frames = [*events.opening(), *(frame for piece in pieces for frame in events.piece(piece))]
        frames += [*events.closing(0, found), *events.ending(JOB, found)]
        parsed = [RESPONSES.validate_json(data, strict=True) for data in datas(frames)]
        deltas = [event.delta for event in parsed if event.type == "response.function_call_arguments.delta"]
        assert (len(deltas), "".join(deltas)) == (3, arguments)
        whole = json.loads(datas(frames)[-1])["response"]
        assert [(item["type"], item["status"], item["arguments"]) for item in whole["output"]] == [
            ("function_call", status, arguments)
        ]
        assert whole["output"] == ResponseObject(JOB, Note(echo={}, ignored=[])).whole(found)["output"]


def test_log_probabilities_of_a_call_do_not_divide_its_item() -> None:
    whole = '{"a": 1}'
    logprobs = [Logprob(token=token, logprob=-1.0) for token in "abc"]
    pieces = [piece(0, "So").model_copy(update={"logprobs": logprobs[:1]})]
    pieces += [
        TokenPiece(index=0, offset=2, text="", logprobs=logprobs[1:2]),
        *(found.model_copy(update={"logprobs": logprobs[2:]}) for found in call_in_pieces(whole, [3, 5])),
    ]
    call = ToolCall(id="c1", name="f", arguments=whole)
    found = result("So", finish_reason="tool_calls", tool_calls=[call], logprobs=logprobs)
    events = response_events()
    frames = [*events.opening(), *(frame for piece in pieces for frame in events.piece(piece))]
    frames += [*events.closing(0, found), *events.ending(JOB, found)]
    parsed = [RESPONSES.validate_json(data, strict=True) for data in datas(frames)]
    assert [event.type for event in parsed].count("response.output_item.added") == 2
    items = json.loads(datas(frames)[-1])["response"]["output"]
    assert [(item["type"], item.get("arguments")) for item in items] == [
        ("message", None),
        ("function_call", whole),
    ]


def test_log_probabilities_without_text_come_at_the_end_of_the_message() -> None:
    logprobs = [Logprob(token=token, logprob=-1.0) for token in ("a", "b")]
    for text in ("a", ""):
        events, found = response_events(), result(text, logprobs=logprobs)
        first = piece(0, text).model_copy(update={"logprobs": logprobs[:1]})
        pieces = [first, TokenPiece(index=0, offset=len(text), text="", logprobs=logprobs[1:])]
        frames = [*events.opening(), *(frame for piece in pieces for frame in events.piece(piece))]
        frames += [*events.closing(0, found), *events.ending(JOB, found)]
        (item,) = json.loads(datas(frames)[-1])["response"]["output"]
        assert [token["token"] for token in item["content"][0]["logprobs"]] == ["a", "b"]
        whole = ResponseObject(JOB, Note(echo={}, ignored=[])).whole(found)["output"]
        assert whole == [item]


def test_a_message_has_the_same_call_in_pieces_and_whole() -> None:
    for arguments, reason, value in (
        ('{"a": 1}', "tool_calls", {"a": 1}),
        ('{"a": [1, "x', "length", {"a": [1, "x"]}),
    ):
        pieces = call_in_pieces(arguments, [1, 3, 20])
        found = result(
            "", finish_reason=reason, tool_calls=[ToolCall(id="c1", name="f", arguments=arguments)]
        )
        events = message_events()
        frames = [frame for piece in pieces for frame in events.piece(piece)] + [*events.closing(0, found)]
        parsed = [MESSAGES.validate_json(data, strict=True) for data in datas(frames)]
        assert [event.type for event in parsed] == [
            "content_block_start", *["content_block_delta"] * 3, "content_block_stop", "message_delta",
        ]  # fmt: skip
        texts = [json.loads(data)["delta"]["partial_json"] for data in datas(frames)[1:4]]
        assert "".join(texts) == arguments
        whole = MessageBuilder(job=JOB, model="m", stop_sequences=(), max_tokens=2, ignored=[]).whole(found)
        assert whole["content"] == [{"type": "tool_use", "id": "c1", "name": "f", "input": value}]


def test_thinking_without_an_answer_is_incomplete_with_an_empty_message() -> None:
    events, found = response_events(), result("", finish_reason="length", reasoning="Hm")
    frames = [*events.opening(), *events.piece(TokenPiece(index=0, offset=0, text="", reasoning="Hm"))]
    frames += [*events.closing(0, found), *events.ending(JOB, found)]
    whole = json.loads(datas(frames)[-1])["response"]
    assert [(item["type"], item["status"]) for item in whole["output"]] == [
        ("reasoning", "completed"), ("message", "incomplete"),
    ]  # fmt: skip
    assert whole["output"] == ResponseObject(JOB, Note(echo={}, ignored=[])).whole(found)["output"]


def test_thinking_and_calls_are_blocks_of_a_message() -> None:
    pieces, found = thinking_with_calls()
    events = message_events()
    frames = [*events.opening(), *(frame for piece in pieces for frame in events.piece(piece))]
    frames += [*events.closing(0, found), *events.ending(JOB, found)]
    parsed = [MESSAGES.validate_json(data, strict=True) for data in datas(frames) if '"ping"' not in data]
    blocks: list[dict[str, Any]] = []
    for event in parsed:
        if event.type == "content_block_start":
            blocks.append({"block": event.content_block.type, "text": ""})
            assert event.index == len(blocks) - 1
        if event.type == "content_block_delta":
            delta = event.delta.model_dump()
            blocks[-1]["text"] += next(
                delta[name] for name in ("text", "thinking", "partial_json") if name in delta
            )
    assert blocks == [
        {"block": "thinking", "text": "Hm."}, {"block": "text", "text": "Let me see."},
        {"block": "tool_use", "text": '{"a": 1}'}, {"block": "tool_use", "text": "{}"},
    ]  # fmt: skip
    builder = MessageBuilder(job=JOB, model="m", stop_sequences=(), max_tokens=9, ignored=[])
    whole = Message.model_validate_json(json.dumps(builder.whole(found)), strict=True)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole.content[2].input == {"a": 1}  # type: ignore[union-attr]
    assert whole.stop_reason == "tool_use"
