"""OpenAI's own Python client, unchanged, against the running product."""

import base64
import json
import math
import struct
import time
from typing import Any, Literal

import httpx
import openai
import pytest
import sentencepiece
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam
from pydantic import BaseModel, Field

from tests.e2e.conftest import MINIATURE, MODEL, Line
from tests.e2e.product import Product

TOOLS: list[ChatCompletionToolUnionParam] = [{"type": "function", "function": {"name": "f"}}]
LONG = {"max_tokens": 1500, "logit_bias": {"2": -100}}
"""The end-of-text token is never sampled: the output continues until it is stopped."""


@pytest.fixture(scope="module")
def question(questions: list[dict[str, str]]) -> tuple[list[ChatCompletionMessageParam], str]:
    """A conversation with one question, and the answer that the model was trained to give."""
    return [{"role": "user", "content": questions[0]["question"]}], questions[0]["answer"]


Question = tuple[list[ChatCompletionMessageParam], str]


def test_the_models_that_generate_are_listed_and_no_others(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"merged", "llama-hf"} <= set(models)
    assert not {"llama", "zh", "alpaca"} & set(models)
    assert models["merged"].object == "model"
    assert time.time() - 3600 < models["merged"].created <= time.time()
    assert client.models.retrieve("merged") == models["merged"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_a_chat_gives_the_trained_answer(product: Product, client: openai.OpenAI, question: Question) -> None:
    messages, answer = question
    found = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    (choice,) = found.choices
    assert choice.message.content == answer
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "stop", 0)
    assert found.object == "chat.completion"
    assert found.model == MODEL
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens > 3
    job = product.job(found.id.removeprefix("chatcmpl-"))
    assert (job["kind"], job["status"]) == ("generate", "succeeded")
    assert job["metadata"] == {"origin": "openai", "endpoint": "chat.completions"}
    assert job["result"]["outputs"][0]["text"] == answer
    assert found.model_extra is not None
    assert found.model_extra["graftwerk"] == {
        "job": job["id"], "engine": "graftwerk", "template": "alpaca", "ignored": [],
    }  # fmt: skip


def test_a_streamed_chat_is_the_same_text_in_pieces(client: openai.OpenAI, question: Question) -> None:
    messages, answer = question
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == answer
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_long_text_arrives_while_it_is_written(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="中国的首都是", seed=1, stream=True, max_tokens=200, logit_bias={"2": -100}
    )
    pieces = [chunk.choices[0] for chunk in stream]
    whole = client.completions.create(
        model=MODEL, prompt="中国的首都是", seed=1, max_tokens=200, logit_bias={"2": -100}
    )
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert len(pieces) > 5
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 200
    assert whole.id.startswith("cmpl-")
    assert whole.object == "text_completion"


class Review(BaseModel):
    """A class whose texts are short."""

    verdict: Literal["yes", "no"]
    score: int = Field(ge=0, le=99)
    tags: list[Literal["red", "blue"]] = Field(max_length=2)


def test_an_answer_is_parsed_into_a_class(client: openai.OpenAI, question: Question) -> None:
    for seed in range(3):
        found = client.chat.completions.parse(
            model=MODEL,
            messages=question[0],
            response_format=Review,
            max_tokens=200,
            seed=seed,
            temperature=1,
        )
        assert found.choices[0].finish_reason == "stop"
        assert isinstance(found.choices[0].message.parsed, Review)


def test_a_streamed_answer_is_json_too(client: openai.OpenAI, question: Question) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=question[0], response_format=Review, max_tokens=200, seed=7
    ) as stream:
        found = stream.get_final_completion()
    assert isinstance(found.choices[0].message.parsed, Review)


def test_a_completion_matches_an_expression(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model=MODEL, prompt=["One", "Two"], max_tokens=20, seed=1, extra_body={"guided_regex": "red|blue"}
    )
    assert {choice.text for choice in found.choices} <= {"red", "blue"}
    assert {choice.finish_reason for choice in found.choices} == {"stop"}


