"""The OpenAPI document: complete, resolvable, with an example of each kind of job."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.kinds import KINDS, parse_request
from tests.api_client import Json, client_of

OPENAI = ("/v1/", "/tokenize", "/detokenize")
"""Beginnings of the paths whose errors have OpenAI's shape."""

pytestmark = pytest.mark.disable_socket


@pytest.fixture
def document(tmp_path: Path) -> Json:
    response = client_of(tmp_path).get("/openapi.json")
    assert response.mimetype == "application/json"
    found: Json = response.get_json()
    return found


def parts(value: Any) -> Iterator[Json]:
    """Yields every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from parts(child)
    elif isinstance(value, list):
        for child in value:
            yield from parts(child)


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_the_document_is_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1")
    assert {"openapi", "info", "paths", "components"} <= set(document)
    assert document["info"]["title"] == "Graftwerk"


def test_every_reference_of_the_document_resolves(document: Json) -> None:
    references = {part["$ref"] for part in parts(document) if isinstance(part.get("$ref"), str)}
    mapped = {ref for part in parts(document) for ref in part.get("mapping", {}).values()}
    assert len(references) > 10
    schemas = document["components"]["schemas"]
    for reference in references | mapped:
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


def test_no_schema_is_named_after_a_module(document: Json) -> None:
    # pydantic puts the module before the names of two classes that have the same
    assert [name for name in document["components"]["schemas"] if "__" in name] == []


def test_the_document_has_exactly_the_routes(document: Json) -> None:
    assert {(method.upper(), path) for path, method, _ in operations(document)} == {
        ("POST", "/api/jobs"), ("GET", "/api/jobs"), ("PUT", "/api/jobs/{job_id}"),
        ("GET", "/api/jobs/{job_id}"), ("DELETE", "/api/jobs/{job_id}"), ("GET", "/api/jobs/{job_id}/events"),
        ("GET", "/api/jobs/{job_id}/log"), ("GET", "/api/jobs/{job_id}/results"), ("POST", "/api/jobs/{job_id}/cancel"),
        ("POST", "/api/jobs/{job_id}/retry"), ("GET", "/api/jobs/{job_id}/deliveries"),
        ("POST", "/api/jobs/{job_id}/deliveries/{delivery_id}/redeliver"), ("GET", "/api/events"), ("GET", "/api/models"),
        ("GET", "/api/models/{name}"), ("GET", "/api/models/{name}/dependents"), ("DELETE", "/api/models/{name}"),
        ("GET", "/api/models/{name}/files/{file}"), ("GET", "/api/models/{name}/archive"),
        ("POST", "/api/uploads"), ("GET", "/api/uploads/{upload_id}"), ("PATCH", "/api/uploads/{upload_id}"),
        ("DELETE", "/api/uploads/{upload_id}"), ("GET", "/api/session"), ("GET", "/api/incoming"), ("GET", "/api/templates"), ("GET", "/api/system"),
        ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz"),
        ("GET", "/api/hub/models"), ("GET", "/api/hub/models/{org}/{name}"),
        ("GET", "/v1/models"), ("GET", "/v1/models/{model}"), ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"), ("POST", "/v1/embeddings"), ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/responses"), ("GET", "/v1/responses/{response_id}"), ("DELETE", "/v1/responses/{response_id}"),
        ("POST", "/v1/responses/{response_id}/cancel"), ("GET", "/v1/responses/{response_id}/input_items"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/tokenizer_info"),
    }  # fmt: skip


def test_every_operation_describes_itself_its_parameters_and_its_responses(document: Json) -> None:
    names = set()
    for path, _, operation in operations(document):
        assert operation["summary"].endswith("."), operation
        assert "<br" not in operation["description"]
        names.add(operation["operationId"])
        in_path = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        for status, response in operation["responses"].items():
            assert response["description"]
            errors = "application/json" if path.startswith(OPENAI) else "application/problem+json"
            wanted = errors if status >= "4" and path != "/readyz" else None
            assert wanted is None or list(response["content"]) == [wanted]
    assert len(names) == len(list(operations(document)))


def test_the_body_of_a_submission_is_a_union_selected_by_kind(document: Json) -> None:
    for path, method in (("/api/jobs", "post"), ("/api/jobs/{job_id}", "put")):
        body = document["paths"][path][method]["requestBody"]
        assert body["required"] is True
        content = body["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/JobBody"}
        assert set(content["examples"]) == set(KINDS)
    union = document["components"]["schemas"]["JobBody"]
    assert union["discriminator"]["propertyName"] == "kind"
    assert set(union["discriminator"]["mapping"]) == set(KINDS)
    assert len(union["oneOf"]) == len(KINDS)


def test_the_responses_are_described(document: Json) -> None:
    schemas = document["components"]["schemas"]
    assert {"JobResponse", "Plan", "Problem", "ModelSummary"} <= set(schemas)
    assert {"id", "status", "progress", "links"} <= set(schemas["JobResponse"]["required"])
    accepted = document["paths"]["/api/jobs"]["post"]["responses"]["202"]["content"]
    assert accepted["application/json"]["schema"] == {"$ref": "#/components/schemas/JobResponse"}


def test_a_job_documents_the_request_and_the_result_of_each_kind(document: Json) -> None:
    schemas = document["components"]["schemas"]
    request = schemas["JobResponse"]["properties"]["request"]
    assert set(request["discriminator"]["mapping"]) == set(KINDS)
    results = [part for part in schemas["JobResponse"]["properties"]["result"]["anyOf"] if "$ref" in part]
    names = [part["$ref"].removeprefix("#/components/schemas/") for part in results]
    assert names == [kind.result.__name__ for kind in KINDS.values()]
    assert [schemas[name]["title"] for name in names] == names


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_each_kind_is_a_request(kind: str) -> None:
    assert parse_request(KINDS[kind].request.example["value"]).kind == kind
