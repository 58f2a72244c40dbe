"""Requests that cannot succeed are refused before they are queued, with a code and a sentence, and leave no trace."""

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import Incoming, Line
from tests.e2e.product import Product, problem

WELL_FORMED = {"kind": "merge", "base": "llama-hf", "adapters": ["zh", "alpaca"], "target": "new"}


@pytest.fixture(autouse=True)
def _leaves_no_trace(product: Product, line: Line) -> Iterator[None]:
    files, jobs = product.volume.files(), product.get("/api/jobs", limit=1)["jobs"]
    yield
    assert product.volume.files() == files
    assert product.get("/api/jobs", limit=1)["jobs"] == jobs


def test_a_dry_run_returns_the_plan_and_makes_nothing(product: Product) -> None:
    plan = product.plan(**WELL_FORMED)
    assert [entry["name"] for entry in plan["reads"]] == ["llama-hf", "zh", "alpaca"]
    files = product.get("/api/models/merged")["files"]
    made = sum(file["size_bytes"] for file in files if file["path"].endswith(".safetensors"))
    assert plan["output_bytes"] == pytest.approx(made, rel=0.02)
    assert plan["disk_needed_bytes"] >= plan["output_bytes"]
    assert plan["disk_free_bytes"] > plan["disk_needed_bytes"]
    assert plan["peak_memory_bytes"] > 0


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_adapters_in_the_wrong_order_are_refused_with_the_right_one(product: Product, query: str) -> None:
    response = product.http.post(f"/api/jobs{query}", json=WELL_FORMED | {"adapters": ["alpaca", "zh"]})
    found = problem(response, 422, "wrong_adapter_order")
    assert "alpaca" in found["detail"]
    assert "zh, alpaca" in found["hint"]


def test_the_second_adapter_without_the_first_is_refused(product: Product) -> None:
    found = product.refusal(422, "wrong_adapter_order", **WELL_FORMED | {"adapters": ["alpaca"]})
    assert "chinese-llama-lora" in found["hint"]


@pytest.mark.parametrize("target", ["merged", "MERGED"])
def test_a_target_that_exists_is_refused_ignoring_case(product: Product, target: str) -> None:
    found = product.refusal(409, "model_exists", **WELL_FORMED | {"target": target})
    assert "merged" in found["detail"].lower()


@pytest.mark.parametrize("field", [{"base": "absent"}, {"adapters": ["zh", "absent"]}])
def test_a_missing_model_is_named(product: Product, field: dict[str, object]) -> None:
    assert "absent" in product.refusal(404, "model_not_found", **WELL_FORMED | field)["detail"]


def test_an_unknown_field_is_named(product: Product) -> None:
    found = product.refusal(422, "invalid_request", **WELL_FORMED | {"adaptors": []})
    assert [error["loc"] for error in found["errors"]] == [["adaptors"]]


def test_an_unknown_kind_is_refused(product: Product) -> None:
    found = product.refusal(422, "invalid_request", kind="mix", target="new")
    assert found["errors"][0]["loc"] == ["kind"]


def test_an_adapter_is_refused_as_a_base(product: Product) -> None:
    product.refusal(422, "wrong_model_kind", **WELL_FORMED | {"base": "zh", "adapters": ["alpaca"]})


def test_a_missing_source_is_named(product: Product) -> None:
    request = {"kind": "import", "source": {"path": "incoming/absent"}, "target": "new"}
    assert "incoming/absent" in product.refusal(404, "source_not_found", **request)["detail"]


@pytest.mark.parametrize("path", ["/etc/passwd", "incoming/../merged", "../outside", "merged"])
def test_a_source_outside_incoming_is_refused(product: Product, path: str) -> None:
    response = product.http.post(
        "/api/jobs", json={"kind": "import", "source": {"path": path}, "target": "new"}
    )
    problem(response, response.status_code, response.json()["code"])
    assert response.status_code in (404, 422)
    assert response.json()["code"] in ("invalid_name", "source_not_found")


@pytest.mark.parametrize("target", ["../new", "a/b", ".hidden", "", "x" * 97, "incoming"])
def test_an_invalid_target_name_is_refused(product: Product, target: str) -> None:
    found = product.refusal(422, "invalid_request", **WELL_FORMED | {"target": target})
    assert found["errors"][0]["loc"] == ["target"]


def test_a_job_after_an_unknown_one_is_refused(product: Product) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    assert unknown in product.refusal(404, "job_not_found", **WELL_FORMED | {"after": [unknown]})["detail"]


def test_invalid_json_is_refused_with_the_position(product: Product) -> None:
    response = product.http.post(
        "/api/jobs", content=b'{"kind": merge}', headers={"Content-Type": "application/json"}
    )
    assert "line 1, column 10" in problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("path", ["/api/jobs", "/v1/chat/completions"])
def test_invalid_text_is_refused_with_a_sentence(product: Product, path: str) -> None:
    def post(body: bytes) -> httpx.Response:
        return product.http.post(path, content=body, headers={"Content-Type": "application/json"})

    body = (
        rb'{"kind": "generate", "model": "merged", "messages": [{"role": "user", "content": "half \ud83d"}]}'
    )
    half = post(body)
    assert half.is_client_error
    assert "half of a surrogate pair" in half.text
    bytes_ = post(body.replace(rb"\ud83d", b"\xe4\xbd"))
    assert bytes_.status_code == 400
    assert "not UTF-8" in bytes_.text


def test_a_body_without_a_json_content_type_is_refused(product: Product) -> None:
    response = product.http.post("/api/jobs", content=b"{}", headers={"Content-Type": "text/plain"})
    problem(response, 415, "unsupported_media_type")


def test_an_unknown_job_and_an_unknown_page_are_problems_too(product: Product) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    problem(product.http.get(f"/api/jobs/{unknown}"), 404, "job_not_found")
    problem(product.http.get("/api/nothing-here"), 404, "not_found")
    problem(product.http.patch("/api/jobs"), 405, "method_not_allowed")


def test_a_zip_that_would_write_outside_its_folder_is_refused(
    product: Product, incoming: Incoming, unsafe_zip: str
) -> None:
    response = product.http.post(
        "/api/jobs", json={"kind": "import", "source": {"zip": unsafe_zip}, "target": "new"}
    )
    assert "../escaped" in problem(response, 422, "unsafe_archive")["detail"]