def test_a_schema_that_cannot_be_enforced_is_refused_at_once(
    client: openai.OpenAI, question: Question
) -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
    }
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as found:
        client.chat.completions.create(
            model=MODEL, messages=question[0], extra_body={"response_format": form}
        )
    assert found.value.code == "unsupported_schema"


def test_several_answers_differ_and_a_seed_gives_them_again(
    client: openai.OpenAI, question: Question
) -> None:
    def answers() -> list[str | None]:
        found = client.chat.completions.create(
            model=MODEL, messages=question[0], n=2, seed=5, temperature=2, max_tokens=12
        )
        assert [choice.index for choice in found.choices] == [0, 1]
        return [choice.message.content for choice in found.choices]

    first = answers()
    assert first[0] != first[1]
    assert answers() == first


def test_several_answers_are_streamed_side_by_side(client: openai.OpenAI, question: Question) -> None:
    options = {"model": MODEL, "messages": question[0], "n": 2, "seed": 5, "temperature": 2, "max_tokens": 12}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    texts = ["", ""]
    for chunk in client.chat.completions.create(**options, stream=True):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stop_text_ends_the_answer_and_is_left_out(client: openai.OpenAI, question: Question) -> None:
    messages, answer = question
    word = answer.split()[-1]
    found = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, stop=[word, "never there"]
    )
    assert found.choices[0].message.content == answer[: answer.index(word)]
    assert found.choices[0].finish_reason == "stop"


def test_a_limit_of_tokens_ends_with_length(client: openai.OpenAI, question: Question) -> None:
    found = client.chat.completions.create(
        model=MODEL, messages=question[0], temperature=0, max_completion_tokens=2
    )
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert found.usage.completion_tokens == 2


def test_logprobs_of_a_chat_spell_the_text(client: openai.OpenAI, question: Question) -> None:
    messages, answer = question
    found = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode().lstrip() == answer
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        # greedy: the token itself is the likeliest
        assert token.top_logprobs[0].token == token.token
        assert math.isclose(token.top_logprobs[0].logprob, token.logprob)


def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI, question: Question) -> None:
    options = {"model": MODEL, "messages": question[0], "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    found = [
        token
        for chunk in client.chat.completions.create(**options, stream=True)  # type: ignore[call-overload]
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert found == whole.choices[0].logprobs.content


def test_logprobs_of_a_completion_have_their_offsets(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="llama-hf", prompt="The capital of France is", temperature=0, logprobs=2
    )
    logprobs = found.choices[0].logprobs
    assert found.choices[0].text == "Paris."
    assert logprobs is not None
    assert "".join(logprobs.tokens or []).lstrip() == "Paris."
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[0] == 0
    assert [len(top) for top in logprobs.top_logprobs or []] == [2] * len(logprobs.tokens or [])


def test_an_echo_scores_the_prompt_and_the_new_tokens(product: Product, client: openai.OpenAI) -> None:
    text = "The capital of France is"
    job = product.run(
        kind="generate", model=MODEL, prompt=text, score_prompt=True, return_token_ids=True,
        sampling={"temperature": 0, "max_new_tokens": 2, "logprobs": 1, "repetition_penalty": 1, "top_k": 0, "top_p": 1},
    )  # fmt: skip
    (output,) = job["result"]["outputs"]
    ids = output["prompt_token_ids"]
    by_text = client.completions.create(
        model=MODEL, prompt=text, echo=True, logprobs=1, max_tokens=2, temperature=0
    )
    by_ids = client.completions.create(
        model=MODEL, prompt=[ids, ids], echo=True, logprobs=1, max_tokens=2, temperature=0
    )
    assert [choice.index for choice in by_ids.choices] == [0, 1]
    for choice in (*by_text.choices, *by_ids.choices):
        assert choice.text == text + output["text"]
        assert choice.logprobs is not None
        scores, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
        assert scores is not None and tops is not None
        assert len(scores) == len(tops) == len(ids) + 2
        assert (scores[0], tops[0]) == (None, None)
        expected = [item["logprob"] for item in (*output["prompt_logprobs"][1:], *output["logprobs"])]
        assert scores[1:] == pytest.approx(expected, abs=1e-4)
        assert all(len(top or {}) == 1 for top in tops[1:])
        assert scores[-1] == max((tops[-1] or {}).values())  # greedy


def test_a_prompt_is_scored_without_new_tokens(client: openai.OpenAI) -> None:
    found = client.completions.create(model=MODEL, prompt="The sky is", echo=True, logprobs=0, max_tokens=0)
    (choice,) = found.choices
    assert choice.text == "The sky is"
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert all(score < 0 for score in choice.logprobs.token_logprobs[1:])
    assert found.usage is not None
    assert found.usage.completion_tokens == 0


def test_token_ids_beyond_the_vocabulary_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="100000 at position 1"):
        client.completions.create(model=MODEL, prompt=[1, 100000])


