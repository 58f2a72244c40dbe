"""The OpenAI-compatible endpoints without a worker: jobs that requests become, and errors that the client raises."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from fakeredis import FakeRedis, FakeServer
from openai.types.chat import ChatCompletionMessageParam

from api.openai.body import parse
from api.openai.errors import error_object, error_of
from api.openai.parameters import ignored_parameters
from api.openai.schemas import ChatBody, CompletionBody, EmbeddingBody, embed_request, generate_request
from services.convert import convert
from services.jobs.status import JobError
from tests.api_client import client_of, put_model
from tests.miniature import MINIATURE

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with one model that can generate and three folders that cannot."""
    root = tmp_path_factory.mktemp("volume")
    (root / "base").mkdir()
    convert(MINIATURE / "llama", root / "base")
    put_model(root, "broken", {"config.json": "{"})
    put_model(root, "empty")
    put_model(root, "lora", {"adapter_config.json": "{}"})
    return root


def official(volume: Path, *, api_key: str = "none", redis: Any = None, **settings: Any) -> openai.OpenAI:
    """The official client, talking to an application of its own without a network between."""
    transport = httpx2.WSGITransport(app=client_of(volume, redis=redis, **settings).application)
    return openai.OpenAI(
        base_url="http://localhost/v1",
        api_key=api_key,
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    )


@pytest.fixture
def client(volume: Path) -> Iterator[openai.OpenAI]:
    with official(volume) as found:
        yield found


# ---- models -------------------------------------------------------------------------------------------


def test_only_what_can_generate_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("base", "model", "local")
    assert model.created > 1_700_000_000


@pytest.mark.parametrize("name", ["nothing", "base+nothing", "a b", "+", "incoming"])
def test_a_missing_model_is_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model=name, messages=HELLO)
    assert (found.value.code, found.value.param, found.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )


def test_a_folder_that_cannot_generate_is_refused_with_the_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="adapter") as found:
        client.completions.create(model="lora", prompt="x")
    assert found.value.code == "wrong_model_kind"


# ---- parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "a tool call cannot be required"),
        ({"tool_choice": NAMED}, "tool_choice", "a tool call cannot be required"),
        (
            {"functions": [TOOL["function"]], "function_call": {"name": "f"}},
            "function_call",
            "cannot be required",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs it"),
        ({"guided_regex": ""}, "guided_regex", "at least 1"),
        ({"no_such": 1}, "no_such", "no_such is not supported here. Leave it out."),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"n": 17}, "n", "16"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "integer"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "100"),
        ({"messages": []}, "messages", "at least 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "greater than or equal to 0"),
        ({"best_of": 2}, None, "best_of = 2 would select 1 of several outputs"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0", "greater than or equal to 0"),
        (
            {"stop_token_ids": [2], "response_format": {"type": "json_object"}},
            None,
            "stop_token_ids is not available",
        ),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "content": "x", "nmae": "Ann"}]}, "messages.0.nmae", "not supported"),
        ({"messages": [{"role": "user"}]}, "messages.0", "needs content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0", "needs content"),
        ({"top_logprobs": 3}, None, "top_logprobs needs logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "two values"),
        ({"stream_options": {"include_usage": True}}, None, "allowed with stream only"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs: Input should be less than"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content",
            "messages.0.content: Input should be",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}
                ]
            },
            "messages.0.content.0",
            "messages.0.content.0: The models here read text: images, audio and files are not read. Send parts of type text.",
        ),
    ],
)
def test_a_wrong_parameter_is_named(
    volume: Path, changes: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "base", "messages": HELLO, **changes}
    response = client_of(volume).post("/v1/chat/completions", json=body)
    error = response.get_json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert words in error["message"]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1], [2]]])
def test_token_ids_become_those_of_the_job(prompt: Any) -> None:
    body = parse(CompletionBody, {"model": "base", "prompt": prompt})
    request = generate_request(body, {})
    assert (request.prompt_token_ids, request.prompt, request.prompts) == (prompt, None, None)
    assert request.prompt_count == (1 if prompt[0] == 1 else 2)
    inputs = embed_request(parse(EmbeddingBody, {"model": "base", "input": prompt}), {}).inputs
    assert inputs == ([prompt] if prompt[0] == 1 else prompt)


