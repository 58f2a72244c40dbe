"""Ending, repeating and forgetting jobs over HTTP, on a real server."""

from pathlib import Path

import pytest
from flask.testing import FlaskClient
from redis import Redis

from services.jobs.events import publish_progress
from services.jobs.status import JobProgress
from services.settings import Settings
from tests.api_client import client_of, import_request, problem, put_model


@pytest.fixture
def models_dir(settings: Settings) -> Path:
    return settings.models_dir


@pytest.fixture
def client(redis: Redis, models_dir: Path) -> FlaskClient:
    return client_of(models_dir, redis=redis)


@pytest.fixture
def job_id(client: FlaskClient, models_dir: Path) -> str:
    found: str = client.post("/api/jobs", json=import_request(models_dir)).get_json()["id"]
    return found


def test_a_waiting_job_is_canceled_at_once(client: FlaskClient, job_id: str) -> None:
    response = client.post(f"/api/jobs/{job_id}/cancel")
    job = response.get_json()
    assert (response.status_code, job["status"], job["error"]["code"]) == (202, "canceled", "canceled")
    assert "Retry-After" not in response.headers
    assert job["links"]["retry"] == f"/api/jobs/{job_id}/retry"
    assert "cancel" not in job["links"]
    problem(client.post(f"/api/jobs/{job_id}/cancel"), 409, "job_already_ended")


def test_an_ended_job_is_run_again_as_a_new_one(client: FlaskClient, job_id: str) -> None:
    problem(client.post(f"/api/jobs/{job_id}/retry"), 409, "job_not_ended")
    client.post(f"/api/jobs/{job_id}/cancel")
    response = client.post(f"/api/jobs/{job_id}/retry")
    again = response.get_json()
    assert (response.status_code, again["status"]) == (202, "queued")
    assert again["id"] != job_id
    assert response.headers["Location"] == f"/api/jobs/{again['id']}"


def test_a_job_whose_target_exists_by_now_is_not_run_again(
    client: FlaskClient, job_id: str, models_dir: Path
) -> None:
    client.post(f"/api/jobs/{job_id}/cancel")
    put_model(models_dir, "llama")
    problem(client.post(f"/api/jobs/{job_id}/retry"), 409, "model_exists")


def test_an_ended_job_is_forgotten(client: FlaskClient, job_id: str) -> None:
    problem(client.delete(f"/api/jobs/{job_id}"), 409, "job_not_ended")
    client.post(f"/api/jobs/{job_id}/cancel")
    response = client.delete(f"/api/jobs/{job_id}")
    assert (response.status_code, response.data) == (204, b"")
    problem(client.get(f"/api/jobs/{job_id}"), 404, "job_not_found")


def test_a_job_after_one_that_was_canceled_is_409(client: FlaskClient, job_id: str) -> None:
    client.post(f"/api/jobs/{job_id}/cancel")
    body = {"kind": "convert", "source": "llama", "target": "hf", "after": [job_id]}
    response = client.post("/api/jobs", json=body)
    assert response.status_code in (404, 409)
    assert response.get_json()["code"] in ("model_not_found", "upstream_failed")


def test_the_stream_of_a_job_is_resumed_and_ends_with_it(
    client: FlaskClient, redis: Redis, job_id: str
) -> None:
    progress = JobProgress(stage="reading", done=0, total=0, unit="bytes", fraction=None, eta_seconds=None)
    publish_progress(redis, job_id, progress)
    frames = client.get(f"/api/jobs/{job_id}/events").iter_encoded()
    next(frames)
    last_id = next(frames).decode().splitlines()[0].removeprefix("id: ")
    client.post(f"/api/jobs/{job_id}/cancel")
    rest = client.get(f"/api/jobs/{job_id}/events", headers={"Last-Event-ID": last_id}).text
    assert rest.count("event: status") == 1
    assert '"status": "canceled"' in rest