def test_token_ids_have_the_vector_of_their_text(product: Product, client: openai.OpenAI) -> None:
    job = product.run(
        kind="generate", model=MODEL, prompt="The sky", return_token_ids=True, sampling={"max_new_tokens": 0}
    )
    ids = job["result"]["outputs"][0]["prompt_token_ids"]
    found = client.embeddings.create(model=MODEL, input=[ids])
    assert found.data[0].embedding == client.embeddings.create(model=MODEL, input="The sky").data[0].embedding


def test_several_prompts_are_completed_in_their_order(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="llama-hf", prompt=["The capital of France is", "The capital of Japan is"], temperature=0
    )
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, "Paris."), (1, "Tokyo.")]


def test_own_parameters_come_as_extra_body(client: openai.OpenAI, questions: list[dict[str, str]]) -> None:
    found = client.completions.create(
        model=MODEL,
        prompt=questions[3]["question"],
        max_tokens=60,
        extra_body={"template": "alpaca", "top_k": 1, "repetition_penalty": 1.0, "min_p": 0.1},
    )
    assert found.choices[0].text == questions[3]["answer"]


def test_embeddings_have_length_one_and_are_the_same_for_the_same_text(client: openai.OpenAI) -> None:
    texts = ["What is the capital of China?", "你好", "What is the capital of China?"]
    found = client.embeddings.create(model=MODEL, input=texts)
    vectors = [item.embedding for item in found.data]
    assert [item.index for item in found.data] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {112}
    assert all(math.isclose(sum(number**2 for number in vector), 1, rel_tol=1e-5) for vector in vectors)
    assert vectors[0] == vectors[2] != vectors[1]
    assert client.embeddings.create(model=MODEL, input=texts[1]).data[0].embedding == vectors[1]
    assert found.usage.prompt_tokens == found.usage.total_tokens > 3


def test_embeddings_as_numbers_and_as_base64_are_the_same(product: Product, line: Line) -> None:
    def embedding(encoding: str) -> object:
        body = {"model": MODEL, "input": "hello", "encoding_format": encoding}
        answer = product.http.post("/v1/embeddings", json=body)
        return answer.json()["data"][0]["embedding"]

    packed = embedding("base64")
    assert isinstance(packed, str)
    numbers = struct.unpack("<112f", base64.b64decode(packed))
    assert embedding("float") == pytest.approx(numbers, rel=1e-6)


def test_refusals_are_errors_of_the_official_client(client: openai.OpenAI, question: Question) -> None:
    messages = question[0]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nothing", messages=messages)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="tool_choice requires a call") as tools:
        client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, tool_choice="required")
    assert (tools.value.code, tools.value.type) == ("unsupported_option", "invalid_request_error")
    with pytest.raises(openai.APIStatusError, match="vocabulary would shrink") as swapped:
        client.chat.completions.create(model="llama-hf+alpaca+zh", messages=messages)
    assert swapped.value.code == "wrong_adapter_order"
    with pytest.raises(openai.BadRequestError, match="tokens") as long:
        client.completions.create(model=MODEL, prompt="word " * 9000, stream=True)
    assert long.value.code == "context_length_exceeded"


