"""Hostile bodies: each is refused in little time, in an answer of some lines."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from gunicorn.http.errors import InvalidChunkSize

from api.request_body import BODY_BUDGET
from services.settings import Settings
from tests.api_client import Json, client_of, problem
from tests.hostile_bodies import HOSTILE, LIMIT_BYTES, OPENAI

pytestmark = pytest.mark.disable_socket

CPU_SECONDS = 1.5
"""The service promises 0.2 s on a quiet machine; without the budget these bodies take from 5 to 18."""


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


def refuse(client: FlaskClient, url: str, body: bytes) -> float:
    """Sends a body that must be refused and returns the CPU seconds that it took."""
    began = time.process_time()
    response = client.post(url, data=body, content_type="application/json")
    seconds = time.process_time() - began
    assert 400 <= response.status_code < 500, response.text[:1000]
    assert len(response.data) < 16 * 1024
    return seconds


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_costs_little(client: FlaskClient, name: str) -> None:
    assert len(HOSTILE[name]) <= LIMIT_BYTES
    assert refuse(client, "/api/jobs", HOSTILE[name]) < CPU_SECONDS


@pytest.mark.parametrize("name", OPENAI)
def test_a_hostile_body_of_openai_costs_little(client: FlaskClient, name: str) -> None:
    body = json.dumps({"model": "m", **OPENAI[name]}).encode()
    assert refuse(client, "/v1/chat/completions", body) < CPU_SECONDS


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b"[" + b"[]," * 100_000 + b"0]", "100001 lists and objects, more than 100000"),
        (b"[" + b"0," * 1_000_000 + b"0]", "1000001 elements of lists, more than 1000000"),
        (b"{" + b'"a":0,' * 20_000 + b'"a":0}', "20001 members of objects, more than 20000"),
    ],
)
def test_too_many_values_are_413_with_the_numbers(client: FlaskClient, body: bytes, words: str) -> None:
    response = client.post("/api/jobs", data=body, content_type="application/json")
    assert words in problem(response, 413, "body_too_large")["detail"]


@pytest.mark.parametrize("body", [b"[" * 64 + b"]" * 64, b"[" + b"0," * 999_999 + b"0]"])
def test_a_body_within_the_budget_is_read(client: FlaskClient, body: bytes) -> None:
    problem(client.post("/api/jobs", data=body, content_type="application/json"), 422, "invalid_request")


def test_the_limit_is_a_setting(tmp_path: Path) -> None:
    client = client_of(tmp_path, body_limit_bytes=2048)
    body = json.dumps({"kind": "x" * 2048})
    response = client.post("/api/jobs", data=body, content_type="application/json")
    assert "2048 bytes" in problem(response, 413, "body_too_large")["detail"]


class Damaged:
    """A body as gunicorn gives it, whose next chunk is malformed."""

    def read(self, size: int = -1) -> bytes:
        raise InvalidChunkSize(b"zz")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("url", ["/api/jobs", "/v1/completions"])
def test_a_malformed_chunk_is_400(client: FlaskClient, url: str) -> None:
    environ = {"wsgi.input": Damaged(), "wsgi.input_terminated": True}
    response = client.post(url, content_type="application/json", environ_overrides=environ)
    assert response.status_code == 400
    assert "broke off" in response.text


# ---- the document ---------------------------------------------------------------------------------------


def schemas_of_bodies(document: Json) -> Iterator[tuple[str, Json]]:
    """Yields every schema that a JSON body can contain, with its name."""
    schemas = document["components"]["schemas"]
    pending = ["JobBody", "ChatBody", "CompletionBody", "EmbeddingBody"]
    seen = set(pending)
    while pending:
        name = pending.pop()
        for part in parts(schemas[name]):
            yield name, part
            reference = part.get("$ref", "").rpartition("/")[2]
            if reference and reference not in seen:
                seen.add(reference)
                pending.append(reference)


def parts(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(child)


def test_each_length_that_the_document_allows_fits_the_limit(client: FlaskClient) -> None:
    limit = Settings().body_limit_bytes
    found = list(schemas_of_bodies(client.get("/openapi.json").get_json()))
    lists = [part for _, part in found if part.get("type") == "array"]
    texts = [part["maxLength"] for _, part in found if isinstance(part.get("maxLength"), int)]
    assert len(lists) > 10
    unbounded = [
        (place, part) for place, part in found if part.get("type") == "array" and "maxItems" not in part
    ]
    assert unbounded == []
    assert all(part["maxItems"] <= BODY_BUDGET.items // 2 for part in lists), lists
    assert 4 * max(texts) <= limit, "the longest text in UTF-8"
