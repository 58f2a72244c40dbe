"""`/v1/responses` and `/v1/messages` without a worker: refusals, conversations, keys."""

import hashlib
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anthropic
import httpx2
import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient
from redis import Redis

from api.anthropic.body import MessagesBody
from api.openai.body import parse
from api.openai.errors import InvalidParameter
from api.openai.job_waiter import JobWaiter
from api.openai.responses_api.body import ResponsesBody
from api.openai.responses_api.items import chat_messages
from api.openai.responses_api.kept import CONVERSATION_CHARACTERS, Note, with_conversation
from api.openai.schemas import ChatBody, generate_request
from api.state import AppState
from services.errors import NotReady
from services.jobs.queue import JobQueue
from services.jobs.submission import Origin
from services.kinds.generate import GenerateRequest
from services.settings import Settings
from services.templates import Message
from tests.api_client import client_of, put_model
from tests.contract.openai_server import MODELS, openai_server

IMAGE = {"type": "input_image", "image_url": "data:"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"no_such": 1}, "no_such", "not supported here. Leave it out"),
        ({"conversation": "c"}, "conversation", "not supported"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "custom_tool_call"}]}, "input.0", "An item is a message, function_call"),
        ({"input": [{"type": ["x"]}]}, "input.0", "An item is a message, function_call"),
        ({"input": [{"role": "user"}]}, "input.0.content", "required"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input.0.role", "user"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.0.content", "input_image cannot be read"),
        ({"input": [CALL | {"arguments": {}}]}, "input.0.arguments", "string"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id", "required"),
        ({"tool_choice": "required"}, "tool_choice", "cannot be required"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice", "cannot be required"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "cannot be required"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "Only a function can be called"),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "required"),
        ({"background": True, "store": False}, None, "background needs store"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "schema belongs"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "json_schema"),
        ({"max_output_tokens": -1}, "max_output_tokens", "greater than or equal"),
        ({"temperature": -1}, "temperature", "greater than or equal"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"truncation": "middle"}, "truncation", "auto"),
        ({"metadata": {str(at): "x" for at in range(17)}}, "metadata", "16"),
        ({"metadata": {"x" * 65: "x"}}, "metadata." + "x" * 65, "64"),
    ],
)
def test_a_wrong_parameter_is_named(client: FlaskClient, changes: Any, param: str | None, words: str) -> None:
    response = client.post("/v1/responses", json={"model": "m", "input": "x", **changes})
    error = response.get_json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"no_such": 1}, "no_such is not supported"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater"),
        ({"messages": []}, "messages: List should have at least 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "messages.0.content.0: The models here read text",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "any"}}, "cannot be required"),
        (
            {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}},
            "not in tools",
        ),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_a_wrong_parameter_of_a_message_is_named(client: FlaskClient, changes: Any, words: str) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], **changes}
    response = client.post("/v1/messages", json=body)
    found = response.get_json()
    assert response.status_code == 400
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert found["request_id"] == response.headers["request-id"]
    assert words in found["error"]["message"]


def test_calls_and_their_outputs_are_turns_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": "Kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "two."}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "phase": "commentary",
         "content": [{"type": "output_text", "text": "Hm.", "annotations": [], "logprobs": []}]},
        CALL, CALL | {"call_id": "d", "id": "fc", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"type": "function_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "2"}]},
        CALL,
    ]  # fmt: skip
    body = parse(ResponsesBody, {"model": "m", "input": items})
    function = {"name": "f", "arguments": "{}"}
    first, second = ({"id": id, "type": "function", "function": function} for id in ("c", "d"))
    assert chat_messages(body.input) == [
        {"role": "developer", "content": "Kind."},
        {"role": "user", "content": "One\ntwo."},
        {"role": "assistant", "content": "Hm.", "tool_calls": [first, second]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "tool", "tool_call_id": "d", "content": "2"},
        {"role": "assistant", "content": None, "tool_calls": [first]},
    ]


