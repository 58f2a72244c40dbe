"""Dry runs for a page that previews a merge: sizes, an estimate of the time, the order that fits."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient
from rq.job import Job as RQJob

from api import planning
from services.errors import InsufficientMemory, WrongAdapterOrder
from services.jobs.queue import JobQueue
from services.jobs.records import Failure, record_key
from services.jobs.status import Job, KVCacheState, WorkerState
from services.kinds import parse_request
from services.preflight import Plan
from tests.api_client import Json, client_of, problem
from tests.miniature import ADAPTERS, MINIATURE, unpack_adapters

pytestmark = pytest.mark.disable_socket

MERGE = {"kind": "merge", "base": "llama", "adapters": ADAPTERS, "target": "merged"}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    shutil.copytree(MINIATURE / "llama", tmp_path / "llama")
    unpack_adapters(tmp_path)
    return tmp_path


@pytest.fixture
def client(volume: Path) -> FlaskClient:
    return client_of(volume)


def plan(client: FlaskClient, **changes: Any) -> Json:
    response = client.post("/api/jobs?dry_run=true", json=MERGE | changes)
    assert response.status_code == 200, response.text
    found: Json = response.get_json()
    return found


def ended_merge(size_bytes: int, seconds: float, **more: Any) -> Job:
    """Returns a merge that took this time for an output of this size."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    request = MERGE | {"adapters": [{"name": name} for name in ADAPTERS]} | more.pop("request", {})
    result = {
        "model": {"name": "merged", "kind": "huggingface", "size_bytes": size_bytes}, "warnings": [], "bytes_read": 1,
        "bytes_written": size_bytes, "tensors": 1, "adapters": [], "verification": None, "vocabulary_size": 1,
        "device": "cpu", **more,
    }  # fmt: skip
    return Job(
        id="0b5bd5ac-7c1c-4d3e-9f0a-6a1d3f1e8c55", kind="merge", status="succeeded", created_at=began, started_at=began,
        finished_at=began + timedelta(seconds=seconds), after=[], queue_position=None, progress=None,
        request=parse_request(request), result=result, error=None, metadata={},
    )  # fmt: skip


def test_a_dry_run_of_a_merge_has_what_a_preview_shows(client: FlaskClient) -> None:
    found = plan(client)
    assert [(entry["role"], entry["name"]) for entry in found["reads"]] == [
        ("base", "llama"), *(("adapter", name) for name in ADAPTERS),
    ]  # fmt: skip
    assert found["disk_needed_bytes"] > found["output_bytes"] > 0
    assert found["disk_free_bytes"] > 0
    assert found["peak_memory_bytes"] > 0
    assert found["estimated_seconds"] is None, "no merge has ended yet"
    assert isinstance(found["warnings"], list)


def test_the_estimate_is_the_median_of_similar_jobs_in_proportion_to_the_size(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = plan(client)["output_bytes"]
    jobs = [
        ended_merge(size, 10), ended_merge(2 * size, 40), ended_merge(size // 2, 15), ended_merge(20 * size, 7),
        ended_merge(size, 1, same_as="other"), ended_merge(size, 2, request={"output_format": "gguf"}),
        ended_merge(size, 3, resumed={"tensors": 4, "bytes": 5}),
    ]  # fmt: skip
    monkeypatch.setattr(JobQueue, "list", lambda *_, **__: (jobs, None))
    assert plan(client)["estimated_seconds"] == pytest.approx(20, rel=0.01)
    jobs[:] = jobs[3:]
    assert plan(client)["estimated_seconds"] is None


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_a_wrong_order_is_refused_with_the_right_one(client: FlaskClient, query: str) -> None:
    response = client.post(f"/api/jobs{query}", json=MERGE | {"adapters": ADAPTERS[::-1]})
    found = response.get_json()
    assert (response.status_code, found["code"]) == (422, "wrong_adapter_order")
    assert found["order"] == ["chinese-llama-lora", "chinese-alpaca-lora"]


def test_no_order_is_named_where_another_adapter_is_needed(client: FlaskClient) -> None:
    response = client.post("/api/jobs", json=MERGE | {"adapters": ADAPTERS[1:]})
    assert (response.get_json()["code"], response.get_json()["order"]) == ("wrong_adapter_order", [])


def test_other_refusals_have_no_order(client: FlaskClient) -> None:
    problem(client.post("/api/jobs", json=MERGE | {"base": "absent"}), 404, "model_not_found")


def test_a_job_that_fails_for_its_order_has_the_right_one(volume: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    client = client_of(volume, redis=redis)
    job_id = client.post("/api/jobs", json=MERGE).get_json()["id"]
    for error, expected in (
        (WrongAdapterOrder("No.", "Swap them.", order=["a", "b"]), {"order": ["a", "b"]}),
        (WrongAdapterOrder("No.", "Swap them."), {"order": []}),
    ):
        redis.hset(record_key(job_id), "error", Failure.of(error).dumps())
        RQJob.fetch(job_id, connection=redis, serializer="json").set_status("failed")
        found = client.get(f"/api/jobs/{job_id}").get_json()["error"]
        assert found == {
            "code": "wrong_adapter_order", "message": "No.", "hint": "Swap them.", **expected,
        }  # fmt: skip
    redis.hset(record_key(job_id), "error", '{"code": "x", "message": "m", "hint": "h", "final": true}')
    assert client.get(f"/api/jobs/{job_id}").get_json()["error"] == {"code": "x", "message": "m", "hint": "h"}


@pytest.mark.parametrize(
    ("devices", "needed", "is_refused"),
    [(["cpu", "cpu"], 2001, True), (["cpu", "cpu"], 2000, False), (["cpu", "cuda:0"], 9999, False)],
)
def test_an_output_that_no_worker_has_memory_for_is_refused_with_both_sizes(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, devices: list[str], needed: int, is_refused: bool
) -> None:
    counters = dict.fromkeys(KVCacheState.model_fields, 0)
    workers = [
        WorkerState(
            name=f"generate-{number}", queue="generate", state="idle", job_ids=[], device=device,
            last_heartbeat=datetime.now(UTC),
            kv_cache=KVCacheState.model_validate(counters | {"limit_bytes": 1000 * (number + 1)}),
        )
        for number, device in enumerate(devices)
    ]  # fmt: skip
    monkeypatch.setattr(JobQueue, "workers", lambda _: workers)
    wanted = Plan(kind="generate", kv_cache_bytes=needed)
    with client.application.app_context():
        if not is_refused:
            planning.check_memory(wanted)
            return
        with pytest.raises(
            InsufficientMemory, match="needs 2001 bytes for keys and values; a worker may use 2000"
        ):
            planning.check_memory(wanted)
