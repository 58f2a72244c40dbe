"""The page System: what does not work is said in plain words, with what to do."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient

from api.pages.system import host_of
from services.jobs.disk_reservations import RESERVATIONS_KEY
from services.jobs.memory import MEMORY_KEY, machine
from services.jobs.status import WorkerState
from tests.api_client import client_of, import_request

pytestmark = pytest.mark.disable_socket

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOSTILE = "<b>gpu</b>"


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis(server=FakeServer())


@pytest.fixture
def client(tmp_path: Path, redis: FakeRedis) -> FlaskClient:
    return client_of(tmp_path, redis=redis)


def put_worker(redis: FakeRedis, queue: str, *, job_ids: tuple[str, ...] = (), device: str = "cpu") -> None:
    name = f"{queue}-host-a-7-abc123"
    redis.sadd("rq:workers", f"rq:worker:{name}")
    heartbeat = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    fields = {"queues": queue, "state": "idle", "last_heartbeat": heartbeat, "device": device}
    engines = {"engines": '{"llama.cpp": "xllamacpp 7.1"}'}
    engines["processes"] = '[{"model": "llama", "engine": "llama.cpp", "pid": 4242}]'
    redis.hset(
        f"rq:worker:{name}",
        mapping={**fields, **engines, "memory_bytes": 64 * 10**9, "models": '["llama"]'},
    )
    if job_ids:
        redis.sadd(f"rq:worker:{name}:executions", *(f"{job_id}:1" for job_id in job_ids))


def test_a_queue_without_a_worker_says_how_many_jobs_wait_and_how_to_start_one(
    client: FlaskClient, tmp_path: Path
) -> None:
    for number in range(3):
        assert client.post("/api/jobs", json=import_request(tmp_path, f"m{number}")).status_code == 202
    text = client.get("/system").text
    assert "3 jobs wait until one starts." in text
    assert "docker compose up -d worker-convert" in text
    assert "No worker is alive." in text
    assert 'href="/jobs?kind=import&amp;status=queued">3</a>' in text


def test_a_worker_shows_device_memory_models_and_jobs(client: FlaskClient, redis: FakeRedis) -> None:
    job_id = "0190f3c2-0000-4000-8000-000000000000"
    put_worker(redis, "generate", job_ids=(job_id,), device=HOSTILE)
    text = client.get("/system").text
    assert "host-a" in text
    assert "64.0 GB" in text
    assert "&lt;b&gt;gpu&lt;/b&gt;" in text
    assert HOSTILE not in text
    assert f'href="/jobs/{job_id}"' in text
    assert ">llama</span>" in text
    assert 'llama.cpp <span class="soft">xllamacpp 7.1</span>' in text
    assert 'llama <span class="soft">llama.cpp 4242</span>' in text
    assert "<dt>gguf</dt><dd>llama.cpp</dd>" in text


def test_the_checks_say_what_is_wrong_and_what_to_do(client: FlaskClient, redis: FakeRedis) -> None:
    put_worker(redis, "convert")
    text = client.get("/system").text
    assert "Not ready" in text
    assert "No merge worker is alive." in text
    assert "docker compose up -d worker-merge" in text
    assert "docker compose up -d worker-convert" not in text


def test_without_redis_the_page_still_says_what_is_wrong(tmp_path: Path) -> None:
    server = FakeServer()
    client = client_of(tmp_path, redis=FakeRedis(server=server))
    server.connected = False
    answer = client.get("/system")
    assert answer.status_code == 200
    assert "GRAFTWERK_REDIS_URL" in answer.text
    assert "Model volume" in answer.text


def test_a_fragment_is_the_content_alone(client: FlaskClient) -> None:
    text = client.get("/system", headers={"HX-Request": "true"}).text
    assert "<html" not in text
    assert 'id="queues"' in text


def test_the_api_reports_kinds_memory_and_what_jobs_have_reserved(
    client: FlaskClient, redis: FakeRedis, tmp_path: Path
) -> None:
    assert client.post("/api/jobs", json=import_request(tmp_path)).status_code == 202
    redis.hset(RESERVATIONS_KEY, "job", 5_000_000)
    entry = f'{{"machine": "{machine()}", "needed_bytes": 700, "used_bytes": 200, "created_us": 0, "waiting": false}}'
    redis.hset(MEMORY_KEY, "job", entry)
    redis.hset(MEMORY_KEY, "elsewhere", entry.replace(machine(), "other"))
    redis.hset(MEMORY_KEY, "patient", entry.replace("false", "true"))
    system = client.get("/api/system").get_json()
    assert system["memory"]["reserved_bytes"] == 500
    assert system["memory"]["total_bytes"] > system["memory"]["available_bytes"] > 0
    assert system["volume"]["reserved_bytes"] >= 5_000_000
    assert system["volume"]["total_bytes"] > system["volume"]["free_bytes"]
    assert system["kinds"]["import"]["waiting"] == 1
    assert system["kinds"]["import"]["oldest_wait_seconds"] > 0
    assert system["kinds"]["merge"] == {
        "queue": "merge",
        "waiting": 0,
        "running": 0,
        "oldest_wait_seconds": 0,
    }


@pytest.mark.parametrize(
    ("name", "host"),
    [("merge-vm-12-abc123", "vm"), ("merge-my-host.example-12-abc123", "my-host.example"), ("odd", "odd")],
)
def test_the_host_of_a_worker_is_part_of_its_name(name: str, host: str) -> None:
    worker = WorkerState(name=name, queue="merge", state="idle", job_ids=[], last_heartbeat=NOW, device="cpu")
    assert host_of(worker) == host
