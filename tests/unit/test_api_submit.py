"""Submissions: accepted, refused with a reason, repeated."""

import io
from pathlib import Path
from uuid import uuid4

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient

from tests.api_client import Json, client_of, import_request, problem, put_model

pytestmark = pytest.mark.disable_socket

MERGE = {"kind": "merge", "base": "llama", "adapters": ["zh"], "target": "merged"}


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


@pytest.fixture
def request_body(tmp_path: Path) -> Json:
    return import_request(tmp_path)


def test_a_job_is_accepted_with_its_position_and_its_links(client: FlaskClient, request_body: Json) -> None:
    response = client.post("/api/jobs", json=request_body)
    job = response.get_json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/api/jobs/{job['id']}"
    assert response.headers["Retry-After"] == "1"
    assert (job["kind"], job["status"], job["queue_position"]) == ("import", "queued", 1)
    assert job["created_at"].endswith("Z")
    assert job["request"]["target"] == "llama"
    assert job["links"] == {
        "self": f"/api/jobs/{job['id']}",
        "events": f"/api/jobs/{job['id']}/events",
        "log": f"/api/jobs/{job['id']}/log",
        "cancel": f"/api/jobs/{job['id']}/cancel",
    }


def test_a_dry_run_returns_the_plan_and_queues_nothing(client: FlaskClient, request_body: Json) -> None:
    response = client.post("/api/jobs?dry_run=true", json=request_body)
    assert response.status_code == 200
    assert response.get_json()["kind"] == "import"
    assert response.get_json()["output_bytes"] == len('{"dim": 48}')
    assert client.get("/api/jobs").get_json() == {"jobs": [], "next": None, "total": 0}


def test_a_misspelt_dry_run_does_not_submit(client: FlaskClient, request_body: Json) -> None:
    found = problem(client.post("/api/jobs?dryrun=true", json=request_body), 422, "invalid_request")
    assert found["errors"][0]["loc"] == ["dryrun"]
    assert client.get("/api/jobs").get_json()["jobs"] == []


# ---- repeating ----------------------------------------------------------------------------------------


