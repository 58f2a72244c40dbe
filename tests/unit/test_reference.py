"""The documentation of the API: every operation and schema of the OpenAPI document, readable without scripts."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.pages.openapi_view import code_spans, curl, reference_of, types_of
from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").get_json()
    return found


def test_every_operation_and_schema_has_its_place_and_links_lead_to_one(
    client: FlaskClient, document: dict[str, Any]
) -> None:
    text = client.get("/docs").text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    operations = [(method, path) for path, found in document["paths"].items() for method in found]
    assert len(re.findall('class="card operation"', text)) == len(operations)
    for name in document["components"]["schemas"]:
        assert f"schema-{name}" in ids
    assert set(re.findall(r'href="#([^"]+)"', text)) - set(ids) == set()


def test_examples_are_commands_that_a_shell_reads_as_they_are_meant(document: dict[str, Any]) -> None:
    jobs = reference_of(document).operations["jobs"]
    submit = next(one for one in jobs if (one.method, one.path) == ("POST", "/api/jobs"))
    kinds = document["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    found = [shlex.split(example.command) for example in submit.examples]
    assert len(found) == len(kinds)
    for words in found:
        assert words[:2] == ["curl", "$URL/api/jobs"]
        body = json.loads(words[words.index("-d") + 1])
        assert body == kinds[body["kind"]]["value"]


@pytest.mark.parametrize(
    ("method", "path", "found", "rest", "command"),
    [
        ("get", "/api/jobs/{job_id}", {}, "", 'curl "$URL/api/jobs/$JOB_ID"'),
        ("delete", "/api/models/{name}", {}, "", 'curl -X DELETE "$URL/api/models/$NAME"'),
        ("post", "/api/jobs/{job_id}/cancel", {}, "", 'curl -X POST "$URL/api/jobs/$JOB_ID/cancel"'),
        ("post", "/api/jobs", {}, "-d '{}'", "curl \"$URL/api/jobs\" -d '{}'"),
        ("get", "/api/events", {"200": {"content": {"text/event-stream": {}}}}, "", 'curl -N "$URL/api/events"'),
    ],
)  # fmt: skip
def test_a_command_names_method_and_address(
    method: str, path: str, found: dict[str, Any], rest: str, command: str
) -> None:
    assert curl(method, path, {"responses": found}, rest) == command


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "string"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer or null"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Job"}}, "array of Job"),
        ({"enum": ["a", "b"]}, '"a", "b"'),
        ({"const": "merge"}, '"merge"'),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "map to string"),
        ({}, "any"),
    ],
)
def test_a_type_is_written_as_text(schema: dict[str, Any], text: str) -> None:
    assert "".join(part.text for part in types_of(schema)) == text


def test_code_in_a_description_is_marked_and_markup_is_text() -> None:
    assert code_spans("`a<b` & <i>") == "<code>a&lt;b</code> &amp; &lt;i&gt;"


def test_the_frame_is_chinese_for_chinese_browsers_and_the_reference_english(client: FlaskClient) -> None:
    text = client.get("/docs", headers={"Accept-Language": "zh"}).text
    assert '<html lang="zh-Hans"' in text
    assert "数据结构" in text
    assert 'lang="en"' in text
    assert "数据结构" not in client.get("/docs", headers={"Accept-Language": "en"}).text


def test_the_page_needs_no_exception_of_the_policy(client: FlaskClient) -> None:
    policy = client.get("/docs").headers["Content-Security-Policy"]
    assert "unsafe" not in policy