@pytest.mark.parametrize("prompt", [[], [[]], [1, "x"], [[1], "x"], [-1], [2**31], [1.5], [True, "x"]])
def test_odd_token_ids_are_refused(volume: Path, prompt: Any) -> None:
    response = client_of(volume).post("/v1/completions", json={"model": "base", "prompt": prompt})
    assert response.status_code == 400
    assert response.get_json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize(
    ("endpoint", "body", "message"),
    [
        ("completions", {"prompt": ["a", 1]}, "prompt.1: Input should be a valid string."),
        ("completions", {"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer, unable to parse string as an integer."),
        ("completions", {"prompt": []}, "prompt: List should have at least 1 item after validation, not 0."),
        ("completions", {"prompt": {}}, "prompt: Input should be a valid string."),
        ("embeddings", {"input": ""}, "input: String should have at least 1 character."),
        ("embeddings", {"input": ["a", ""]}, "input.1: String should have at least 1 character."),
        ("embeddings", [1], "The body must be a JSON object."),
    ],
)  # fmt: skip
def test_a_refusal_is_about_the_form_that_was_sent(
    volume: Path, endpoint: str, body: Any, message: str
) -> None:
    sent = {"model": "base"} | body if isinstance(body, dict) else body
    response = client_of(volume).post(f"/v1/{endpoint}", json=sent)
    assert response.status_code == 400
    assert response.get_json()["error"]["message"] == message


def test_unknown_paths_below_messages_have_anthropics_shape(volume: Path) -> None:
    client = client_of(volume)
    for path, status, kind in (
        ("/v1/messages/batches", 404, "not_found_error"),
        ("/v1/messages/count_tokens", 405, "invalid_request_error"),
    ):
        response = client.get(path)
        assert response.status_code == status
        found = anthropic.types.ErrorResponse.model_validate(response.get_json(), strict=True)
        assert found.error.type == kind


@pytest.mark.parametrize(("logprobs", "scored"), [(None, False), (0, True), (1, True)])
def test_an_echo_with_logprobs_scores_the_prompt(logprobs: int | None, scored: bool) -> None:
    body = {"model": "base", "prompt": "x", "echo": True, "logprobs": logprobs}
    assert generate_request(parse(CompletionBody, body), {}).score_prompt is scored


def test_an_echo_is_not_streamed(volume: Path) -> None:
    body = {"model": "base", "prompt": "x", "echo": True, "stream": True}
    response = client_of(volume).post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "echo is not available with stream" in response.get_json()["error"]["message"]


def test_more_outputs_than_can_be_streamed_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 16") as found:
        client.completions.create(model="base", prompt=["x"] * 9, n=2, stream=True)
    assert found.value.param == "stream"


def test_an_unknown_template_is_refused_with_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="alpaca") as found:
        client.chat.completions.create(model="base", messages=HELLO, extra_body={"template": "mine"})
    assert found.value.code == "unknown_template"


def test_neutral_values_are_accepted_and_the_rest_becomes_the_job(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    api = client_of(volume, redis=redis)
    body = {
        "model": "base",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "Three", "refusal": None, "tool_calls": None},
            {"role": "user", "content": "Four"},
        ],
        "user": "ann", "store": False, "tools": [], "response_format": {"type": "text"}, "seed": 7,
        "max_tokens": None, "logit_bias": {"5": -100}, "stop": "end", "logprobs": True, "top_k": 3,
    }  # fmt: skip
    api.post("/v1/chat/completions", json=body)
    (job,) = api.get("/api/jobs").get_json()["jobs"]
    request = job["request"]
    assert request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One\ntwo"},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four"},
    ]
    assert request["fit_context"] == "answer"
    changed = {"top_k": 3, "seed": 7, "stop": ["end"], "logit_bias": {"5": -100.0}, "logprobs": 0}
    openais_own = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "n": 1}
    assert request["sampling"].items() >= (changed | openais_own).items()
    assert job["metadata"] == {"origin": "openai", "endpoint": "chat.completions"}


def request_of(body: dict[str, Any]) -> dict[str, Any]:
    """The request of the job that the body of a chat becomes."""
    return generate_request(parse(ChatBody, {"model": "base", **body}), {}).model_dump()


@pytest.mark.parametrize(
    "extras",
    [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": [TOOL], "tool_choice": "none"},
        {"functions": [TOOL["function"]], "function_call": "auto"},
        {"metadata": {"chat": "1"}, "store": True, "reasoning_effort": "low", "service_tier": "flex"},
    ],
)
def test_what_clients_send_by_default_does_not_fail(extras: dict[str, Any]) -> None:
    assert request_of({"messages": HELLO, **extras})["messages"] == HELLO


def test_a_call_is_not_required_of_a_model_whose_template_takes_no_tools(volume: Path) -> None:
    body = {"model": "base", "messages": HELLO, "tools": [TOOL], "tool_choice": "required"}
    response = client_of(volume).post("/v1/chat/completions", json=body)
    error = response.get_json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_option")
    assert "has no form for tools that is known" in error["message"]


