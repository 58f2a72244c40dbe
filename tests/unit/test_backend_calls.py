"""Requests to another server, by the kind of server and of prompt, and its events as they are read."""

import json
import re
from typing import Any

import pytest

from services.backend import CallPart, Chunk, ServedModel, call_of, check_forwardable
from services.backend.chunks import parse_chunk
from services.errors import InvalidRequest, NotReady, UnknownTemplate, UnsupportedOption
from services.kinds.generate import GenerateRequest, Logprob
from services.kinds.shared import Usage
from services.models.prompt_file import PromptEntry
from services.settings import Settings
from services.templates import Message

PLAIN = {"top_k": 0, "repetition_penalty": 1}
TURN = Message(role="user", content="Hello")
HELLO = PromptEntry(messages=(TURN,))
PROMPT = PromptEntry(prompt="Hello")


def served(dialect: str) -> ServedModel:
    return ServedModel("org/m:8b", owned_by=dialect, created=0, dialect=dialect, server="http://there:1")


def request_of(**fields: Any) -> GenerateRequest:
    body = {"kind": "generate", "model": "org/m:8b", "prompt": "Hello", "sampling": PLAIN, **fields}
    if "messages" in fields:
        body["prompt"] = None
    return GenerateRequest.model_validate(body)


def body_of(dialect: str = "vllm", entry: PromptEntry = PROMPT, **fields: Any) -> dict[str, Any]:
    return call_of(request_of(**fields), entry, served(dialect), index=0, seed=5).body


def test_a_prompt_is_continued_as_it_stands() -> None:
    call = call_of(request_of(), PROMPT, served("openai"), index=0, seed=5)
    assert (call.path, call.template) == ("/v1/completions", "raw")
    assert call.body == {
        "model": "org/m:8b", "prompt": "Hello", "max_tokens": 400, "temperature": 0.2, "top_p": 0.9,
        "presence_penalty": 0, "frequency_penalty": 0, "seed": 5,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_a_conversation_is_left_to_the_server_and_the_system_text_goes_first() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    call = call_of(request_of(messages=messages, system="Be brief."), HELLO, served("x"), index=0, seed=5)
    assert (call.path, call.template) == ("/v1/chat/completions", "model")
    assert call.body["messages"] == [{"role": "system", "content": "Be brief."}, *messages]
    assert "prompt" not in call.body


def test_results_of_tools_are_user_messages_since_their_calls_are_missing() -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "rain"},
    ]
    entry = PromptEntry.model_validate({"messages": messages})
    assert body_of(entry=entry, messages=messages)["messages"] == [
        *messages[:2],
        {"role": "user", "content": "rain"},
    ]


def test_tools_and_calls_of_a_conversation_are_sent_as_they_are() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    choice = {"type": "function", "function": {"name": "weather"}}
    entry = PromptEntry.model_validate({"messages": messages})
    body = body_of(entry=entry, messages=messages, tools=tools, tool_choice=choice, parallel_tool_calls=False)
    assert (body["messages"], body["tools"], body["tool_choice"]) == (messages, tools, choice)
    assert body["parallel_tool_calls"] is False
    with pytest.raises(UnsupportedOption, match="A required call is not available here"):
        body_of(tools=tools, tool_choice="required")


