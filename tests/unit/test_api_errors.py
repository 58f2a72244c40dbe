"""Every error class has a status, a row in the documentation and the same shape over HTTP."""

import re
from http import HTTPStatus
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from api.errors import HTTP_CODES, STATUS_OF
from services import errors
from services.errors import GraftwerkError
from tests.api_client import client_of, problem

pytestmark = pytest.mark.disable_socket

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (\d{3}) \| (.+) \| (.+) \|$", re.MULTILINE)
DOCUMENTED = {
    row[1]: (int(row[2]), row[3]) for row in ROW.finditer((ROOT / "docs" / "errors.md").read_text("utf-8"))
}
"""Status and meaning, by code, as docs/errors.md has them."""

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, GraftwerkError)
]


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


def test_each_error_class_has_a_status() -> None:
    assert set(CLASSES) == set(STATUS_OF)


def test_no_two_classes_share_a_code() -> None:
    codes = [error.code for error in CLASSES]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", [c for c in CLASSES if c is not GraftwerkError], ids=lambda c: c.code)
def test_each_code_is_documented_with_its_status_and_meaning(error: type[GraftwerkError]) -> None:
    status, meaning = DOCUMENTED[error.code]
    assert status == STATUS_OF[error]
    assert meaning == (error.__doc__ or "").splitlines()[0]


def test_only_these_codes_and_those_of_http_are_documented() -> None:
    http = {code: status for status, code in HTTP_CODES.items()}
    own = {error.code for error in CLASSES if error is not GraftwerkError}
    assert set(DOCUMENTED) == own | set(http)
    assert {code: DOCUMENTED[code][0] for code in http} == http


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("model_not_found", 404),
        ("source_not_found", 404),
        ("job_not_found", 404),
        ("model_exists", 409),
        ("model_in_use", 409),
        ("vocabulary_mismatch", 422),
        ("wrong_adapter_order", 422),
        ("idempotency_conflict", 422),
        ("queue_full", 429),
        ("not_ready", 503),
        ("volume_unavailable", 503),
        ("disk_full", 507),
    ],
)
def test_the_statuses_that_people_rely_on(code: str, status: int) -> None:
    assert {error.code: found for error, found in STATUS_OF.items()}[code] == HTTPStatus(status)


def test_an_unknown_page_is_a_problem(client: FlaskClient) -> None:
    assert "/nothing/here" in problem(client.get("/nothing/here"), 404, "not_found")["detail"]


def test_a_method_that_is_not_offered_is_a_problem_that_names_those_that_are(client: FlaskClient) -> None:
    response = client.patch("/api/jobs")
    assert "PATCH is not offered" in problem(response, 405, "method_not_allowed")["detail"]
    assert {"GET", "POST"} <= set(re.findall(r"\w+", response.headers["Allow"]))


def test_an_unexpected_exception_is_500_without_its_traceback(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(store: object) -> list[str]:
        raise RuntimeError("the innermost secret")

    monkeypatch.setattr("services.models.store.ModelStore.names", break_down)
    response = client.get("/api/models", headers={"X-Request-Id": "seen-by-the-proxy"})
    problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "request seen-by-the-proxy was answered with 500" in caplog.messages
    assert "the innermost secret" in caplog.text


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("two words", False), ("x" * 129, False)])
def test_every_response_has_a_request_id(client: FlaskClient, given: str, kept: bool) -> None:
    for url in ("/healthz", "/nothing"):
        found = client.get(url, headers={"X-Request-Id": given}).headers["X-Request-Id"]
        assert (found == given) is kept
        assert found


def test_data_may_be_neither_framed_nor_sniffed(client: FlaskClient) -> None:
    headers = client.get("/healthz").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