def test_the_ignored_parameters_are_those_that_request_something() -> None:
    body = {"model": "base", "tools": [TOOL], "tool_choice": "auto", "user": None, "store": False, "seed": 7}
    assert ignored_parameters(body | {"metadata": {"chat": "1"}}) == ["metadata"]
    assert ignored_parameters([]) == []


def test_a_conversation_keeps_tool_calls_results_and_thinking() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Is it raining?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Rain."},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "It says rain."},
        {"role": "user", "content": "Thanks."},
    ]
    assert request_of({"messages": messages})["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Rain.", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "It says rain."},
        {"role": "user", "content": "Thanks."},
    ]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_above_the_context_is_lowered_and_not_refused(limit: str) -> None:
    request = request_of({"messages": HELLO, limit: 32_000})
    assert (request["fit_context"], request["sampling"]["max_new_tokens"]) == ("answer", 32_000)
    request = request_of({"messages": HELLO, limit: 10**9})
    assert request["sampling"]["max_new_tokens"] == 10**6


def test_a_completion_is_fitted_into_the_context_too() -> None:
    body = parse(CompletionBody, {"model": "base", "prompt": "x", "max_tokens": 32_000})
    assert generate_request(body, {}).fit_context == "answer"


def test_an_error_is_whole_sentences_with_the_names_of_this_api() -> None:
    failure = JobError(code="prompt_too_long", message="It does not fit", hint="Lower max_new_tokens to 3.")
    found = error_object(error_of(failure))["error"]
    assert found["message"] == "It does not fit. Lower max_tokens to 3."
    assert found["code"] == "context_length_exceeded"


# ---- the service --------------------------------------------------------------------------------------


def test_without_a_worker_it_is_503_and_the_job_is_canceled(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    with official(volume, redis=redis) as client, pytest.raises(openai.InternalServerError) as found:
        client.chat.completions.create(model="base", messages=HELLO)
    assert (found.value.status_code, found.value.code, found.value.type) == (503, "not_ready", "server_error")
    assert found.value.response.headers["x-should-retry"] == "true"
    assert int(found.value.response.headers["Retry-After"]) >= 1
    (job,) = client_of(volume, redis=redis).get("/api/jobs").get_json()["jobs"]
    assert job["status"] == "canceled"


def test_a_stream_without_a_worker_is_503_too(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="No generate worker is alive"):
        client.chat.completions.create(model="base", messages=HELLO, stream=True)


def test_a_full_queue_is_a_rate_limit(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    api = client_of(volume, redis=redis, queue_limit=1)
    assert api.post("/api/jobs", json={"kind": "generate", "model": "base", "prompt": "x"}).status_code == 202
    with official(volume, redis=redis, queue_limit=1) as client:
        with pytest.raises(openai.RateLimitError) as found:
            client.completions.create(model="base", prompt="x")
        assert found.value.code == "queue_full"


def test_an_unknown_key_and_an_insufficient_key_are_different_errors(volume: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(b'weak').hexdigest()} read laptop\n")
    with official(volume, api_key="wrong", api_keys_file=keys) as client:
        with pytest.raises(openai.AuthenticationError) as found:
            client.models.list()
        assert found.value.code == "invalid_api_key"
        assert "Bearer" in found.value.response.headers["WWW-Authenticate"]
    with official(volume, api_key="weak", api_keys_file=keys) as client:
        assert [model.id for model in client.models.list()] == ["base"]
        with pytest.raises(openai.PermissionDeniedError):
            client.completions.create(model="base", prompt="x")


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [("/v1/files", 404, "unknown_url"), ("/v1/chat/completions", 405, "method_not_allowed")],
)
def test_an_unknown_path_or_method_is_an_error_in_openais_shape(
    volume: Path, url: str, status: int, code: str
) -> None:
    response = client_of(volume).get(url)
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)


def test_invalid_json_is_an_error_in_openais_shape(volume: Path) -> None:
    response = client_of(volume).post("/v1/completions", data="{", content_type="application/json")
    assert (response.status_code, response.get_json()["error"]["code"]) == (400, "malformed_request")


def test_the_record_of_such_a_job_is_kept_for_an_hour(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    api = client_of(volume, redis=redis)
    api.post("/v1/completions", json={"model": "base", "prompt": "x"})
    (job,) = api.get("/api/jobs").get_json()["jobs"]
    assert 0 < redis.ttl(f"rq:job:{job['id']}") <= 3600
