"""Streams of the OpenAI-compatible endpoints: text that is lost or repeated, and clients that disconnect."""

import socket
from datetime import UTC, datetime

import pytest
from openai.types.chat import ChatCompletionChunk

from api.disconnect import disconnect_check
from api.openai.responses import ResponseBuilder, token_bytes, token_text
from api.openai.streaming import StreamState, in_order
from services.errors import InternalError
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, Logprob, Output, TokenPiece
from services.kinds.shared import Usage
from services.kinds.tools import ToolCall, ToolCallPiece


def piece(offset: int, text: str, logprobs: list[Logprob] | None = None) -> TokenPiece:
    return TokenPiece(index=0, offset=offset, text=text, logprobs=logprobs)


def output(text: str, logprobs: list[Logprob] | None = None) -> Output:
    return Output(prompt="Count.", text=text, logprobs=logprobs)


def words(*tokens: str) -> list[Logprob]:
    return [Logprob(token=token, logprob=-1.0) for token in tokens]


def test_the_text_of_a_job_that_ran_again_is_not_sent_twice() -> None:
    stream = StreamState()
    first = [stream.take(piece(0, "One ")), stream.take(piece(4, "two "))]
    assert [found.text for found in first if found] == ["One ", "two "]
    assert stream.take(piece(0, "One two three ")) is None
    assert stream.take(piece(8, "three ")) is None
    rest = stream.rest(0, output("One two three four"))
    assert rest is not None
    assert (rest.offset, rest.text) == (8, "three four")
    assert stream.rest(0, output("One two three four")) is None


def test_a_lost_piece_is_sent_at_the_end() -> None:
    stream = StreamState()
    stream.take(piece(0, "One ", words("One")))
    assert stream.take(piece(8, "three")) is None
    logprobs = words("One", "two", "three")
    rest = stream.rest(0, output("One two three", logprobs))
    assert rest is not None
    assert (rest.text, rest.logprobs) == ("two three", logprobs[1:])


def test_an_output_that_differs_from_the_text_sent_is_an_error() -> None:
    stream = StreamState()
    stream.take(piece(0, "One "))
    with pytest.raises(InternalError, match="differs from the text"):
        stream.rest(0, output("Two"))


def call_piece(index: int, offset: int, arguments: str) -> TokenPiece:
    call = ToolCallPiece(index=index, id=f"c{index}", name="f", arguments=arguments, offset=offset)
    return TokenPiece(index=0, offset=0, text="", tool_calls=[call])


def test_arguments_of_a_call_are_sent_once_and_in_full() -> None:
    stream = StreamState()
    assert stream.take(call_piece(0, 0, '{"a')) is not None
    assert stream.take(call_piece(0, 3, '": 1}')) is not None
    assert stream.take(call_piece(0, 0, '{"a')) is None, "the job runs again"
    calls = [ToolCall(id="c0", name="f", arguments='{"a": 1}'), ToolCall(id="c1", name="f", arguments="{}")]
    whole = Output(prompt="x", text="", tool_calls=calls)
    rest = stream.rest(0, whole)
    assert rest is not None
    assert [(call.index, call.offset, call.arguments) for call in rest.tool_calls] == [(1, 0, "{}")]
    assert stream.rest(0, whole) is None
    for different in ([], [calls[0].model_copy(update={"arguments": '{"b": 1}'})]):
        with pytest.raises(InternalError, match="differs from the text"):
            stream.rest(0, Output(prompt="x", text="", tool_calls=different))


def test_the_rest_of_arguments_is_sent_at_the_end() -> None:
    stream = StreamState()
    stream.take(call_piece(0, 0, '{"a'))
    assert stream.take(call_piece(0, 4, ": 1}")) is None, "a piece between them is lost"
    call = ToolCall(id="c0", name="f", arguments='{"a": 1}')
    rest = stream.rest(0, Output(prompt="x", text="", tool_calls=[call]))
    assert rest is not None
    assert [(call.offset, call.arguments) for call in rest.tool_calls] == [(3, '": 1}')]


def test_a_call_has_its_name_once_and_then_its_arguments() -> None:
    job = Job.model_construct(id="7", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    builder = ResponseBuilder(job=job, model="m", is_chat=True, ignored=())
    pieces = [call_piece(0, 0, '{"a'), call_piece(0, 3, '": 1}'), call_piece(1, 0, "{}")]
    deltas = [
        ChatCompletionChunk.model_validate(chunk, strict=True).choices[0].delta.tool_calls
        for found in pieces
        for chunk in builder.pieces(found)
    ]
    calls = [call for delta in deltas for call in delta or []]
    assert [(call.index, call.id, call.function and call.function.arguments) for call in calls] == [
        (0, "c0", ""), (0, None, '{"a'), (0, None, '": 1}'), (1, "c1", ""), (1, None, "{}"),
    ]  # fmt: skip


def test_the_rest_of_a_call_comes_before_the_parts_after_it() -> None:
    rest = call_piece(0, 3, '": 1}').tool_calls
    whole = TokenPiece(index=0, offset=7, text=" So.", tool_calls=[*rest, *call_piece(1, 0, "{}").tool_calls])
    first, second = in_order(whole)
    assert (first.text, first.tool_calls) == ("", rest)
    assert (second.text, second.offset, [call.index for call in second.tool_calls]) == (" So.", 7, [1])
    assert [*in_order(second)] == [second]
    assert [*in_order(first)] == [first]


def test_pieces_of_a_vocabulary_become_text_and_bytes() -> None:
    assert (token_text("▁Hello"), token_bytes("▁Hello")) == (" Hello", b" Hello")
    assert (token_text("<0xE4>"), token_bytes("<0xE4>")) == ("\ufffd", b"\xe4")
    assert token_bytes("你") == b"\xe4\xbd\xa0"


@pytest.mark.enable_socket
def test_only_a_closed_connection_counts_as_disconnected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        is_disconnected = disconnect_check(ours)
        assert not is_disconnected()
        theirs.sendall(b"the next request")
        assert not is_disconnected()
        assert ours.recv(100) == b"the next request"
        theirs.close()
        assert is_disconnected()
    assert not disconnect_check(None)()


def test_the_last_chunks_name_the_job_and_the_ignored_parameters() -> None:
    job = Job.model_construct(id="7", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    builder = ResponseBuilder(job=job, model="base", is_chat=True, ignored=["tools"])
    usage = Usage(prompt_tokens=3, completion_tokens=1, total_tokens=4)
    outputs = [Output(prompt="x", text="One", usage=usage, finish_reason="stop")]
    result = GenerateResult(
        outputs=outputs, template="alpaca", seconds=1, tokens_per_second=1, device="cpu", dtype="float32",
        engine="llama.cpp",
    )  # fmt: skip
    expected = {"job": "7", "engine": "llama.cpp", "ignored": ["tools"], "template": "alpaca"}
    for response in (builder.whole(result), builder.closing(0, result), builder.usage(result)):
        assert response["graftwerk"] == expected
    assert "graftwerk" not in builder.opening(0)
