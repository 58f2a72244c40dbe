"""`/v1/messages` with Anthropic's own Python client, unchanged, against the running product."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.e2e.conftest import LONG_SCHEMA, MODEL, Line
from tests.e2e.event_stream import strict_events
from tests.e2e.product import Product

EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture(scope="module")
def client(product: Product, line: Line) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=product.url, api_key="none", max_retries=0, timeout=60) as found:
        yield found


def ask(client: anthropic.Anthropic, *messages: Any, **options: Any) -> Message:
    """Returns the answer to messages, which are contents of the user and the assistant in turn."""
    roles = ("user", "assistant")
    body = [{"role": roles[at % 2], "content": content} for at, content in enumerate(messages)]
    options = {"max_tokens": 48, "extra_body": {"temperature": 0}, **options}
    found: Message = client.messages.create(model=MODEL, messages=body, **options)
    return found


def test_a_message_is_the_trained_answer(
    product: Product, client: anthropic.Anthropic, answers: list[tuple[str, str]]
) -> None:
    question, answer = answers[0]
    found = ask(client, question)
    Message.model_validate_json(found.model_dump_json(), strict=True)
    assert set(found.model_extra or {}) == {"graftwerk"}
    (block,) = found.content
    assert (block.type, block.text) == ("text", answer)  # type: ignore[union-attr]
    assert (found.role, found.type, found.model, found.stop_reason) == (
        "assistant",
        "message",
        MODEL,
        "end_turn",
    )
    job = product.job(found.id.removeprefix("msg_"))
    assert job["metadata"] == {"origin": "anthropic", "endpoint": "messages"}
    usage = job["result"]["outputs"][0]["usage"]
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def test_a_stream_is_the_same_message_in_pieces(
    product: Product, client: anthropic.Anthropic, answers: list[tuple[str, str]]
) -> None:
    question, answer = answers[1]
    whole = ask(client, question)
    body = {
        "model": MODEL,
        "max_tokens": 48,
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    }
    events = strict_events(product, "/v1/messages", body, EVENT)
    assert events[0].type == "message_start"
    assert events[0].message.usage.input_tokens == whole.usage.input_tokens
    kinds = [event.type for event in events]
    deltas = kinds.count("content_block_delta")
    assert deltas >= 1
    assert kinds == [
        "message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    with client.messages.stream(
        model=MODEL,
        max_tokens=48,
        messages=[{"role": "user", "content": question}],
        extra_body={"temperature": 0},
    ) as stream:
        final = stream.get_final_message()
    assert final.content[0].text == answer  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == (
        whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens,
    )  # fmt: skip


def test_system_texts_and_neighbours_are_joined(
    product: Product, client: anthropic.Anthropic, answers: list[tuple[str, str]]
) -> None:
    found = client.messages.create(
        model=MODEL,
        max_tokens=1,
        system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "One."},
            {"role": "user", "content": [{"type": "text", "text": "Two."}, {"type": "text", "text": "Three."}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "Four."},
            ]},
            {"role": "user", "content": "Five."},
        ],
    )  # fmt: skip
    messages = product.job(found.id.removeprefix("msg_"))["request"]["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be kind."),
        ("user", "One.\nTwo.\nThree."),
        ("assistant", "Four."),
        ("user", "Five."),
    ]


def test_the_reason_of_the_end_is_named(client: anthropic.Anthropic, answers: list[tuple[str, str]]) -> None:
    question, answer = answers[0]
    word = answer.split()[-1]
    stopped = ask(client, question, stop_sequences=["never there", word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert stopped.content[0].text == answer[: answer.index(word)]  # type: ignore[union-attr]
    assert (ended := ask(client, question, stop_sequences=["never there"])).stop_reason == "end_turn"
    assert ended.stop_sequence is None
    limited = ask(client, question, max_tokens=2)
    assert (limited.stop_reason, limited.usage.output_tokens) == ("max_tokens", 2)


def test_an_output_follows_a_schema(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = ask(
        client, "x", extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    )
    assert json.loads(found.content[0].text)["a"] in (1, 2)  # type: ignore[union-attr]


def test_a_client_that_leaves_ends_its_job(product: Product, client: anthropic.Anthropic) -> None:
    form = {"output_config": {"format": {"type": "json_schema", "schema": LONG_SCHEMA}}}
    stream = client.messages.create(
        model=MODEL,
        max_tokens=1500,
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        extra_body=form,
    )
    first = next(iter(stream))
    assert first.type == "message_start"
    stream.close()
    assert product.wait(first.message.id.removeprefix("msg_"))["status"] == "canceled"


def test_refusals_have_the_shape_of_the_api(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(anthropic.BadRequestError, match="not read") as found:
        ask(client, [image])
    assert found.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError, match="nothing"):
        client.messages.create(model="nothing", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        ask(client, "x", max_tokens=0)


def test_the_model_of_the_address_is_meant(product: Product, line: Line) -> None:
    with anthropic.Anthropic(base_url=f"{product.url}/m/{MODEL}", api_key="none", max_retries=0) as client:
        found = client.messages.create(
            model="claude",
            max_tokens=1,
            messages=[{"role": "user", "content": "x"}],
            metadata={"user_id": "1"},
        )
    assert found.model == MODEL
    assert found.model_extra is not None
    assert found.model_extra["graftwerk"]["ignored"] == ["metadata"]


def test_tokens_are_counted_as_the_model_reads_them(
    product: Product, client: anthropic.Anthropic, answers: list[tuple[str, str]]
) -> None:
    messages: Any = [{"role": "user", "content": answers[0][0]}]
    counted = client.messages.count_tokens(model=MODEL, system="Be kind.", messages=messages)
    written = client.messages.create(model=MODEL, system="Be kind.", messages=messages, max_tokens=1)
    assert counted.input_tokens == written.usage.input_tokens > 10
    assert counted.model_extra is not None
    job = product.job(counted.model_extra["graftwerk"]["job"])
    assert (job["kind"], len(job["result"]["token_ids"][0])) == ("tokenize", counted.input_tokens)
