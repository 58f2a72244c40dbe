"""`/v1/responses` with OpenAI's own Python client, unchanged, against the running product."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseInputParam, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, Field, TypeAdapter

from tests.e2e.conftest import LONG_SCHEMA, MODEL
from tests.e2e.event_stream import strict_events
from tests.e2e.product import Product

FORMAT: dict[str, Any] = {"format": {"type": "json_schema", "name": "long", "schema": LONG_SCHEMA}}
"""A form whose outputs are long."""

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def events_of(product: Product, body: dict[str, Any]) -> list[ResponseStreamEvent]:
    """Returns the events of a response, which must be numbered in order."""
    found = strict_events(product, "/v1/responses", body, EVENT)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    return found


def without_graftwerk(value: Any) -> Any:
    """Returns fields that OpenAI's types do not know, anywhere in a model."""
    if isinstance(value, BaseModel):
        extra = set(value.model_extra or {})
        nested = [without_graftwerk(getattr(value, name)) for name in type(value).model_fields]
        return extra.union(*nested)
    if isinstance(value, list):
        return set().union(*map(without_graftwerk, value))
    return set()


def test_a_response_is_the_trained_answer(
    product: Product, client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    question, answer = answers[0]
    found = client.responses.create(
        model=MODEL, input=question, temperature=0, instructions=None, metadata={"who": "me"}
    )
    Response.model_validate_json(found.model_dump_json(by_alias=True), strict=True)
    assert without_graftwerk(found) <= {"graftwerk", "store"}
    assert found.output_text == answer
    assert (found.status, found.object, found.model) == ("completed", "response", MODEL)
    assert found.metadata == {"who": "me"}
    (item,) = found.output
    assert (item.type, item.status) == ("message", "completed")
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    job = product.job(found.id.removeprefix("resp_"))
    assert job["metadata"] == {"origin": "openai", "endpoint": "responses"}
    assert job["result"]["outputs"][0]["usage"]["prompt_tokens"] == found.usage.input_tokens
    assert found.created_at <= (found.completed_at or 0) <= time.time()
    assert client.responses.retrieve(found.id) == found


def test_a_stream_has_every_event_of_the_response(
    product: Product, client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    question, answer = answers[1]
    events = events_of(product, {"model": MODEL, "input": question, "temperature": 0})
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas >= 1
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == answer
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == answer
    assert client.responses.retrieve(last.response.id) == last.response
    with client.responses.stream(model=MODEL, input=question, temperature=0) as stream:
        assert stream.get_final_response().output_text == answer


@pytest.mark.parametrize("background", [False, True])
def test_a_kept_stream_comes_once_more_from_any_event(
    product: Product, client: openai.OpenAI, answers: list[tuple[str, str]], background: bool
) -> None:
    body = {"model": MODEL, "input": answers[0][0], "temperature": 0, "background": background}
    events = events_of(product, body)
    last = events[-1]
    assert last.type == "response.completed"
    again = list(client.responses.retrieve(last.response.id, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
    for after in (0, 3, len(events) - 2):
        rest = list(client.responses.retrieve(last.response.id, stream=True, starting_after=after))
        assert [event.to_dict() for event in rest] == [event.to_dict() for event in events[after + 1 :]]
    (end,) = client.responses.retrieve(last.response.id, stream=True, starting_after=10_000)
    assert end == last
    with pytest.raises(openai.BadRequestError, match="send stream=true too"):
        client.responses.retrieve(last.response.id, extra_query={"starting_after": 1})


def test_a_response_in_the_background_is_followed_until_its_end(
    client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    question, answer = answers[1]
    found = client.responses.create(model=MODEL, input=question, temperature=0, background=True)
    events = list(client.responses.retrieve(found.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer
    assert events[-1].type == "response.completed"


def test_input_items_are_listed_page_by_page(product: Product, client: openai.OpenAI) -> None:
    call: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
    items: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Let me see."},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "Two."},
        {"role": "user", "content": "And?"},
    ]
    first = client.responses.create(model=MODEL, instructions="Short.", input=items, max_output_tokens=1)
    expected = [
        ("message", "Be kind."), ("message", "One?"), ("message", "Let me see."), ("function_call", '{"a": 1}'),
        ("function_call_output", "Two."), ("message", "And?"),
    ]  # fmt: skip

    def shown(item: Any) -> tuple[str, str]:
        if item.type == "message":
            return item.type, item.content[0].text
        return item.type, item.arguments if item.type == "function_call" else item.output

    for limit in (2, 100):
        listed = list(client.responses.input_items.list(first.id, order="asc", limit=limit))
        assert [shown(item) for item in listed] == expected
    assert [shown(item) for item in client.responses.input_items.list(first.id)] == expected[::-1]
    raw = httpx.get(f"{product.url}/v1/responses/{first.id}/input_items", timeout=60)
    ResponseItemList.model_validate_json(raw.content, strict=True)
    assert raw.json()["has_more"] is False
    two = client.responses.create(
        model=MODEL, previous_response_id=first.id, input="So?", max_output_tokens=1
    )
    turns = [shown(item) for item in client.responses.input_items.list(two.id, order="asc")]
    assert turns == [*expected, ("message", first.output_text), ("message", "So?")]
    with pytest.raises(openai.BadRequestError, match="no input item 'x'"):
        client.responses.input_items.list(first.id, after="x")
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_0")


def test_a_limit_makes_a_response_incomplete(product: Product, client: openai.OpenAI) -> None:
    found = client.responses.create(model=MODEL, input="Tell me.", max_output_tokens=3, temperature=0)
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.output[0].type == "message"
    assert found.output[0].status == "incomplete"
    assert found.usage is not None
    assert found.usage.output_tokens == 3
    events = events_of(
        product, {"model": MODEL, "input": "Tell me.", "max_output_tokens": 3, "temperature": 0}
    )
    assert events[-1].type == "response.incomplete"


def prompt_of(product: Product, found: Response) -> list[dict[str, str]]:
    """The messages of a response's job."""
    messages: list[dict[str, str]] = product.job(found.id.removeprefix("resp_"))["request"]["messages"]
    return messages


def test_a_conversation_is_continued_without_its_instructions(
    product: Product, client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    (first, _), (second, _) = answers[:2]
    items: ResponseInputParam = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": first}]},
    ]
    one = client.responses.create(model=MODEL, input=items, instructions="Be brief.", temperature=0)
    assert prompt_of(product, one)[0] == {"role": "system", "content": "Be brief.\n\nBe kind."}
    two = client.responses.create(
        model=MODEL, input=second, previous_response_id=one.id, instructions="Be long.", temperature=0
    )
    assert two.previous_response_id == one.id
    assert two.instructions == "Be long."
    assert prompt_of(product, two) == [
        {"role": "system", "content": "Be long.\n\nBe kind."},
        {"role": "user", "content": first},
        {"role": "assistant", "content": one.output_text},
        {"role": "user", "content": second},
    ]
    whole = client.responses.create(
        model=MODEL,
        instructions="Be long.",
        input=[*items, *one.output, {"role": "user", "content": second}],  # type: ignore[list-item]
        temperature=0,
        store=False,
    )
    assert prompt_of(product, whole) == prompt_of(product, two)
    assert whole.output_text == two.output_text
    three = client.responses.create(
        model=MODEL, input="And?", previous_response_id=two.id, max_output_tokens=1
    )
    assert [message["role"] for message in prompt_of(product, three)] == [
        "system",
        *["user", "assistant"] * 2,
        "user",
    ]
    assert prompt_of(product, three)[0]["content"] == "Be kind."


def test_what_is_not_kept_is_not_found(client: openai.OpenAI) -> None:
    gone = client.responses.create(model=MODEL, input="x", max_output_tokens=1, store=False)
    kept = client.responses.create(model=MODEL, input="x", max_output_tokens=1)
    client.responses.delete(kept.id)
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    for missing in (gone.id, kept.id, chat.id.replace("chatcmpl", "resp"), "resp_1", "x"):
        with pytest.raises(openai.NotFoundError, match="no response"):
            client.responses.retrieve(missing)
        with pytest.raises(openai.NotFoundError) as found:
            client.responses.create(model=MODEL, input="x", previous_response_id=missing)
        assert found.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(missing)


class Review(BaseModel):
    """A class whose texts are short."""

    verdict: Literal["yes", "no"]
    score: int = Field(ge=0, le=99)


def test_a_text_is_parsed_into_a_class(client: openai.OpenAI) -> None:
    found = client.responses.parse(
        model=MODEL, input="Is it good?", text_format=Review, max_output_tokens=100
    )
    assert isinstance(found.output_parsed, Review)
    assert found.text is not None
    assert found.text.format is not None
    assert found.text.format.type == "json_schema"
    assert found.text.format.name == "Review"
    again = client.responses.retrieve(found.id)
    assert again.text == found.text


def test_log_probabilities_are_those_of_a_chat(
    product: Product, client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    body = {"model": MODEL, "input": answers[0][0], "temperature": 0, "top_logprobs": 2}
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": answers[0][0]}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    assert chat.choices[0].logprobs is not None
    expected = [item.model_dump() for item in chat.choices[0].logprobs.content or []]
    events = events_of(product, body)
    last = events[-1]
    assert last.type == "response.completed"
    (part,) = last.response.output[0].content  # type: ignore[union-attr]
    assert [item.model_dump() for item in part.logprobs or []] == expected  # type: ignore[union-attr]
    streamed = [
        item for event in events if event.type == "response.output_text.delta" for item in event.logprobs
    ]
    assert [(item.token, item.logprob) for item in streamed] == [
        (item["token"], item["logprob"]) for item in expected
    ]


def statuses(client: openai.OpenAI, response_id: str, until: Sequence[str]) -> list[str | None]:
    """Retrieves a response until it has one of these statuses, and returns all that it had."""
    found: list[str | None] = []
    deadline = time.monotonic() + 60
    while not found or found[-1] not in until:
        assert time.monotonic() < deadline, found
        found.append(client.responses.retrieve(response_id).status)
        time.sleep(0.05)
    return found


def test_a_response_in_the_background_is_retrieved(
    client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    question, answer = answers[2]
    found = client.responses.create(model=MODEL, input=question, temperature=0, background=True)
    assert found.status in ("queued", "in_progress")
    assert found.output == []
    seen = statuses(client, found.id, ["completed", "failed"])
    assert set(seen) <= {"queued", "in_progress", "completed"}
    assert client.responses.retrieve(found.id).output_text == answer


def test_a_response_in_the_background_is_canceled(client: openai.OpenAI) -> None:
    found = client.responses.create(model=MODEL, input="x", background=True, text=FORMAT, temperature=2)
    client.responses.cancel(found.id)
    assert statuses(client, found.id, ["cancelled", "completed"])[-1] == "cancelled"
    other = client.responses.create(model=MODEL, input="x", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(other.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="x", previous_response_id=found.id + "0")


def test_a_client_that_leaves_ends_its_job_and_the_background_goes_on(
    product: Product, client: openai.OpenAI
) -> None:
    options: dict[str, Any] = {"model": MODEL, "input": "x", "text": FORMAT}
    options |= {"temperature": 2, "max_output_tokens": 1500, "stream": True}

    def leave(**more: Any) -> str:
        stream = client.responses.create(**options, **more)
        first = next(iter(stream))
        stream.close()
        return str(first.response.id.removeprefix("resp_"))

    left = leave()
    assert product.wait(left)["status"] == "canceled"
    background = leave(background=True)
    assert product.wait(background)["status"] == "succeeded"


def test_what_coding_programs_send_is_taken(
    product: Product, client: openai.OpenAI, answers: list[tuple[str, str]]
) -> None:
    """The shape of the requests of codex 0.171."""
    body = {
        "model": "whichever",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Permissions."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": answers[0][0]}]},
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "Runs.", "strict": False,
             "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}},
            {"type": "namespace", "name": "mcp", "tools": []},
            {"type": "web_search"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "1",
        "client_metadata": {"x": "y"},
    }  # fmt: skip
    with httpx.stream(
        "POST", f"{product.url}/m/{MODEL}/v1/responses", json=body | {"stream": True}, timeout=60
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    last = EVENT.validate_json(lines[-1], strict=True)
    assert last.type == "response.completed"
    assert last.response.model == MODEL
    assert last.response.output_text
    assert {"client_metadata", "include", "reasoning", "tools.namespace", "tools.web_search"} <= set(
        last.response.model_extra["graftwerk"]["ignored"]  # type: ignore[index]
    )