def test_blocks_are_turns_of_a_chat() -> None:
    messages = [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"ä": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": [{"type": "text", "text": "No."}]},
            {"type": "text", "text": "Again.", "cache_control": {"type": "ephemeral"}},
        ]},
        {"role": "assistant", "content": "The answer is"},
    ]  # fmt: skip
    body = parse(MessagesBody, {"model": "m", "max_tokens": 1, "system": "Kind.", "messages": messages})
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"ä": 1}'}}
    assert body.conversation() == [
        {"role": "system", "content": "Kind.\n\nBrief."},
        {"role": "user", "content": "One.\nTwo."},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "t", "content": "No."},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "The answer is"},
    ]


def test_a_conversation_that_becomes_too_long_is_refused() -> None:
    request = GenerateRequest(kind="generate", model="m", messages=[Message(role="user", content="x")])
    long = [Message(role="user", content="y" * 1_000_000)] * (CONVERSATION_CHARACTERS // 1_000_000)
    with pytest.raises(InvalidParameter, match="4000001 characters") as found:
        with_conversation(request, long, "")
    assert found.value.param == "previous_response_id"
    with pytest.raises(InvalidParameter, match="1001 turns"):
        with_conversation(request, [Message(role="user", content="y")] * 1000, "")


def test_a_kept_response_says_that_no_worker_runs_it(tmp_path: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    client = client_of(tmp_path, redis=redis)
    queue = JobQueue(redis, Settings(models_dir=tmp_path))
    body = ResponsesBody.model_validate({"model": "m", "input": "x", "background": True})
    note = Note(echo=body.echo(), ignored=[])
    request = GenerateRequest(kind="generate", model="m", prompt="x")
    job, _ = queue.submit(request, origin=Origin(note=note.model_dump_json()))
    found = client.get(f"/v1/responses/resp_{job.id}").get_json()
    assert (found["status"], found["error"]) == ("queued", None)
    assert found["graftwerk"]["waiting_for"] == {
        "what": "worker",
        "message": "No generate worker is alive. The job waits until one starts.",
    }


def test_a_response_in_the_background_waits_for_a_worker_and_others_do_not(
    tmp_path: Path, redis: Redis, settings: Settings
) -> None:
    queue = JobQueue(redis, settings)
    state = cast(AppState, SimpleNamespace(queue=queue))
    job, _ = queue.submit(GenerateRequest(kind="generate", model="m", prompt="x"))
    waiting = JobWaiter(state, job, lambda: False, is_background=True).events()
    assert [event.name if event else None for event in islice(waiting, 3)] == ["status", None, None]
    waiting.close()
    assert queue.get(job.id).status == "queued"
    with pytest.raises(NotReady, match="No generate worker is alive"):
        list(JobWaiter(state, job, lambda: False).events())
    assert queue.get(job.id).status == "canceled"


@pytest.mark.parametrize(
    ("model", "kind", "tokens"), [("base", "tokenize", None), ("org/m:8b", "generate", 1)]
)
def test_tokens_are_counted_with_the_folders_tokenizer_where_there_is_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, model: str, kind: str, tokens: int | None
) -> None:
    """Both models are on another server, which always generates."""
    submitted: list[Any] = []

    def submit(state: AppState, request: Any) -> None:
        submitted.append(request)
        raise NotReady("Enough is known.", "")

    monkeypatch.setattr("api.anthropic.views.submit", submit)
    with openai_server() as script:
        script.models["data"] = [MODELS[0], MODELS[0] | {"id": "base"}]
        client = client_of(root, generate_backend_url=script.url)
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        assert client.post("/v1/messages/count_tokens", json=body).status_code == 503
    (request,) = submitted
    assert request.kind == kind
    assert getattr(request, "sampling", None) is None or request.sampling.max_new_tokens == tokens


def test_a_key_of_anthropics_clients_is_one_of_ours(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(
        "".join(f"{hashlib.sha256(key.encode()).hexdigest()} {key} me\n" for key in ("read", "submit"))
    )
    put_model(tmp_path / "models", "empty")
    app = client_of(tmp_path / "models", api_keys_file=keys).application
    errors: dict[str, type[anthropic.APIStatusError]] = {
        "other": anthropic.AuthenticationError,
        "read": anthropic.PermissionDeniedError,
        "submit": anthropic.BadRequestError,
    }
    for key, error in errors.items():
        transport = httpx2.WSGITransport(app=app)
        with (
            httpx2.Client(transport=transport) as http,
            anthropic.Anthropic(
                base_url="http://localhost", api_key=key, max_retries=0, http_client=http
            ) as client,
            pytest.raises(error),
        ):
            client.messages.create(model="empty", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    both = {"Authorization": "Bearer submit", "x-api-key": "other"}
    assert app.test_client().get("/api/jobs", headers=both).status_code == 200
    assert app.test_client().get("/api/jobs", headers={"x-api-key": "read"}).status_code == 200


def test_tools_are_those_of_a_chat() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    tools = [
        {"type": "function", "name": "f", "description": "F.", "parameters": parameters, "strict": True},
        {"type": "function", "name": "g", "parameters": None},
        {"type": "web_search"},
        {"type": "namespace", "name": "n", "tools": []},
    ]
    f = {
        "type": "function",
        "function": {"name": "f", "description": "F.", "parameters": parameters, "strict": True},
    }
    g = {"type": "function", "function": {"name": "g"}}
    base = {"model": "m", "input": "x", "tools": tools}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    choices: list[tuple[Any, list[Any], Any]] = [
        ("auto", [f, g], "auto"),
        ({"type": "function", "name": "g"}, [f, g], {"type": "function", "function": {"name": "g"}}),
        (allowed, [g], "required"),
    ]
    for choice, offered, expected in choices:
        body = parse(ResponsesBody, base | {"tool_choice": choice})
        chat = body.chat()
        assert (chat["tools"], chat["tool_choice"]) == (offered, expected)
        assert body.left_out(base) == ["tools.web_search", "tools.namespace"]
        assert [tool["name"] for tool in body.echo()["tools"]] == ["f", "g"]
        assert body.echo()["tool_choice"] == choice
        request = generate_request(parse(ChatBody, chat), {})
        assert [tool.function.name for tool in request.tools or []] == [
            tool["function"]["name"] for tool in offered
        ]
    off = parse(ResponsesBody, base | {"reasoning": {"effort": "none"}, "parallel_tool_calls": False}).chat()
    assert (off["chat_template_kwargs"], off["parallel_tool_calls"]) == ({"enable_thinking": False}, False)


def test_tools_of_a_message_are_those_of_a_chat() -> None:
    schema = {"type": "object", "properties": {}}
    tools = [
        {"name": "f", "description": "F.", "input_schema": schema},
        {"type": "bash_20250124", "name": "bash"},
    ]
    base = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "tools": tools}
    named = {"type": "function", "function": {"name": "f"}}
    for choice, expected in (("auto", "auto"), ("any", "required"), ("none", "none"), ("tool", named)):
        given = {"type": choice, "disable_parallel_tool_use": True} | (
            {"name": "f"} if choice == "tool" else {}
        )
        body = parse(
            MessagesBody,
            base | {"tool_choice": given, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        )
        chat = body.chat()
        assert chat["tool_choice"] == expected
        assert chat["tools"] == [
            {"type": "function", "function": {"name": "f", "description": "F.", "parameters": schema}}
        ]
        assert (chat["parallel_tool_calls"], chat["chat_template_kwargs"]) == (
            False,
            {"enable_thinking": True},
        )
        assert body.left_out(base) == ["tools.bash_20250124"]
        assert generate_request(parse(ChatBody, chat), {}).tools is not None
    assert parse(MessagesBody, base | {"thinking": {"type": "adaptive"}}).left_out(base)[-1] == "thinking"
