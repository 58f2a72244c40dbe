"""The OpenAI-compatible front without a worker: refusals as the official client raises them, and broken streams."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fakeredis import FakeRedis, FakeServer
from openai.types.chat import ChatCompletionMessageParam

from api.openai.job_waiter import is_gone_of
from api.openai.responses import token_bytes, token_text
from api.openai.streaming import StreamState
from services.convert import convert
from services.errors import InternalError
from tests.api_client import client_of, put_model
from tests.miniature import MINIATURE

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


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
def test_a_model_that_is_not_there_is_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model=name, messages=HELLO)
    assert (found.value.code, found.value.param, found.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )


def test_a_folder_that_is_no_whole_model_is_refused_with_the_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="adapter") as found:
        client.completions.create(model="lora", prompt="x")
    assert found.value.code == "wrong_model_kind"


# ---- parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools is not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not offered"),
        ({"no_such": 1}, "no_such", "not offered"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"n": 17}, "n", "16"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "integer"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "100"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages.0.name", "not offered"),
        ({"top_logprobs": 3}, None, "top_logprobs needs logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "two values"),
        ({"stream_options": {"include_usage": True}}, None, "goes with stream"),
        ({"stop": [""]}, "stop.0", "at least 1"),
    ],
)
def test_a_wrong_parameter_is_named(
    volume: Path, changes: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "base", "messages": HELLO, **changes}
    answer = client_of(volume).post("/v1/chat/completions", json=body)
    error = answer.get_json()["error"]
    assert answer.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert words in error["message"]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1], [2]]])
def test_token_ids_are_refused_by_sentence(client: openai.OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="token ids are not taken here: send the text"):
        client.completions.create(model="base", prompt=prompt)
    with pytest.raises(openai.BadRequestError, match="token ids are not taken here: send the text"):
        client.embeddings.create(model="base", input=prompt)


def test_more_answers_than_are_told_are_not_streamed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 16") as found:
        client.completions.create(model="base", prompt=["x"] * 9, n=2, stream=True)
    assert found.value.param == "stream"


def test_an_unknown_template_is_refused_with_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="alpaca") as found:
        client.chat.completions.create(model="base", messages=HELLO, extra_body={"template": "mine"})
    assert found.value.code == "unknown_template"


def test_what_asks_for_nothing_is_taken_and_the_rest_becomes_the_job(volume: Path) -> None:
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
        "user": "somebody", "store": False, "tools": [], "response_format": {"type": "text"}, "seed": 7,
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
    with pytest.raises(openai.InternalServerError, match="no generate worker is alive"):
        client.chat.completions.create(model="base", messages=HELLO, stream=True)


def test_a_full_queue_is_a_rate_limit(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    api = client_of(volume, redis=redis, queue_limit=1)
    assert api.post("/api/jobs", json={"kind": "generate", "model": "base", "prompt": "x"}).status_code == 202
    with official(volume, redis=redis, queue_limit=1) as client:
        with pytest.raises(openai.RateLimitError) as found:
            client.completions.create(model="base", prompt="x")
        assert found.value.code == "queue_full"


def test_a_wrong_key_and_a_weak_key_are_told_apart(volume: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(b'weak').hexdigest()} read somebody\n")
    with official(volume, api_key="wrong", api_keys_file=keys) as client:
        with pytest.raises(openai.AuthenticationError) as found:
            client.models.list()
        assert found.value.code == "invalid_api_key"
        assert "Bearer" in found.value.response.headers["WWW-Authenticate"]
    with official(volume, api_key="weak", api_keys_file=keys) as client:
        assert [model.id for model in client.models.list()] == ["base"]
        with pytest.raises(openai.PermissionDeniedError):
            client.completions.create(model="base", prompt="x")


@pytest.mark.parametrize(("method", "url"), [("get", "/v1/files"), ("get", "/v1/chat/completions")])
def test_what_is_not_there_is_said_in_openais_shape(volume: Path, method: str, url: str) -> None:
    answer = getattr(client_of(volume), method)(url)
    assert answer.status_code == 404
    assert answer.get_json()["error"]["code"] == "unknown_url"


def test_a_body_that_is_no_json_is_said_in_openais_shape(volume: Path) -> None:
    answer = client_of(volume).post("/v1/completions", data="{", content_type="application/json")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "malformed_request")


# ---- streams ------------------------------------------------------------------------------------------


def piece(offset: int, text: str, **more: Any) -> dict[str, Any]:
    return {"index": 0, "offset": offset, "text": text, "finish_reason": None, **more}


def test_the_text_of_a_job_that_ran_again_is_not_sent_twice() -> None:
    sent = StreamState()
    first = [sent.take(piece(0, "One ")), sent.take(piece(4, "two "))]
    assert [found["text"] for found in first if found] == ["One ", "two "]
    assert sent.take(piece(0, "One two three ")) is None
    assert sent.take(piece(8, "three ")) is None
    rest = sent.rest(0, {"text": "One two three four"})
    assert rest is not None
    assert (rest["offset"], rest["text"]) == (8, "three four")
    assert sent.rest(0, {"text": "One two three four"}) is None


def test_a_piece_that_was_lost_is_made_up_for_at_the_end() -> None:
    sent = StreamState()
    sent.take(piece(0, "One ", logprobs=[{"token": "One"}]))
    assert sent.take(piece(8, "three")) is None
    logprobs = [{"token": word} for word in ("One", "two", "three")]
    rest = sent.rest(0, {"text": "One two three", "logprobs": logprobs})
    assert rest is not None
    assert (rest["text"], rest["logprobs"]) == ("two three", logprobs[1:])


def test_another_text_than_the_one_sent_is_an_error() -> None:
    sent = StreamState()
    sent.take(piece(0, "One "))
    with pytest.raises(InternalError, match="another text"):
        sent.rest(0, {"text": "Two"})


def test_pieces_of_a_vocabulary_become_text_and_bytes() -> None:
    assert (token_text("▁Hello"), token_bytes("▁Hello")) == (" Hello", b" Hello")
    assert (token_text("<0xE4>"), token_bytes("<0xE4>")) == ("\ufffd", b"\xe4")
    assert token_bytes("你") == b"\xe4\xbd\xa0"


@pytest.mark.enable_socket
def test_a_closed_connection_is_seen_and_an_open_one_is_not_taken_for_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        is_gone = is_gone_of(ours)
        assert not is_gone()
        theirs.sendall(b"the next request")
        assert not is_gone()
        assert ours.recv(100) == b"the next request"
        theirs.close()
        assert is_gone()
    assert not is_gone_of(None)()


def test_the_record_of_such_a_job_is_kept_for_an_hour(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    api = client_of(volume, redis=redis)
    api.post("/v1/completions", json={"model": "base", "prompt": "x"})
    (job,) = api.get("/api/jobs").get_json()["jobs"]
    assert 0 < redis.ttl(f"rq:job:{job['id']}") <= 3600
