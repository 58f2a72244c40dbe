"""Reading jobs: one, a list, a stream of events."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from services.errors import NotReady
from services.jobs.events import Event
from tests.api_client import client_of, import_request, problem

pytestmark = pytest.mark.disable_socket


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


UNKNOWN = "0b5bd5ac-7c1c-4d3e-9f0a-6a1d3f1e8c55"
"""The id of no job."""


def submit(client: FlaskClient, tmp_path: Path, target: str) -> str:
    job_id: str = client.post("/api/jobs", json=import_request(tmp_path, target)).get_json()["id"]
    return job_id


def test_a_job_is_returned_with_the_time_to_wait(client: FlaskClient, tmp_path: Path) -> None:
    job_id = submit(client, tmp_path, "a")
    response = client.get(f"/api/jobs/{job_id}")
    assert response.status_code == 200
    assert response.get_json()["id"] == job_id
    assert response.headers["Retry-After"] == "1"
    assert "Location" not in response.headers


@pytest.mark.parametrize(
    "job_id", [UNKNOWN, "7", "not-a-uuid", "{" + UNKNOWN + "}", UNKNOWN.replace("-", "")]
)
def test_an_unknown_job_is_404_also_with_an_invalid_id(client: FlaskClient, job_id: str) -> None:
    url = f"/api/jobs/{job_id}"
    for response in (
        client.get(url),
        client.get(f"{url}/log"),
        client.get(f"{url}/events"),
        client.get(f"{url}/results"),
        client.post(f"{url}/cancel"),
        client.post(f"{url}/retry"),
        client.delete(url),
    ):
        assert job_id in problem(response, 404, "job_not_found")["detail"]


def test_a_list_is_read_page_by_page_newest_first(client: FlaskClient, tmp_path: Path) -> None:
    made = [submit(client, tmp_path, name) for name in ("a", "b", "c")]
    first = client.get("/api/jobs?limit=2&kind=import")
    assert [job["id"] for job in first.get_json()["jobs"]] == [made[2], made[1]]
    cursor = first.get_json()["next"]
    assert first.headers["Link"] == f'</api/jobs?kind=import&limit=2&after={cursor}>; rel="next"'
    last = client.get(first.headers["Link"][1:].partition(">")[0])
    assert [job["id"] for job in last.get_json()["jobs"]] == [made[0]]
    assert last.get_json()["next"] is None
    assert "Link" not in last.headers


def test_a_list_is_narrowed_by_kind_and_status(client: FlaskClient, tmp_path: Path) -> None:
    submit(client, tmp_path, "a")
    assert len(client.get("/api/jobs?kind=import&status=queued").get_json()["jobs"]) == 1
    assert client.get("/api/jobs?kind=merge").get_json()["jobs"] == []
    assert client.get("/api/jobs?status=failed").get_json()["jobs"] == []


@pytest.mark.parametrize("query", ["status=done", "kind=mix", "limit=0", "limit=x", "stauts=failed"])
def test_an_invalid_parameter_of_a_list_is_named(client: FlaskClient, query: str) -> None:
    found = problem(client.get(f"/api/jobs?{query}"), 422, "invalid_request")
    assert found["errors"][0]["loc"] == [query.partition("=")[0]]


def test_an_invalid_cursor_is_refused(client: FlaskClient) -> None:
    problem(client.get("/api/jobs?after=here"), 422, "invalid_request")


def test_the_log_of_a_job_is_text(client: FlaskClient, tmp_path: Path) -> None:
    response = client.get(f"/api/jobs/{submit(client, tmp_path, 'a')}/log")
    assert (response.status_code, response.mimetype, response.text) == (200, "text/plain", "")


def test_the_events_of_a_job_begin_with_its_status(client: FlaskClient, tmp_path: Path) -> None:
    job_id = submit(client, tmp_path, "a")
    response = client.get(f"/api/jobs/{job_id}/events")
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-store"
    frames = response.iter_encoded()
    assert next(frames).startswith(b":")
    identity, name, data = next(frames).decode().strip().split("\n")
    assert identity.startswith("id: ")
    assert name == "event: status"
    assert json.loads(data.removeprefix("data: "))["id"] == job_id


@pytest.mark.parametrize(
    ("url", "headers"),
    [("/api/events", {"Last-Event-ID": "17-3"}), ("/api/events?last_event_id=17-3", {})],
)
def test_a_stream_resumes_after_the_last_event_and_sends_keepalives(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, url: str, headers: dict[str, str]
) -> None:
    requested: list[str | None] = []

    def follow(redis: object, job_id: str | None, *, last_id: str | None) -> Iterator[Event | None]:
        requested.append(last_id)
        return iter([None, Event("18-0", "progress", "{}")])

    monkeypatch.setattr("api.jobs.follow", follow)
    response = client.get(url, headers=headers)
    assert requested == ["17-3"]
    assert response.text == ": graftwerk\n\n: keep-alive\n\nid: 18-0\nevent: progress\ndata: {}\n\n"


def test_a_stream_that_loses_redis_ends_and_says_so(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(redis: object, job_id: str | None, *, last_id: str | None) -> Iterator[Event | None]:
        yield Event("18-0", "progress", "{}")
        raise NotReady("Redis does not answer")

    monkeypatch.setattr("api.jobs.follow", follow)
    assert client.get("/api/events").text.endswith("data: {}\n\n: not_ready\n\n")


@pytest.mark.parametrize("last_id", ["yesterday", f"{2**64}-0", f"1-{2**64}", "1" * 30, "١-٠"])
def test_an_invalid_event_id_is_refused(client: FlaskClient, last_id: str) -> None:
    response = client.get("/api/events", query_string={"last_event_id": last_id})
    assert last_id in problem(response, 422, "invalid_request")["detail"]


def put_results(root: Path, job_id: str) -> bytes:
    lines = '{"job": "x"}\n{"number": 0, "prompt": "一"}\n'.encode()
    (root / "results").mkdir()
    (root / "results" / f"{job_id}.jsonl").write_bytes(lines)
    return lines


def test_the_lines_of_a_job_are_downloaded_also_in_parts(client: FlaskClient, tmp_path: Path) -> None:
    job_id = submit(client, tmp_path, "a")
    lines = put_results(tmp_path, job_id)
    with client.get(f"/api/jobs/{job_id.upper()}/results") as response:
        assert (response.status_code, response.data) == (200, lines)
        assert response.mimetype == "application/x-ndjson"
        assert response.headers["Content-Disposition"] == f"attachment; filename={job_id}.jsonl"
    with client.get(f"/api/jobs/{job_id}/results", headers={"Range": "bytes=13-"}) as rest:
        assert (rest.status_code, rest.data) == (206, lines[13:])
    (tmp_path / "results" / f"{job_id}.predictions.json").write_text("[]")
    with client.get(f"/api/jobs/{job_id}/results?format=predictions") as predictions:
        assert (predictions.mimetype, predictions.get_json()) == ("application/json", [])


def test_a_job_without_files_says_so(client: FlaskClient, tmp_path: Path) -> None:
    job_id = submit(client, tmp_path, "a")
    problem(client.get(f"/api/jobs/{job_id}/results"), 404, "results_not_found")
    put_results(tmp_path, job_id)
    problem(client.get(f"/api/jobs/{job_id}/results?format=predictions"), 404, "results_not_found")
    problem(client.get(f"/api/jobs/{job_id}/results?format=csv"), 422, "invalid_request")


def test_the_files_of_a_deleted_job_remain(client: FlaskClient, tmp_path: Path) -> None:
    lines = put_results(tmp_path, UNKNOWN)
    with client.get(f"/api/jobs/{UNKNOWN}/results") as response:
        assert response.data == lines
