"""Probes, the state of the system, and what Prometheus reads."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakeredis import FakeRedis, FakeServer
from prometheus_client.parser import text_string_to_metric_families

from services.jobs.status import WorkerState
from tests.api_client import client_of, import_request

pytestmark = pytest.mark.disable_socket

WORKER = WorkerState(
    name="merge-1",
    queue="merge",
    device="cpu",
    state="idle",
    job_ids=[],
    last_heartbeat=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.jobs.queue.JobQueue.workers", lambda queue: [WORKER])


def test_the_process_lives_whatever_else_does(tmp_path: Path) -> None:
    server = FakeServer()
    server.connected = False
    response = client_of(tmp_path, redis=FakeRedis(server=server)).get("/healthz")
    assert (response.status_code, response.get_json()) == (200, {"status": "ok"})


@pytest.mark.usefixtures("_one_worker")
def test_it_is_ready_when_redis_the_volume_and_a_worker_answer(tmp_path: Path) -> None:
    response = client_of(tmp_path).get("/readyz")
    assert response.status_code == 200
    assert response.get_json() == {"status": "ok", "checks": {"redis": "ok", "volume": "ok", "workers": "ok"}}


def test_without_a_worker_it_is_not_ready_and_says_so(tmp_path: Path) -> None:
    response = client_of(tmp_path).get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {
        "status": "unavailable",
        "checks": {"redis": "ok", "volume": "ok", "workers": "no worker is alive"},
    }


@pytest.mark.usefixtures("_one_worker")
def test_without_redis_it_is_not_ready_and_says_so(tmp_path: Path) -> None:
    server = FakeServer()
    server.connected = False
    response = client_of(tmp_path, redis=FakeRedis(server=server)).get("/readyz")
    assert response.status_code == 503
    checks = response.get_json()["checks"]
    assert checks["redis"].startswith("Redis does not answer")
    assert checks["volume"] == "ok"


@pytest.mark.usefixtures("_one_worker")
def test_without_the_volume_it_is_not_ready_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    response = client_of(tmp_path / "file" / "models").get("/readyz")
    assert response.status_code == 503
    assert "cannot be written" in response.get_json()["checks"]["volume"]


@pytest.mark.usefixtures("_one_worker")
def test_the_system_tells_of_workers_queues_and_the_volume(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    client.post("/api/jobs", json=import_request(tmp_path, "a"))
    client.post("/api/jobs", json=import_request(tmp_path, "b"))
    system = client.get("/api/system").get_json()
    assert [worker["name"] for worker in system["workers"]] == ["merge-1"]
    assert system["queues"] == {
        "convert": {"waiting": 2, "running": 0, "workers": 0},
        "merge": {"waiting": 0, "running": 0, "workers": 1},
        "generate": {"waiting": 0, "running": 0, "workers": 0},
    }
    assert system["volume"]["models"] == 0
    assert system["volume"]["free_bytes"] > 0


@pytest.mark.usefixtures("_one_worker")
def test_prometheus_reads_what_the_system_tells(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    client.post("/api/jobs", json=import_request(tmp_path, "a"))
    response = client.get("/metrics")
    assert response.mimetype == "text/plain"
    families = text_string_to_metric_families(response.text)
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert samples["graftwerk_jobs", "import", "queued"] == 1
    assert samples["graftwerk_queue_waiting", "convert"] == 1
    assert samples["graftwerk_queue_workers", "merge"] == 1
    assert samples["graftwerk_models",] == 0
    assert samples["graftwerk_volume_free_bytes",] > 0


def test_all_jobs_are_counted_however_many_pages_they_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.metrics.PAGE", 2)
    client = client_of(tmp_path)
    for number in range(5):
        client.post("/api/jobs", json=import_request(tmp_path, f"m{number}"))
    assert client.get("/api/system").get_json()["queues"]["convert"]["waiting"] == 5
