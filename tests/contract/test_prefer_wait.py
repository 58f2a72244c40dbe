"""`Prefer: wait=N`: responses that wait for the end of a job, without polling and without holding gone clients."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from redis import Redis

from api import create_app
from services.jobs.queue import JobQueue, connect
from services.settings import Settings
from tests.api_client import import_request

SOON_SECONDS = 0.3


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


@pytest.fixture
def api(queue: JobQueue, settings: Settings) -> FlaskClient:
    return create_app(settings, queue=queue).test_client()


@pytest.fixture
def body(settings: Settings) -> dict[str, Any]:
    return import_request(settings.models_dir)


@contextmanager
def soon(action: Any) -> Iterator[None]:
    """Calls a function in a thread, a moment later."""
    timer = threading.Timer(SOON_SECONDS, action)
    timer.start()
    yield
    timer.join()


def cancel_first(settings: Settings) -> None:
    """Ends the newest job, from another connection."""
    queue = JobQueue(connect(settings), settings)
    queue.cancel(queue.list()[0][0].id)


@pytest.mark.parametrize("method", ["post", "put"])
def test_a_submission_responds_with_the_ended_job(
    api: FlaskClient, settings: Settings, body: dict[str, Any], method: str
) -> None:
    path = "/api/jobs" if method == "post" else f"/api/jobs/{uuid4()}"
    start = time.monotonic()
    with soon(lambda: cancel_first(settings)):
        response = getattr(api, method)(path, json=body, headers={"Prefer": "wait=30"})
    assert response.status_code == 200
    assert response.get_json()["status"] == "canceled"
    assert response.headers["Preference-Applied"] == "wait=30"
    assert SOON_SECONDS <= time.monotonic() - start < 25


def test_a_job_that_has_not_ended_is_accepted(api: FlaskClient, body: dict[str, Any]) -> None:
    start = time.monotonic()
    response = api.post("/api/jobs", json=body, headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.get_json()["status"] == "queued"
    assert response.headers["Location"] == f"/api/jobs/{response.get_json()['id']}"
    assert "Retry-After" in response.headers
    assert time.monotonic() - start >= 1
    again = api.get(response.headers["Location"], headers={"Prefer": "wait=0"})
    assert (again.status_code, again.headers["Preference-Applied"]) == (202, "wait=0")


def test_a_get_waits_for_the_end_without_polling(
    api: FlaskClient, queue: JobQueue, redis: Redis, settings: Settings, body: dict[str, Any]
) -> None:
    job_id = api.post("/api/jobs", json=body).get_json()["id"]
    before = redis.info("stats")["total_commands_processed"]
    response = api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=2"})
    assert response.status_code == 202
    assert redis.info("stats")["total_commands_processed"] - before < 40
    with soon(lambda: cancel_first(settings)):
        assert api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=30"}).status_code == 200


def test_an_ended_job_is_returned_at_once_and_long_waits_are_cut(
    api: FlaskClient, queue: JobQueue, body: dict[str, Any]
) -> None:
    job_id = api.post("/api/jobs", json=body).get_json()["id"]
    queue.cancel(job_id)
    start = time.monotonic()
    response = api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=3600"})
    assert (response.status_code, response.headers["Preference-Applied"]) == (200, "wait=60")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("header", ["wait=x", "wait=-1", "wait", "respond-async", "wait=٣", ""])
def test_what_is_no_wait_is_ignored(api: FlaskClient, body: dict[str, Any], header: str) -> None:
    job_id = api.post("/api/jobs", json=body).get_json()["id"]
    response = api.get(f"/api/jobs/{job_id}", headers={"Prefer": header})
    assert response.status_code == 200
    assert "Preference-Applied" not in response.headers


def test_a_client_that_has_gone_is_not_waited_for(
    api: FlaskClient, queue: JobQueue, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = api.post("/api/jobs", json=body).get_json()["id"]
    monkeypatch.setattr("api.prefer.disconnect_check", lambda _: lambda: True)
    start = time.monotonic()
    api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=60"})
    assert time.monotonic() - start < 30
    assert queue.get(job_id).status == "queued", "the job goes on"


def test_a_job_that_is_deleted_ends_the_wait(
    api: FlaskClient, settings: Settings, redis: Redis, body: dict[str, Any]
) -> None:
    job_id = api.post("/api/jobs", json=body).get_json()["id"]
    with soon(lambda: redis.delete(f"graftwerk:job:{job_id}")):
        start = time.monotonic()
        response = api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=50"})
    assert response.status_code == 202
    assert time.monotonic() - start < 30