def test_calls_and_thinking_of_a_stream_are_read() -> None:
    opening = {"index": 1, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    delta = {
        "reasoning_content": "Hm",
        "tool_calls": [opening, {"index": 1, "function": {"arguments": "{}"}}],
    }
    found = parse_chunk(json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
    assert found == Chunk(reasoning="Hm", calls=(CallPart(1, "c1", "weather", ""), CallPart(1, "", "", "{}")))


def test_a_prompt_with_the_models_own_template_is_a_conversation_of_one_turn() -> None:
    body = body_of(template="model", input="And this?")
    assert body["messages"] == [{"role": "user", "content": "Hello\nAnd this?"}]


def test_a_template_of_text_alone_is_written_down_here_with_what_ends_it() -> None:
    body = body_of(template="alpaca", sampling=PLAIN | {"stop": ["END"]})
    assert body["prompt"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n\nHello\n\n### Response:\n\n"
    )
    assert body["stop"] == ["END", "### Instruction:"]


def test_a_first_turn_of_llama_2_is_text_and_a_second_one_is_not() -> None:
    body = body_of(template="llama-2", system="S")
    assert body["prompt"] == "[INST] <<SYS>>\nS\n<</SYS>>\n\nHello [/INST]"
    turns = (TURN, Message(role="assistant", content="Hi"), TURN)
    messages = [Message(role=turn.role, content=turn.content) for turn in turns]
    with pytest.raises(UnsupportedOption, match="llama-2"):
        body_of(entry=PromptEntry(messages=turns), messages=messages, template="llama-2")


def test_each_server_is_told_all_it_knows_in_its_own_words() -> None:
    sampling = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2}
    neutral = {"top_k": 0, "min_p": None, "repetition_penalty": 1}
    expected: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "vllm": (
            {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 0},
            {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "min_tokens": 0},
        ),
        "llamacpp": (
            {"top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2, "typical_p": 1, "repeat_last_n": 1_000_000},
            {"top_k": 0, "min_p": 0, "repeat_penalty": 1, "typical_p": 1, "repeat_last_n": 1_000_000},
        ),
        "graftwerk": (
            {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2},
            {"top_k": 0, "min_p": 0, "repetition_penalty": 1},
        ),
    }
    common = set(body_of("somebody"))
    for dialect, bodies in expected.items():
        for given, words in zip((sampling, neutral), bodies, strict=True):
            body = body_of(dialect, sampling=given)
            assert {name: body[name] for name in set(body) - common} == words, dialect


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 40), ("min_p", 0.1), ("typical_p", 0.5), ("repetition_penalty", 1.1), ("min_new_tokens", 3),
     ("no_repeat_ngram_size", 2), ("num_beams", 2), ("stop_token_ids", (2,))],
)  # fmt: skip
def test_a_strict_server_is_never_sent_what_it_does_not_know(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedOption, match=re.escape(f"{name}; the request sets it to {value}")):
        body_of("somebody", sampling=PLAIN | {name: value})


def test_tokens_that_end_an_output_are_sent_only_if_there_are_any() -> None:
    for dialect in ("vllm", "graftwerk"):
        assert "stop_token_ids" not in body_of(dialect)
        assert body_of(dialect, sampling=PLAIN | {"stop_token_ids": [2, 7]})["stop_token_ids"] == (2, 7)
    with pytest.raises(UnsupportedOption, match="stop_token_ids"):
        body_of("llamacpp", sampling=PLAIN | {"stop_token_ids": [2]})


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def test_a_form_is_sent_in_the_words_of_each_server_or_refused() -> None:
    ours = {"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA, "strict": True}}
    expected = {
        "vllm": {"structured_outputs": {"json": SCHEMA}},
        "llamacpp": {"json_schema": SCHEMA},
        "graftwerk": {"response_format": ours},
    }
    for dialect, words in expected.items():
        body = body_of(dialect, response_format=FORM)
        assert {name: body[name] for name in set(body) - set(body_of(dialect))} == words
    assert body_of("vllm", guided_regex="a|b")["structured_outputs"] == {"regex": "a|b"}
    assert body_of("graftwerk", guided_regex="a|b")["guided_regex"] == "a|b"
    for dialect, fields in (
        ("llamacpp", {"guided_regex": "a"}),
        ("ollama", {"guided_regex": "a"}),
        ("ollama", {"response_format": FORM}),
    ):
        with pytest.raises(UnsupportedOption, match=next(iter(fields))):
            body_of(dialect, **fields)
    assert request_of(response_format=FORM).is_forwardable


def test_the_assistants_last_message_is_continued_by_servers_that_do_so() -> None:
    turns = (TURN, Message(role="assistant", content="He"))
    asked = {"messages": [turn.model_dump() for turn in turns]}
    begun = PromptEntry(messages=turns)
    vllm = body_of("vllm", begun, **asked)
    assert (vllm["add_generation_prompt"], vllm["continue_final_message"]) == (False, True)
    for dialect in ("llamacpp", "graftwerk"):
        assert body_of(dialect, begun, **asked)["messages"][-1] == {"role": "assistant", "content": "He"}
    with pytest.raises(UnsupportedOption, match="may not continue an assistant's last message"):
        body_of("ollama", begun, **asked)


def test_greedy_is_a_temperature_of_zero_and_logit_bias_has_texts_for_names() -> None:
    assert body_of(sampling=PLAIN | {"do_sample": False})["temperature"] == 0
    assert body_of(sampling=PLAIN | {"logit_bias": {"2": -100}})["logit_bias"] == {"2": -100.0}


def test_log_probabilities_are_asked_for_as_each_endpoint_wants() -> None:
    assert body_of(sampling=PLAIN | {"logprobs": 0})["logprobs"] == 0
    chat = body_of(entry=HELLO, messages=[{"role": "user", "content": "x"}], sampling=PLAIN | {"logprobs": 3})
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 3)
    assert "logprobs" not in body_of()


