"""Probes, warnings about missing workers, the state of the system, and Prometheus' metrics."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakeredis import FakeRedis, FakeServer
from prometheus_client.parser import text_string_to_metric_families

from services.errors import InvalidSettings
from services.generate_engines import Engines
from services.jobs.engine_record import EngineRecord
from services.jobs.queue import JobQueue
from services.jobs.status import WorkerState
from services.kinds import QUEUES
from tests.api_client import client_of, import_request

pytestmark = pytest.mark.disable_socket

READY = {"redis": "ok", "volume": "ok", "worker-convert": "ok", "worker-merge": "ok", "worker-generate": "ok"}


def have_workers(monkeypatch: pytest.MonkeyPatch, *queues: str) -> None:
    """Makes the queue report one living worker for each of these queues."""
    states = [
        WorkerState(
            name=f"{queue}-1",
            queue=queue,
            device="cpu",
            state="idle",
            job_ids=[],
            last_heartbeat=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for queue in queues
    ]
    monkeypatch.setattr("services.jobs.queue.JobQueue.workers", lambda queue: states)


@pytest.fixture
def _all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    have_workers(monkeypatch, *QUEUES)


@pytest.fixture
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    have_workers(monkeypatch, "merge")


def disconnected() -> FakeRedis:
    server = FakeServer()
    server.connected = False
    return FakeRedis(server=server)


def test_the_process_is_alive_without_redis(tmp_path: Path) -> None:
    response = client_of(tmp_path, redis=disconnected()).get("/healthz")
    assert (response.status_code, response.get_json()) == (200, {"status": "ok"})


@pytest.mark.usefixtures("_all_workers")
def test_it_is_ready_when_redis_the_volume_and_all_workers_answer(tmp_path: Path) -> None:
    response = client_of(tmp_path).get("/readyz")
    assert response.status_code == 200
    assert response.get_json() == {"status": "ok", "checks": READY, "engine": "auto", "warnings": []}


@pytest.mark.usefixtures("_one_worker")
def test_each_queue_without_a_worker_is_reported(tmp_path: Path) -> None:
    response = client_of(tmp_path).get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {
        "status": "unavailable",
        "checks": READY
        | {
            "worker-convert": "No convert worker is alive.",
            "worker-generate": "No generate worker is alive.",
        },
        "engine": "auto",
        "warnings": [],
    }


@pytest.mark.usefixtures("_one_worker")
def test_a_generate_worker_of_another_engine_is_named(tmp_path: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    client = client_of(tmp_path, redis=redis)
    assert client.get("/readyz").get_json()["engine"] == "auto"
    EngineRecord(redis, "auto").announce()
    vllm = Engines("vllm", frozenset({"vllm"}))
    with pytest.raises(InvalidSettings):
        EngineRecord(redis, "vllm").register(vllm, lambda _: None)
    message = client.get("/readyz").get_json()["checks"]["worker-generate"]
    assert message == (
        "No generate worker is alive. One did not start: "
        "This worker's GENERATE_ENGINE is 'vllm', and the service's is 'auto'."
    )
    EngineRecord(redis, "auto").register(Engines("auto", frozenset({"graftwerk"})))
    assert client.get("/readyz").get_json()["checks"]["worker-generate"] == "No generate worker is alive."


def test_without_redis_every_check_that_needs_it_says_so(tmp_path: Path) -> None:
    response = client_of(tmp_path, redis=disconnected()).get("/readyz")
    assert response.status_code == 503
    checks = response.get_json()["checks"]
    assert checks.pop("volume") == "ok"
    assert set(checks) == set(READY) - {"volume"}
    assert all(outcome.startswith("Redis does not answer") for outcome in checks.values())


@pytest.mark.usefixtures("_all_workers")
def test_without_the_volume_it_is_not_ready_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    response = client_of(tmp_path / "file" / "models").get("/readyz")
    assert response.status_code == 503
    assert "cannot be read" in response.get_json()["checks"]["volume"]


@pytest.mark.usefixtures("_all_workers")
def test_little_free_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.models.store.ModelStore.free_bytes", lambda store: 2**30 - 1)
    response = client_of(tmp_path).get("/readyz")
    assert (response.status_code, response.get_json()["checks"]) == (200, READY)
    (warning,) = response.get_json()["warnings"]
    assert warning.startswith("The model volume has 1073741823 bytes left.")


# ---- warnings of jobs ---------------------------------------------------------------------------------


def test_a_queued_job_that_no_worker_serves_has_a_warning(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    job = client.post("/api/jobs", json=import_request(tmp_path)).get_json()
    assert job["warnings"] == ["No convert worker is alive. The job waits until one starts."]
    assert client.get(f"/api/jobs/{job['id']}").get_json()["warnings"] == job["warnings"]


@pytest.mark.usefixtures("_all_workers")
def test_a_job_that_a_worker_serves_has_no_warning(tmp_path: Path) -> None:
    job = client_of(tmp_path).post("/api/jobs", json=import_request(tmp_path)).get_json()
    assert job["warnings"] == []


def test_the_workers_are_read_once_for_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(tmp_path)
    for name in ("a", "b", "c"):
        client.post("/api/jobs", json=import_request(tmp_path, name))
    reads: list[JobQueue] = []
    monkeypatch.setattr("services.jobs.queue.JobQueue.workers", lambda queue: reads.append(queue) or [])
    jobs = client.get("/api/jobs").get_json()["jobs"]
    assert [len(job["warnings"]) for job in jobs] == [1, 1, 1]
    assert len(reads) == 1


# ---- the system ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_one_worker")
def test_the_system_has_workers_queues_and_the_volume(tmp_path: Path) -> None:
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
    assert system["engine"] == {
        "setting": "auto",
        "models": {"huggingface": "graftwerk", "gguf": "llama.cpp"},
        "backend": None,
    }
    assert system["volume"]["models"] == 0
    assert system["volume"]["free_bytes"] > 0


@pytest.mark.usefixtures("_one_worker")
def test_prometheus_reads_the_same_numbers(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    client.post("/api/jobs", json=import_request(tmp_path, "a"))
    response = client.get("/metrics")
    assert response.mimetype == "text/plain"
    families = text_string_to_metric_families(response.text)
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert samples["graftwerk_jobs", "import", "queued"] == 1
    assert samples["graftwerk_queue_waiting", "convert"] == 1
    assert samples["graftwerk_queue_workers", "merge"] == 1
    assert samples["graftwerk_waiting_jobs", "import"] == 1
    assert 0 <= samples["graftwerk_oldest_wait_seconds", "import"] < 60
    assert samples["graftwerk_oldest_wait_seconds", "merge"] == 0
    assert samples["graftwerk_worker_heartbeat_age_seconds", "merge", "merge-1"] > 0
    assert samples["graftwerk_models",] == 0
    assert samples["graftwerk_volume_free_bytes",] > 0


def test_all_waiting_jobs_are_counted(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    for number in range(5):
        client.post("/api/jobs", json=import_request(tmp_path, f"m{number}"))
    assert client.get("/api/system").get_json()["queues"]["convert"]["waiting"] == 5
