"""Tools and thinking with the official client: the merged miniature with a chat template that takes tools."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest

from tests.e2e.conftest import Line
from tests.e2e.product import Product

TEMPLATE = (
    "{%- if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{%- if add_generation_prompt %}assistant: {% if thinking %}<think>\n{% endif %}{% endif %}"
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Bern", "北京"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
QUESTION: Any = [{"role": "user", "content": "Rain?"}]


OFFERED: Any = {
    "type": "object",
    "properties": {"name": {"const": "weather"}, "parameters": PARAMETERS},
    "required": ["name", "parameters"],
    "additionalProperties": False,
}
"""Llama 3's form of a call, to which an output is held as an answer: the miniature itself writes none."""


@pytest.fixture(scope="module")
def model(product: Product, line: Line, tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_template(product, tmp_path_factory.mktemp("tools") / "tool-model", TEMPLATE)


@pytest.fixture(scope="module")
def llama_3(product: Product, line: Line, tmp_path_factory: pytest.TempPathFactory) -> str:
    template = TEMPLATE.replace("<tool_call>", "<|start_header_id|>").replace("</tool_call>", "")
    return with_template(product, tmp_path_factory.mktemp("tools") / "llama-3-model", template)


def with_template(product: Product, folder: Path, template: str) -> str:
    """Imports the merged miniature with a chat template, under the name of the folder."""
    folder.mkdir()
    archive = httpx.get(f"{product.url}/api/models/merged/archive", timeout=60).raise_for_status()
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            content = tar.extractfile(member)
            if content is not None and name not in ("manifest.json", "README.md", "chat_template.jinja"):
                (folder / name).write_bytes(content.read())
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = product.volume.put_incoming(folder, folder.name)
    product.run(kind="import", source={"path": path}, target=folder.name)
    return folder.name


def check(arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), PARAMETERS)


def test_a_required_call_has_arguments_that_the_schema_admits(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=200, seed=1
    )
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    check(call.function.arguments)
    turn: Any = choice.message.model_dump(exclude_none=True)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    again = client.chat.completions.create(
        model=model, messages=[*QUESTION, turn, result], tools=TOOLS, max_tokens=5
    )
    assert again.choices[0].finish_reason in ("stop", "length")
    assert again.model_dump()["graftwerk"]["ignored"] == []


def test_a_streamed_call_is_the_same_call(client: openai.OpenAI, model: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    options: Any = {
        "model": model,
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": choice,
        "max_tokens": 200,
        "seed": 4,
    }
    whole = client.chat.completions.create(**options)
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 2, "the arguments come as they are written"
    (expected,) = whole.choices[0].message.tool_calls or []
    (found,) = streamed.choices[0].message.tool_calls or []
    assert expected.type == "function"
    assert (found.id, found.function.name, found.function.arguments) == (
        expected.id,
        expected.function.name,
        expected.function.arguments,
    )
    assert streamed.choices[0].finish_reason == "tool_calls"


def test_a_streamed_call_is_the_same_in_the_other_apis(
    product: Product, client: openai.OpenAI, model: str
) -> None:
    """The same seed in all three, with the official client of each; the schema admits what is written."""
    with anthropic.Anthropic(base_url=product.url, api_key="none", max_retries=0, timeout=120) as other:
        tool: Any = {"name": "weather", "input_schema": PARAMETERS}
        with other.messages.stream(
            model=model, max_tokens=200, messages=QUESTION, tools=[tool], tool_choice={"type": "any"}, extra_body={"seed": 4}
        ) as stream:  # fmt: skip
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            message = stream.get_final_message()
    (block,) = message.content
    assert block.type == "tool_use"
    assert len(pieces) > 2
    assert json.loads("".join(pieces)) == block.input
    assert message.stop_reason == "tool_use"
    flat: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS}
    with client.responses.stream(
        model=model, input="Rain?", tools=[flat], tool_choice="required", max_output_tokens=200, extra_body={"seed": 4}
    ) as events:  # fmt: skip
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        response = events.get_final_response()
    (item,) = response.output
    assert item.type == "function_call"
    assert len(deltas) > 2
    assert "".join(deltas) == item.arguments
    assert json.loads(item.arguments) == block.input
    check(item.arguments)


