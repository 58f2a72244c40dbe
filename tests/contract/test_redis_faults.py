"""Redis that is silent or full: requests end in time, the janitor goes on, and everything works afterwards."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask.testing import FlaskClient
from redis import Redis

from api import create_app
from services.jobs import queue as job_queue
from services.jobs.events import follow
from services.jobs.queue import JobQueue, connect, connect_api
from services.settings import Settings
from tests.api_client import import_request, problem
from tests.redis_server import Server, until
from worker import janitor as janitor_module
from worker.janitor import Janitor

REQUEST_SECONDS = 5
"""Longest time that a request may take."""


@contextmanager
def silent(server: Server) -> Iterator[None]:
    """Redis accepts connections and answers nothing."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


@contextmanager
def full(redis: Redis) -> Iterator[None]:
    """Redis refuses every command that needs memory."""
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


@pytest.fixture
def api(settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setattr(job_queue, "API_TIMEOUT_SECONDS", 0.5)
    return create_app(settings).test_client()


@pytest.mark.parametrize("path", ["/api/jobs", "/api/system", "/metrics", "/api/jobs?status=queued"])
def test_a_silent_redis_ends_requests_as_not_ready(api: FlaskClient, redis_server: Server, path: str) -> None:
    assert api.get(path).status_code == 200
    with silent(redis_server):
        start = time.monotonic()
        problem(api.get(path), 503, "not_ready")
        seconds = time.monotonic() - start
    assert seconds < 0.5 + 2.5, "one wait, not one for each command and retry"
    assert api.get(path).status_code == 200


def test_a_silent_redis_is_not_ready(api: FlaskClient, redis_server: Server) -> None:
    with silent(redis_server):
        start = time.monotonic()
        response = api.get("/readyz")
        assert time.monotonic() - start < 0.5 + 2.5
    assert response.status_code == 503


def test_the_time_for_a_reply_leaves_time_for_the_response() -> None:
    assert job_queue.API_TIMEOUT_SECONDS < REQUEST_SECONDS


def test_event_streams_wait_longer_than_requests(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queue, "API_TIMEOUT_SECONDS", 0.5)
    queue = JobQueue(connect_api(settings), settings, streams=connect(settings))
    events = follow(queue.streams, None, last_id=None, keepalive_seconds=1)
    assert next(events) is None


def test_a_connection_that_was_lost_is_opened_again(settings: Settings, redis: Redis) -> None:
    queue = JobQueue(connect_api(settings), settings)
    queue.ping()
    redis.client_kill_filter(_type="normal")
    queue.ping()


def test_a_full_redis_refuses_submissions_and_answers_the_rest(
    api: FlaskClient, settings: Settings, redis: Redis
) -> None:
    body = import_request(settings.models_dir)
    with full(redis):
        problem(api.post("/api/jobs", json=body), 429, "queue_full")
        assert api.get("/api/jobs").status_code == 200
    assert api.post("/api/jobs", json=body).status_code == 202


def test_the_janitor_frees_a_full_redis_and_goes_on(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor_module, "ROUND_SECONDS", 0.05)
    queue = JobQueue(redis, settings)
    api = create_app(settings, queue=queue).test_client()
    ids = [
        api.post("/api/jobs", json=import_request(settings.models_dir, name)).get_json()["id"]
        for name in ("a", "b")
    ]
    for job_id in ids:
        queue.cancel(job_id)
    stop = threading.Event()
    thread = threading.Thread(target=Janitor(connect(settings), settings).work, args=(stop,))
    redis.zadd("graftwerk:ended", {ids[0]: 1.0})
    with full(redis):
        thread.start()
        until(lambda: not redis.exists(f"graftwerk:job:{ids[0]}"))
        assert thread.is_alive()
    redis.zadd("graftwerk:ended", {ids[1]: 1.0})
    until(lambda: not redis.exists(f"graftwerk:job:{ids[1]}"))
    stop.set()
    thread.join()