def test_several_answers_have_seeds_of_their_own() -> None:
    request = request_of(sampling=PLAIN | {"n": 3})
    seeds = [call_of(request, PROMPT, served("vllm"), index=i, seed=2**63 - 2).body["seed"] for i in range(3)]
    assert seeds == [2**63 - 2, 2**63 - 1, 0]
    assert "n" not in call_of(request, PROMPT, served("vllm"), index=0, seed=1).body


def test_only_a_chat_can_go_without_a_limit() -> None:
    free = {"sampling": PLAIN | {"max_new_tokens": 1_000_000}, "fit_context": True}
    body = body_of(entry=HELLO, messages=[{"role": "user", "content": "x"}], **free)
    assert "max_tokens" not in body
    with pytest.raises(UnsupportedOption, match="without a limit"):
        body_of(**free)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"template": "chatml"}, UnsupportedOption),
        ({"template": "llama-3"}, UnsupportedOption),
        ({"template": "no-such"}, UnknownTemplate),
        ({"system": "S"}, InvalidRequest),
        ({"input": "I"}, InvalidRequest),
        ({"return_token_ids": True}, UnsupportedOption),
        ({"sampling": PLAIN | {"max_new_tokens": 0}}, UnsupportedOption),
    ],
)
def test_what_cannot_be_passed_on_is_refused(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_forwardable(request_of(**fields), served("vllm"))


@pytest.mark.parametrize(
    ("fields", "forwarded"),
    [({}, True), ({"adapters": ["a"]}, False), ({"quantization": "8bit"}, False), ({"rope_alpha": 2}, False),
     ({"forward": False}, False)],
)  # fmt: skip
def test_what_says_how_to_load_is_of_the_shelf(fields: dict[str, Any], forwarded: bool) -> None:
    assert request_of(**fields).is_forwardable is forwarded


# ---- events -------------------------------------------------------------------------------------------


def test_chunks_of_both_endpoints_are_read() -> None:
    chat = (
        '{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": null}]}'
    )
    assert parse_chunk(chat) == Chunk("Hi")
    ended = '{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": null}'
    assert parse_chunk(ended) == Chunk("", "stop")
    text = '{"choices": [{"index": 0, "text": "Hi", "logprobs": null, "finish_reason": "length"}]}'
    assert parse_chunk(text) == Chunk("Hi", "length")
    counts = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    counted = '{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": null}}'
    assert parse_chunk(counted) == Chunk(usage=counts)


def test_both_forms_of_log_probabilities_become_a_jobs_own() -> None:
    top = [Logprob(token=" a", logprob=-0.5), Logprob(token="b", logprob=-1.5)]
    expected = [Logprob(token=" a", logprob=-0.5, top=top)]
    chat = (
        '{"choices": [{"delta": {"content": " a"}, "logprobs": {"content": [{"token": " a", "logprob": -0.5, "bytes": [32, 97],'
        ' "top_logprobs": [{"token": " a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}]}}]}'
    )
    text = (
        '{"choices": [{"text": " a", "logprobs": {"tokens": [" a"], "token_logprobs": [-0.5],'
        ' "top_logprobs": [{" a": -0.5, "b": -1.5}], "text_offset": [0]}}]}'
    )
    assert list(parse_chunk(chat).logprobs) == expected
    assert list(parse_chunk(text).logprobs) == expected
    bare = '{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": null}}]}'
    assert [item.model_dump(exclude_unset=True) for item in parse_chunk(bare).logprobs] == [
        {"token": "a", "logprob": -1}
    ]


@pytest.mark.parametrize("data", ["<html>", "[]", "{}", '{"choices": [{}]}', '{"choices": [3]}'])
def test_what_is_no_chunk_is_said_to_be_none(data: str) -> None:
    with pytest.raises(NotReady, match="not a chunk"):
        parse_chunk(data)


# ---- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://there:8000", "http://there:8000/", "http://there:8000/v1", "http://there:8000/v1/"]
)
def test_the_address_may_be_written_as_openais_clients_want_it(url: str) -> None:
    assert Settings(generate_backend_url=url).generate_backend_url == "http://there:8000"


def test_an_address_that_is_none_is_refused_and_an_empty_one_is_unset() -> None:
    assert Settings(generate_backend_url="").generate_backend_url is None
    with pytest.raises(ValueError, match="The address must look like"):
        Settings(generate_backend_url="there:8000")


def test_the_key_comes_from_the_setting_or_from_a_file(tmp_path: Any) -> None:
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    assert Settings(generate_backend_key_file=tmp_path / "key").backend_key == "secret"
    assert Settings(generate_backend_key="mine").backend_key == "mine"  # type: ignore[arg-type]
    assert Settings().backend_key is None
    assert "mine" not in repr(Settings(generate_backend_key="mine"))  # type: ignore[arg-type]