def test_a_put_is_202_first_and_200_when_repeated(client: FlaskClient, request_body: Json) -> None:
    job_id = str(uuid4())
    first = client.put(f"/api/jobs/{job_id}", json=request_body)
    again = client.put(f"/api/jobs/{job_id}", json=request_body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.headers["Location"] == f"/api/jobs/{job_id}"
    assert first.get_json()["id"] == again.get_json()["id"] == job_id
    assert len(client.get("/api/jobs").get_json()["jobs"]) == 1


def test_a_repeated_put_returns_its_job_even_if_the_target_exists(
    client: FlaskClient, request_body: Json, tmp_path: Path
) -> None:
    url = f"/api/jobs/{uuid4()}"
    client.put(url, json=request_body)
    put_model(tmp_path, "llama")
    assert client.put(url, json=request_body).status_code == 200
    problem(client.put(f"/api/jobs/{uuid4()}", json=request_body), 409, "model_exists")


def test_a_put_of_another_body_is_a_conflict(client: FlaskClient, request_body: Json) -> None:
    url = f"/api/jobs/{uuid4()}"
    client.put(url, json=request_body)
    problem(client.put(url, json=request_body | {"metadata": {"a": "b"}}), 422, "idempotency_conflict")


def test_a_put_in_capital_letters_is_the_same_id(client: FlaskClient, request_body: Json) -> None:
    job_id = str(uuid4())
    assert client.put(f"/api/jobs/{job_id.upper()}", json=request_body).get_json()["id"] == job_id
    assert client.get(f"/api/jobs/{job_id.upper()}").status_code == 200


def test_a_put_with_an_invalid_uuid_is_refused(client: FlaskClient, request_body: Json) -> None:
    found = problem(client.put("/api/jobs/my-job", json=request_body), 422, "invalid_request")
    assert "my-job" in found["detail"]


def test_an_idempotency_key_is_one_job_even_if_the_target_exists(
    client: FlaskClient, request_body: Json, tmp_path: Path
) -> None:
    headers = {"Idempotency-Key": "tuesday's import"}
    first = client.post("/api/jobs", json=request_body, headers=headers)
    put_model(tmp_path, "llama")
    again = client.post("/api/jobs", json=request_body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.get_json()["id"] == again.get_json()["id"]
    other = client.post("/api/jobs", json=request_body | {"metadata": {"a": "b"}}, headers=headers)
    problem(other, 422, "idempotency_conflict")


def test_an_idempotency_key_that_is_too_long_is_refused(client: FlaskClient, request_body: Json) -> None:
    response = client.post("/api/jobs", json=request_body, headers={"Idempotency-Key": "x" * 256})
    assert problem(response, 422, "invalid_request")["errors"][0]["loc"] == ["Idempotency-Key"]


# ---- refused by the services --------------------------------------------------------------------------


def test_a_missing_model_is_404(client: FlaskClient) -> None:
    assert "llama" in problem(client.post("/api/jobs", json=MERGE), 404, "model_not_found")["detail"]


def test_a_model_that_an_earlier_job_will_make_counts_as_existing(
    client: FlaskClient, request_body: Json
) -> None:
    first = client.post("/api/jobs", json=request_body).get_json()["id"]
    convert = {"kind": "convert", "source": "llama", "target": "llama-hf", "after": [first]}
    response = client.post("/api/jobs", json=convert)
    assert response.status_code == 202
    assert response.get_json()["after"] == [first]


def test_a_target_that_another_job_will_make_is_409(client: FlaskClient, request_body: Json) -> None:
    first = client.post("/api/jobs", json=request_body).get_json()["id"]
    response = client.post("/api/jobs", json=request_body | {"target": "LLaMA"})
    assert first in problem(response, 409, "model_exists")["detail"]


def test_a_full_queue_is_429_with_the_time_to_wait(tmp_path: Path) -> None:
    client = client_of(tmp_path, queue_limit=1)
    client.post("/api/jobs", json=import_request(tmp_path))
    response = client.post("/api/jobs", json=import_request(tmp_path, "other"))
    problem(response, 429, "queue_full")
    assert int(response.headers["Retry-After"]) >= 1


def test_without_redis_it_is_503_with_the_time_to_wait(tmp_path: Path) -> None:
    server = FakeServer()
    client = client_of(tmp_path, redis=FakeRedis(server=server))
    server.connected = False
    response = client.post("/api/jobs", json=import_request(tmp_path))
    problem(response, 503, "not_ready")
    assert int(response.headers["Retry-After"]) >= 1


# ---- refused by their form ----------------------------------------------------------------------------


def test_every_wrong_field_is_named(client: FlaskClient) -> None:
    body = {"kind": "merge", "adapters": [{"name": "zh", "scale": "much"}], "target": "../up", "adaptors": []}
    found = problem(client.post("/api/jobs", json=body), 422, "invalid_request")
    wrong = {tuple(error["loc"]): error["msg"] for error in found["errors"]}
    assert set(wrong) == {("base",), ("adapters", 0, "scale"), ("target",), ("adaptors",)}
    assert wrong["base",] == "Field required"
    assert "base: Field required" in found["detail"]


def test_a_rule_between_fields_has_its_own_message(client: FlaskClient) -> None:
    found = problem(client.post("/api/jobs", json=MERGE | {"target": "ZH"}), 422, "invalid_request")
    assert found["errors"] == [
        {"loc": [], "msg": "target 'ZH' is one of the inputs: a model never overwrites its input"}
    ]


@pytest.mark.parametrize("body", [{"kind": "mix"}, {}, {"kind": None}])
def test_an_unknown_kind_is_named(client: FlaskClient, body: Json) -> None:
    found = problem(client.post("/api/jobs", json=body), 422, "invalid_request")
    assert [error["loc"] for error in found["errors"]] == [["kind"]]


@pytest.mark.parametrize("body", ["[]", "null", "3", '"merge"'])
def test_json_that_is_not_an_object_is_422(client: FlaskClient, body: str) -> None:
    response = client.post("/api/jobs", data=body, content_type="application/json")
    problem(response, 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"kind": merge}', "line 1, column 10"),
        (b"", "line 1, column 1"),
        (b'{"kind": NaN}', "NaN is not a JSON number"),
        (b'{"kind": "\xff"}', "byte 0xff at offset 10"),
        (b"9" * 10_000, "not JSON"),
    ],
    ids=["syntax", "empty", "nan", "not utf-8", "digits"],
)
def test_invalid_json_is_400_with_the_position(client: FlaskClient, body: bytes, words: str) -> None:
    response = client.post("/api/jobs", data=body, content_type="application/json; charset=utf-8")
    assert words in problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_without_a_json_content_type_is_415(client: FlaskClient, content_type: str | None) -> None:
    response = client.post("/api/jobs", data="{}", content_type=content_type)
    assert "application/json" in problem(response, 415, "unsupported_media_type")["detail"]


def test_a_body_over_8_mib_is_413(client: FlaskClient) -> None:
    body = b'{"kind": "' + b"x" * (8 * 1024 * 1024) + b'"}'
    response = client.post("/api/jobs", data=body, content_type="application/json")
    assert "8388608 bytes" in problem(response, 413, "body_too_large")["detail"]


def test_a_body_over_8_mib_in_chunks_is_413_too(client: FlaskClient) -> None:
    stream = io.BytesIO(b'{"kind": "' + b"x" * (8 * 1024 * 1024) + b'"}')
    response = client.post(
        "/api/jobs",
        input_stream=stream,
        headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"},
        environ_overrides={"wsgi.input_terminated": True},
    )
    problem(response, 413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (r'{"kind": "generate", "model": "m", "prompts": ["ok", "half \ud800"]}', "prompts.1"),
        (r'{"kind": "generate", "model": "m", "prompt": "\udc00"}', "prompt"),
        (r'{"kind": "import", "metadata": {"\ud83d": "x"}}', "metadata"),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_its_field(client: FlaskClient, body: str, where: str) -> None:
    response = client.post("/api/jobs", data=body, content_type="application/json")
    assert problem(response, 422, "invalid_text")["detail"].startswith(f"{where} holds half")


def test_a_whole_surrogate_pair_is_a_character(client: FlaskClient, request_body: Json) -> None:
    response = client.post("/api/jobs", json=request_body | {"metadata": {"mood": "\U0001f999"}})
    assert response.get_json()["metadata"] == {"mood": "\U0001f999"}
