"""Answers of bounded length: a huge name in any field is refused in a few lines, which name the field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import BaseModel

from api.openai.schemas import ChatBody, CompletionBody, EmbeddingBody
from services.kinds import KINDS
from tests.api_client import Json, client_of, put_model

HUGE = "ж" * 20_000 + "end"
HUGE_VALUES = (HUGE, [HUGE] * 3, {HUGE: HUGE}, [{HUGE: 1}])
ANSWER_BYTES = 32 * 1024

OPENAI: dict[str, tuple[type[BaseModel], Json]] = {
    "/v1/chat/completions": (ChatBody, {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
    "/v1/completions": (CompletionBody, {"model": "m", "prompt": "x"}),
    "/v1/embeddings": (EmbeddingBody, {"model": "m", "input": "x"}),
}


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    put_model(tmp_path, "m")
    return client_of(tmp_path)


def fields_of(model: type[BaseModel]) -> list[str]:
    """Returns the fields of a request, and one that it does not have."""
    return [*model.model_fields, HUGE]


def hostile_bodies(model: type[BaseModel], valid: Json) -> Iterator[tuple[str, Json]]:
    """Yields bodies in which one field, at the top or one level below, has a huge value."""
    for field in fields_of(model):
        for value in HUGE_VALUES:
            yield field, {**valid, field: value}
    for field, inner in valid.items():
        if isinstance(inner, dict):
            yield field, {**valid, field: {**inner, HUGE: HUGE}}
            yield from ((field, {**valid, field: {**inner, name: HUGE}}) for name in inner)


def refusal(client: FlaskClient, url: str, body: Any) -> str:
    """Returns the answer to a body, which must be short; texts that the service takes of any length may be accepted."""
    response = client.post(url, json=body)
    assert response.status_code < 500, response.text[:2000]
    if response.status_code < 300:
        return ""
    assert len(response.data) < ANSWER_BYTES, response.text[:2000]
    return response.text


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_of_a_job_makes_a_long_answer(client: FlaskClient, kind: str) -> None:
    row = KINDS[kind]
    refused = 0
    for field, body in hostile_bodies(row.request, row.request.example["value"]):
        text = refusal(client, "/api/jobs?dry_run=true", body)
        refused += bool(text)
        assert (
            not text
            or field == HUGE
            or field in text
            or "model_not_found" in text
            or "source_not_found" in text
        )
    assert refused > 20


@pytest.mark.parametrize("url", OPENAI)
def test_no_parameter_of_openai_makes_a_long_answer(client: FlaskClient, url: str) -> None:
    for _, body in hostile_bodies(*OPENAI[url]):
        refusal(client, url, body)


def test_an_unknown_kind_is_cut(client: FlaskClient) -> None:
    text = refusal(client, "/api/jobs", {"kind": HUGE})
    assert "characters]" in text
    assert "end" in text


@pytest.mark.parametrize("url", ["/api/jobs", "/v1/chat/completions"])
def test_many_unknown_fields_are_counted(client: FlaskClient, url: str) -> None:
    body = {
        **KINDS["generate"].request.example["value"],
        **{f"unknown{number}": 1 for number in range(15_000)},
    }
    text = refusal(client, url, body)
    assert "unknown0" in text
    assert "more" in text
    assert "unknown14999" not in text


@pytest.mark.parametrize(
    "url",
    [
        "/api/jobs/{}", "/api/jobs?{}=1", "/api/jobs?kind={}", "/api/jobs?after={}", "/api/models/{}", "/api/models/m/files/{}",
        "/api/models/m/{}", "/api/uploads/{}", "/api/hub/models/a/{}", "/api/hub/models?search={}", "/v1/models/{}", "/v1/{}",
        "/api/events?last_event_id={}", "/{}",
    ],
)  # fmt: skip
def test_no_address_makes_a_long_answer(client: FlaskClient, url: str) -> None:
    response = client.get(url.format("x" * 8000))
    assert 400 <= response.status_code < 500
    assert len(response.data) < 4096


@pytest.mark.parametrize(
    "name", ["Last-Event-ID", "Idempotency-Key", "Authorization", "Tus-Resumable", "Upload-Metadata", "Host"]
)
def test_no_header_makes_a_long_answer(client: FlaskClient, name: str) -> None:
    for method, url in (("GET", "/api/events"), ("POST", "/api/jobs"), ("POST", "/api/uploads")):
        response = client.open(url, method=method, json={}, headers={name: "x" * 8000})
        if response.status_code >= 300:
            assert response.status_code < 500
            assert len(response.data) < 4096
        response.close()
