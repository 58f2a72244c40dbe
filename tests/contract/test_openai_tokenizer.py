"""Endpoints of the tokenizer next to /v1, and models in the address, with a real worker: against SentencePiece itself."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
import sentencepiece
from flask.testing import FlaskClient
from httpx2 import Client, WSGITransport

from api import create_app
from services.jobs.queue import JobQueue
from tests.api_client import client_of
from tests.contract.test_worker_generate import queue, start_worker, volume
from tests.miniature import ADAPTERS, MINIATURE

__all__ = ["queue", "start_worker", "volume"]  # fixtures

TEXTS = ["What is the capital of China?", "中国的首都是哪里？", "", " two  spaces"]
LLAMA_CONTEXT = 4096
"""Context of a LLaMA 2 model; a norm_eps of 1e-5, as in the miniature, marks one."""

TOKENIZE = {"prompt": "x"}


def sentencepiece_of(file: Path) -> Any:
    loaded: Any = sentencepiece.SentencePieceProcessor
    return loaded(model_file=str(file))


@pytest.fixture
def api(queue: JobQueue) -> FlaskClient:
    """The API of a volume on which one model can generate."""
    return create_app(queue.settings, queue=queue).test_client()


@pytest.fixture(scope="module")
def reference() -> Any:
    return sentencepiece_of(MINIATURE / "llama" / "tokenizer.model")


def post(api: FlaskClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = api.post(path, json=body)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.get_json()
    return found


@pytest.mark.parametrize("path", ["/tokenize", "/m/base/tokenize"])
def test_a_text_has_the_ids_of_sentencepiece(api: FlaskClient, reference: Any, path: str) -> None:
    for text in TEXTS:
        ids = reference.encode(text)
        found = post(api, path, prompt=text, add_special_tokens=False, return_token_strs=True)
        assert found.pop("graftwerk")["ignored"] == []
        pieces = reference.encode(text, out_type=str)
        assert found == {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": LLAMA_CONTEXT,
            "token_strs": pieces,
        }
        assert post(api, path, prompt=text)["tokens"] == [reference.bos_id(), *ids]


def test_a_special_token_in_a_text_is_one_token(api: FlaskClient, reference: Any) -> None:
    """lm-eval finds the id of the end of text so."""
    found = post(api, "/tokenize", prompt="</s>", add_special_tokens=False)
    assert found["tokens"] == [reference.eos_id()]


def test_ids_have_the_text_of_sentencepiece(api: FlaskClient, reference: Any) -> None:
    for text in TEXTS:
        ids = reference.encode(text)
        assert post(api, "/detokenize", tokens=ids)["prompt"] == reference.decode(ids)
    assert post(api, "/detokenize", tokens=[])["prompt"] == ""


def test_an_id_beyond_the_vocabulary_is_refused(api: FlaskClient, reference: Any) -> None:
    size = reference.vocab_size()
    error = post(api, "/detokenize", 400, tokens=[1, size])["error"]
    assert f"has {size} at position 1, and the tokenizer has {size} tokens." in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")


def test_the_facts_are_those_of_the_tokenizer(api: FlaskClient, reference: Any, volume: Path) -> None:
    found = api.get("/tokenizer_info").get_json()
    roles = [reference.id_to_piece(token_id) for token_id in (reference.bos_id(), reference.eos_id())]
    assert [found["bos_token"], found["eos_token"]] == roles
    assert (found["model"], found["vocabulary_size"]) == ("base", reference.vocab_size())
    assert found["chat_template"] is None
    (volume / "base" / "chat_template.jinja").write_text("{{ messages }}")
    try:
        assert api.get("/m/base/tokenizer_info").get_json()["chat_template"] == "{{ messages }}"
    finally:
        (volume / "base" / "chat_template.jinja").unlink()


def test_adapters_in_the_name_bring_their_vocabulary(api: FlaskClient, reference: Any, volume: Path) -> None:
    grown = sentencepiece_of(volume / ADAPTERS[1] / "tokenizer.model")
    name, text = "+".join(["base", *ADAPTERS]), TEXTS[1]
    ids = grown.encode(text)
    assert ids != reference.encode(text)
    assert post(api, "/tokenize", model=name, prompt=text)["tokens"] == [1, *ids]
    assert post(api, f"/m/{name}/tokenize", prompt=text, model="base")["tokens"] == [1, *ids]
    assert api.get(f"/tokenizer_info?model={name.replace('+', '%2B')}").get_json()["model"] == name


def test_the_model_of_the_address_generates_whichever_the_request_names(queue: JobQueue) -> None:
    transport = WSGITransport(app=create_app(queue.settings, queue=queue))
    with openai.OpenAI(
        base_url="http://localhost/m/base/v1",
        api_key="none",
        max_retries=0,
        http_client=Client(transport=transport),
    ) as client:
        found = client.completions.create(model="gpt-4", prompt="x", max_tokens=1)
        assert found.model == "base"
        assert client.embeddings.create(model="gpt-4", input="x").model == "base"
        assert [model.id for model in client.models.list()] == ["base"]


def test_the_record_of_such_a_job_is_kept_for_a_minute(api: FlaskClient, queue: JobQueue) -> None:
    job_id = post(api, "/tokenize", prompt="x")["graftwerk"]["job"]
    job = queue.get(job_id)
    assert (job.kind, job.status) == ("tokenize", "succeeded")
    assert 0 < queue.redis.ttl(f"rq:job:{job_id}") <= 60


# ---- without a worker ---------------------------------------------------------------------------------


@pytest.fixture
def two(volume: Path, tmp_path: Path) -> Path:
    """A volume with two models that can generate, and an adapter recorded for one of them."""
    for name in ("one", "two"):
        shutil.copytree(volume / "base", tmp_path / name)
    shutil.copytree(volume / ADAPTERS[0], tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "someone/one"}
    file.write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(("method", "path"), [("post", "/tokenize"), ("get", "/tokenizer_info")])
def test_without_a_model_several_are_refused_with_their_names(two: Path, method: str, path: str) -> None:
    response = getattr(client_of(two), method)(path, json=TOKENIZE if method == "post" else None)
    assert response.status_code == 400
    error = response.get_json()["error"]
    assert (error["param"], error["type"]) == ("model", "invalid_request_error")
    assert "2 models can generate: one, two" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"model": "nothing", "prompt": "x"}, 404, "model"),
        ("/m/nothing/tokenize", {"model": "one", "prompt": "x"}, 404, "model"),
        ("/m/nothing/v1/completions", {"model": "one", "prompt": "x"}, 404, "model"),
        ("/m/one/v1/nothing", {}, 404, None),
        ("/tokenize", {"model": "one"}, 400, None),
        ("/tokenize", {"model": "one", "prompt": "x", "messages": []}, 400, "messages"),
        ("/detokenize", {"model": "one", "tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"model": "one", "tokens": "1"}, 400, "tokens"),
    ],
)
def test_a_wrong_request_is_an_error_in_the_shape_of_openai(
    two: Path, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    response = client_of(two).post(path, json=body)
    assert response.status_code == status
    assert response.get_json()["error"]["param"] == param


@pytest.mark.parametrize(
    "path", ["/m/one/api/jobs", "/m/v1/models", "/m/one", "/m//v1/models", "/m/one/healthz"]
)
def test_other_paths_are_not_below_a_model(two: Path, path: str) -> None:
    assert client_of(two).get(path).status_code == 404


def test_a_key_may_below_a_model_what_it_may_without(
    two: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{hashlib.sha256(b'weak').hexdigest()} read laptop\n")
    api = client_of(two, api_keys_file=keys)
    weak = {"Authorization": "Bearer weak"}
    assert api.get("/m/one/v1/models").status_code == 401
    assert api.get("/m/one/v1/models", headers=weak).status_code == 200
    for path in ("/m/one/tokenize", "/m/one/v1/completions"):
        response = api.post(path, json=TOKENIZE, headers=weak)
        assert response.status_code == 403
        assert "'submit'" in response.get_json()["error"]["message"]
    assert api.get("/m/one/tokenizer_info", headers=weak).status_code == 403


def test_adapters_are_listed_with_the_base_that_they_record(two: Path) -> None:
    api = client_of(two)
    entries = {entry["id"]: entry for entry in api.get("/v1/models").get_json()["data"]}
    assert list(entries) == ["one", "one+lora", "two"]
    assert [entry["adapters"] for entry in entries.values()] == [["lora"], ["lora"], []]
    context = json.loads((two / "one" / "config.json").read_text())["max_position_embeddings"]
    assert {entry["max_model_len"] for entry in entries.values()} == {context}
    for name, entry in entries.items():
        assert api.get(f"/v1/models/{name}").get_json() == entry
        assert api.get(f"/m/{name}/v1/models").get_json()["data"] == [entry]