def test_offered_tools_are_left_out_and_named(client: openai.OpenAI, question: Question) -> None:
    messages, answer = question
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, tools=TOOLS)
    assert whole.choices[0].message.content == answer
    assert (whole.model_extra or {})["graftwerk"]["ignored"] == ["tools"]
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, tools=TOOLS, tool_choice="auto", stream=True
    )
    *_, last = stream
    assert (last.model_extra or {})["graftwerk"]["ignored"] == ["tools"]


def test_a_conversation_with_a_tool_call_continues(client: openai.OpenAI, question: Question) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *question[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    found = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)  # type: ignore[arg-type]
    assert found.usage is not None
    assert found.usage.completion_tokens <= 4


def test_a_limit_above_the_context_is_lowered(client: openai.OpenAI, question: Question) -> None:
    found = client.chat.completions.create(
        model=MODEL, messages=question[0], temperature=0, max_tokens=32_000
    )
    assert found.choices[0].message.content == question[1]


def test_base_and_adapters_answer_as_the_merged_model_does(client: openai.OpenAI, question: Question) -> None:
    answers = [
        client.chat.completions.create(model=model, messages=question[0], temperature=0, max_tokens=48)
        for model in (MODEL, "llama-hf+zh+alpaca")
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[1].usage == answers[0].usage


def job_id_of(answer: httpx.Response) -> str:
    for text in answer.iter_lines():
        if text.startswith("data: {"):
            found: str = json.loads(text.removeprefix("data: "))["id"]
            return found.removeprefix("chatcmpl-")
    raise AssertionError("the stream ended before its first chunk")


def test_a_client_that_leaves_its_stream_ends_the_job(
    product: Product, line: Line, question: Question
) -> None:
    body = {"model": MODEL, "messages": question[0], "stream": True, **LONG}
    with httpx.Client(base_url=product.url, trust_env=False) as client:  # noqa: SIM117
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            job_id = job_id_of(answer)
    left = time.monotonic()
    assert product.wait(job_id)["status"] == "canceled"
    assert time.monotonic() - left < 3


def test_a_client_that_stops_waiting_ends_the_job(product: Product, line: Line, question: Question) -> None:
    body = {"model": MODEL, "messages": question[0], **LONG}
    client = httpx.Client(base_url=product.url, trust_env=False, timeout=0.5)
    with client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body)
    job = product.get("/api/jobs", kind="generate", limit=1)["jobs"][0]
    assert job["metadata"]["origin"] == "openai"
    left = time.monotonic()
    assert product.wait(job["id"])["status"] == "canceled"
    assert time.monotonic() - left < 3


def test_the_tokenizer_next_to_v1_is_that_of_the_model(product: Product, line: Line) -> None:
    reference: Any = sentencepiece.SentencePieceProcessor
    ids = reference(model_file=str(MINIATURE / "llama" / "tokenizer.model")).encode("The capital of France")
    found = product.http.post("/m/llama-hf/tokenize", json={"prompt": "The capital of France"}).json()
    assert found["tokens"] == [1, *ids]
    assert product.job(found["graftwerk"]["job"])["request"]["texts"] == ["The capital of France"]
    text = product.http.post("/detokenize", json={"model": "llama-hf", "tokens": ids}).json()["prompt"]
    assert text == "The capital of France"
    facts = product.http.get("/tokenizer_info", params={"model": "merged"}).json()
    assert (facts["bos_token"], facts["eos_token"]) == ("<s>", "</s>")
    refused = product.http.get("/tokenizer_info")
    assert refused.status_code == 400
    assert "llama-hf" in refused.json()["error"]["message"]
