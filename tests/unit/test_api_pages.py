"""The page, the documentation and the document: all of it from here, and none of it made up."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient

from api.openapi import EXAMPLES
from services.kinds import ANY_REQUEST, KINDS
from services.templates import TEMPLATES
from tests.api_client import Json, client_of

pytestmark = pytest.mark.disable_socket

LOADED = re.compile(r"""<(?:script|link|img)\b[^>]*?(?:src|href)=["']([^"']+)""")


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


@pytest.fixture
def document(client: FlaskClient) -> Json:
    response = client.get("/openapi.json")
    assert response.mimetype == "application/json"
    found: Json = response.get_json()
    return found


# ---- pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/", "/docs"])
def test_a_page_needs_nothing_from_elsewhere(client: FlaskClient, url: str) -> None:
    page = client.get(url)
    assert (page.status_code, page.mimetype) == (200, "text/html")
    addresses = LOADED.findall(page.text)
    assert len(addresses) >= 3
    for address in addresses:
        assert not re.match(r"\w*:?//", address)
        assert client.get(urljoin(url, address), buffered=True).status_code == 200


@pytest.mark.parametrize("url", ["/", "/docs"])
def test_a_page_runs_only_scripts_of_ours_and_holds_none_itself(client: FlaskClient, url: str) -> None:
    page = client.get(url)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert re.findall(r"<script[^>]*>([^<]+)</script>", page.text) == []
    assert not re.search(r"""\s(on\w+|style)=["']""", page.text)


def test_the_page_leads_to_the_documentation(client: FlaskClient) -> None:
    assert 'href="/docs"' in client.get("/").text


def test_every_module_that_a_script_imports_is_there(client: FlaskClient) -> None:
    waiting, seen = ["/static/home.js"], set[str]()
    while waiting:
        url = waiting.pop()
        seen.add(url)
        script = client.get(url, buffered=True)
        assert script.status_code == 200, url
        found = {
            urljoin(url, address) for address in re.findall(r'^import .* from "(.+)";$', script.text, re.M)
        }
        waiting += found - seen
    assert len(seen) == 3


def test_the_page_offers_every_template(client: FlaskClient) -> None:
    options = re.findall(r'<option value="([^"]*)">', client.get("/").text)
    assert options == ["", *TEMPLATES]


# ---- the document -------------------------------------------------------------------------------------


def parts(value: Any) -> Iterator[Json]:
    """Every object in a JSON value."""
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


def test_every_reference_of_the_document_leads_somewhere(document: Json) -> None:
    references = {part["$ref"] for part in parts(document) if isinstance(part.get("$ref"), str)}
    mapped = {ref for part in parts(document) for ref in part.get("mapping", {}).values()}
    assert len(references) > 10
    schemas = document["components"]["schemas"]
    for reference in references | mapped:
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


def test_the_document_has_every_route_and_no_other(document: Json) -> None:
    assert {(method.upper(), path) for path, method, _ in operations(document)} == {
        ("POST", "/api/jobs"), ("GET", "/api/jobs"), ("PUT", "/api/jobs/{job_id}"),
        ("GET", "/api/jobs/{job_id}"), ("DELETE", "/api/jobs/{job_id}"), ("GET", "/api/jobs/{job_id}/events"),
        ("GET", "/api/jobs/{job_id}/log"), ("GET", "/api/jobs/{job_id}/results"), ("POST", "/api/jobs/{job_id}/cancel"),
        ("POST", "/api/jobs/{job_id}/retry"), ("GET", "/api/events"), ("GET", "/api/models"),
        ("GET", "/api/models/{name}"), ("DELETE", "/api/models/{name}"),
        ("GET", "/api/models/{name}/files/{file}"), ("GET", "/api/models/{name}/archive"),
        ("GET", "/api/system"), ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz"),
        ("GET", "/v1/models"), ("GET", "/v1/models/{model}"), ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"), ("POST", "/v1/embeddings"),
    }  # fmt: skip


def test_every_operation_says_what_it_does_takes_and_answers(document: Json) -> None:
    names = set()
    for path, _, operation in operations(document):
        assert operation["summary"].endswith("."), operation
        assert "<br" not in operation["description"]
        names.add(operation["operationId"])
        in_path = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        for status, response in operation["responses"].items():
            assert response["description"]
            errors = "application/json" if path.startswith("/v1/") else "application/problem+json"
            wanted = errors if status >= "4" and path != "/readyz" else None
            assert wanted is None or list(response["content"]) == [wanted]
    assert len(names) == len(list(operations(document)))


def test_the_body_of_a_submission_is_a_union_told_apart_by_kind(document: Json) -> None:
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


def test_the_answers_are_described(document: Json) -> None:
    schemas = document["components"]["schemas"]
    assert {"JobAnswer", "Plan", "Problem", "ModelSummary"} <= set(schemas)
    assert {"id", "status", "progress", "links"} <= set(schemas["JobAnswer"]["required"])
    accepted = document["paths"]["/api/jobs"]["post"]["responses"]["202"]["content"]
    assert accepted["application/json"]["schema"] == {"$ref": "#/components/schemas/JobAnswer"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_each_kind_is_a_request(kind: str) -> None:
    assert ANY_REQUEST.validate_python(EXAMPLES[kind]["value"]).kind == kind