def test_an_offered_call_is_streamed_as_it_is_written(
    product: Product, client: openai.OpenAI, llama_3: str
) -> None:
    """Under `auto`, which none of the requests names; a job of the same seed and the official client of each API."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "call", "schema": OFFERED}}
    job = product.submit(
        kind="generate", model=llama_3, messages=QUESTION, tools=TOOLS, response_format=form,
        sampling={"max_new_tokens": 300, "seed": 6, "temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1},
    )  # fmt: skip
    pieces = [
        call["arguments"]
        for event in product.events(job["id"])
        if event.name == "token"
        for call in event.data.get("tool_calls", [])
    ]
    (output,) = product.succeeded(job["id"])["result"]["outputs"]
    (call,) = output["tool_calls"]
    assert (output["text"], output["finish_reason"]) == ("", "tool_calls")
    check(call["arguments"])
    assert "".join(pieces) == call["arguments"]
    chat: Any = {"model": llama_3, "messages": QUESTION, "tools": TOOLS, "response_format": form, "seed": 6}
    chunks = [chunk.choices[0].delta for chunk in client.chat.completions.create(**chat, stream=True)]
    parts = [part.function for delta in chunks for part in delta.tool_calls or []]
    flat: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS}
    own: Any = {"format": {"type": "json_schema", "name": "call", "schema": OFFERED}}
    with client.responses.stream(
        model=llama_3, input="Rain?", tools=[flat], text=own, extra_body={"seed": 6}
    ) as events:
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    tool: Any = {"name": "weather", "input_schema": PARAMETERS}
    config: Any = {"format": {"type": "json_schema", "schema": OFFERED}}
    with (
        anthropic.Anthropic(base_url=product.url, api_key="none", max_retries=0, timeout=120) as other,
        other.messages.stream(
            model=llama_3, max_tokens=300, messages=QUESTION, tools=[tool], output_config=config,
            extra_body={"seed": 6},
        ) as stream,
    ):  # fmt: skip
        inputs = [event.partial_json for event in stream if event.type == "input_json"]
    assert not any(delta.content for delta in chunks)
    streams = [pieces, [part.arguments or "" for part in parts if part], deltas, inputs]
    assert {"".join(stream) for stream in streams} == {call["arguments"]}
    assert [len([text for text in stream if text]) > 2 for stream in streams] == [True] * 4


def test_a_required_call_that_is_cut_off_is_incomplete(
    product: Product, client: openai.OpenAI, model: str
) -> None:
    options: Any = {
        "model": model,
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": "required",
        "seed": 4,
    }
    whole = client.chat.completions.create(**options, max_tokens=200)
    assert whole.usage is not None
    (expected,) = whole.choices[0].message.tool_calls or []
    assert expected.type == "function"
    incomplete = 0
    for less in (6, 12, 18, 24):
        limit = whole.usage.completion_tokens - less
        cut = client.chat.completions.create(**options, max_tokens=limit)
        assert cut.choices[0].finish_reason == "length"
        for found in cut.choices[0].message.tool_calls or []:
            assert found.type == "function"
            assert expected.function.arguments.startswith(found.function.arguments)
            incomplete += found.function.arguments != expected.function.arguments
    assert incomplete


def test_the_tokens_of_a_conversation_with_tools_are_counted(
    product: Product, client: openai.OpenAI, model: str
) -> None:
    body = {"model": model, "messages": QUESTION, "tools": TOOLS, "return_token_strs": True}
    answer = httpx.post(f"{product.url}/tokenize", json=body, timeout=60).raise_for_status().json()
    chat = client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS, max_tokens=1)
    assert chat.usage is not None
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == chat.usage.prompt_tokens
    both = httpx.post(f"{product.url}/tokenize", json=body | {"prompt": "x"}, timeout=60)
    assert both.status_code == 400
    assert "exactly one of prompt and messages" in both.text


def test_thinking_that_a_template_opens_is_apart(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=8, extra_body={"chat_template_kwargs": {"thinking": True}}
    )
    message = answer.choices[0].message.model_dump()
    assert message["content"] == ""
    assert message["reasoning_content"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == answer.usage.completion_tokens
    plain = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8)
    assert plain.choices[0].message.content


def test_the_same_is_offered_to_jobs(product: Product, model: str) -> None:
    job = product.run(
        kind="generate", model=model, messages=QUESTION, tools=TOOLS, tool_choice="required",
        sampling={"max_new_tokens": 200, "seed": 2},
    )  # fmt: skip
    (output,) = job["result"]["outputs"]
    assert output["finish_reason"] == "tool_calls"
    check(output["tool_calls"][0]["arguments"])
    other = {"type": "web_search"}
    for name, expected in ((model, ["tools.web_search"]), ("merged", ["tools.web_search", "tools"])):
        answer = httpx.post(
            f"{product.url}/v1/chat/completions",
            json={"model": name, "messages": QUESTION, "tools": [*TOOLS, other], "max_tokens": 2},
            timeout=60,
        ).json()
        assert answer["graftwerk"]["ignored"] == expected
    left_out = product.run(
        kind="generate", model=model, messages=QUESTION, tools=[*TOOLS, other], sampling={"max_new_tokens": 2}
    )
    assert left_out["result"]["ignored"] == ["tools.web_search"]
