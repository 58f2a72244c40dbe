"""Upgrade from 0.1.0: its Redis and its volume are read, and its jobs run to their end."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from redis import Redis
from rq.job import Job as RQJob

from services.jobs.disk_reservations import RESERVATIONS_KEY
from services.jobs.queue import JobQueue, connect
from services.jobs.status import ENDED, UnknownRequest
from services.kinds import KINDS, QUEUES
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.settings import Settings
from tests.api_client import Json, client_of
from tests.contract.janitor_clock import Clock, watch
from tests.redis_server import Server, until
from tests.results import result_json
from tests.upgrade_recording import FOLDER, load_redis, recorded_keys, unpack_volume
from worker.janitor import Janitor

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, Any] = json.loads((FOLDER / "jobs.json").read_text(encoding="utf-8"))
IDS: dict[str, str] = RECORDED["jobs"]
KINDS_OF_0_1_0 = {
    "import", "convert", "merge", "extend-tokenizer", "verify", "generate", "compare", "embed", "perplexity",
}  # fmt: skip
ENDED_IDS = {name: id for name, id in IDS.items() if name.startswith("ended-")}
WAITING_IDS = {name: id for name, id in IDS.items() if name.startswith(("queued-", "stopped-", "killed-"))}


@dataclass
class Installation:
    """A service that was started on the Redis and the volume of 0.1.0."""

    redis: Redis
    settings: Settings
    queue: JobQueue
    api: FlaskClient

    def job(self, name: str) -> Json:
        job: Json = self.api.get(f"/api/jobs/{IDS[name]}").get_json()
        return job


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    server = Server(tmp_path_factory.mktemp("redis"))
    server.start()
    volume = tmp_path_factory.mktemp("volume")
    unpack_volume(volume)
    settings = Settings(redis_url=SecretStr(server.url), models_dir=volume)
    redis = connect(settings)
    load_redis(redis)
    yield Installation(redis, settings, JobQueue(redis, settings), client_of(volume, redis=redis))
    redis.close()
    server.stop()


@pytest.fixture(scope="module")
def upgraded(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The same installation after a janitor's round and the workers' run through all queues."""
    clock = Clock()
    janitor = Janitor(installation.redis, installation.settings, clock)
    watch(janitor, clock)
    janitor.round()
    environment = {
        "GRAFTWERK_REDIS_URL": installation.settings.redis_address,
        "GRAFTWERK_MODELS_DIR": str(installation.settings.models_dir),
        "GRAFTWERK_TORCH_THREADS": "1",
    }
    with (tmp_path_factory.mktemp("log") / "workers.log").open("wb") as log:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "worker", role],
                env={**os.environ, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
            for role in QUEUES
        ]
    try:
        until(
            lambda: all(installation.queue.get(id).status in ENDED for id in WAITING_IDS.values()),
            seconds=240,
        )
        yield installation
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


# ---- before a worker has run --------------------------------------------------------------------------


def test_all_jobs_are_listed_with_their_requests(installation: Installation) -> None:
    jobs, after = installation.queue.list(limit=1000)
    assert after is None
    assert {job.id for job in jobs} >= set(IDS.values())
    assert not [job for job in jobs if isinstance(job.request, UnknownRequest)]
    assert {job.kind for job in jobs} == KINDS_OF_0_1_0
    listed = installation.api.get("/api/jobs?limit=1000").get_json()["jobs"]
    assert len(listed) == len(jobs)


@pytest.mark.parametrize(
    "query", ["kind=merge", "status=failed", "model=alpaca", "kind=merge&status=succeeded&model=alpaca"]
)
def test_jobs_are_found_by_kind_status_and_model(installation: Installation, query: str) -> None:
    wanted = dict(part.split("=") for part in query.split("&"))
    all_jobs = installation.api.get("/api/jobs?limit=1000").get_json()["jobs"]
    expected = [
        job["id"]
        for job in all_jobs
        if wanted.get("kind") in (None, job["kind"])
        and wanted.get("status") in (None, job["status"])
        and ("model" not in wanted or f'"{wanted["model"]}"' in json.dumps(job["request"]))
    ]
    found = installation.api.get(f"/api/jobs?limit=1000&{query}").get_json()["jobs"]
    assert expected
    assert [job["id"] for job in found] == expected


def with_utc_as_z(result: Json) -> Json:
    """A recorded result with its model's time of creation in the one form of today: 0.1.0 wrote +00:00."""
    model = result.get("model")
    if not isinstance(model, dict):
        return result
    return {**result, "model": {**model, "created_at": model["created_at"].replace("+00:00", "Z")}}


@pytest.mark.parametrize("name", ENDED_IDS)
def test_an_ended_job_shows_the_request_and_result_that_were_recorded(
    installation: Installation, name: str
) -> None:
    job = installation.job(name)
    recorded = RQJob.fetch(IDS[name], connection=installation.redis, serializer="json")
    record = dict(recorded_keys()[f"graftwerk:job:{IDS[name]}"]["value"])
    assert job["status"] == "succeeded"
    assert job["result"] == with_utc_as_z(recorded.return_value())
    request = json.loads(record["request"])
    fields = KINDS[job["kind"]].request.model_fields  # those that are newer than 0.1.0 have their defaults
    newer = {key: fields[key].get_default() for key in job["request"].keys() - request.keys()}
    assert job["request"] == {**request, **newer}
    assert type(installation.queue.get(IDS[name]).result) is KINDS[job["kind"]].result


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("failed", "failed", "digest_mismatch"),
        ("upstream-failed", "failed", "upstream_failed"),
        ("canceled", "canceled", "canceled"),
    ],
)
def test_an_error_is_shown(installation: Installation, name: str, status: str, code: str) -> None:
    job = installation.job(name)
    assert (job["status"], job["error"]["code"]) == (status, code)


def test_models_are_described_without_a_problem(installation: Installation) -> None:
    models = {model["name"]: model for model in installation.api.get("/api/models").get_json()["models"]}
    assert {"alpaca", "alpaca-lora", "llama", "llama-gguf", "llama-hf", "llama-words", "words"} <= set(models)
    assert {name: model["problems"] for name, model in models.items() if model["problems"]} == {}
    for name in models:
        assert read_manifest(ModelStore(installation.settings.models_dir).path(name)) is not None


@pytest.mark.parametrize("name", RECORDED["idempotency_keys"])
def test_an_idempotency_key_still_means_its_job(installation: Installation, name: str) -> None:
    known = RECORDED["idempotency_keys"][name]
    response = installation.api.post(
        "/api/jobs", json=known["request"], headers={"Idempotency-Key": known["key"]}
    )
    assert response.get_json()["id"] == IDS[name]


def test_disk_reservations_count(installation: Installation) -> None:
    recorded = {job: int(needed) for job, needed in recorded_keys()[RESERVATIONS_KEY]["value"]}
    assert installation.queue.reserved_bytes(lambda job_id: 0) == sum(recorded.values())


# ---- after the workers have run -----------------------------------------------------------------------


@pytest.mark.parametrize("name", WAITING_IDS)
def test_a_waiting_job_succeeds(upgraded: Installation, name: str) -> None:
    job = upgraded.queue.get(IDS[name])
    assert job.error is None
    assert job.status == "succeeded"
    assert type(job.result) is KINDS[job.kind].result


@pytest.mark.parametrize(("name", "tensors"), [("killed-merge", 11), ("stopped-convert", 8)])
def test_an_interrupted_job_reuses_the_tensors_it_had_written(
    upgraded: Installation, name: str, tensors: int
) -> None:
    assert result_json(upgraded.queue.get(IDS[name]))["resumed"]["tensors"] == tensors


def test_an_interrupted_file_of_prompts_keeps_its_outputs(upgraded: Installation) -> None:
    result = result_json(upgraded.queue.get(IDS["stopped-generate-file"]))
    assert (result["answered"], result["resumed"]) == (5, 2)


def test_reservations_names_and_staging_folders_are_released(upgraded: Installation) -> None:
    assert upgraded.redis.hgetall(RESERVATIONS_KEY) == {}
    assert list(upgraded.redis.scan_iter("graftwerk:target:*")) == []
    staging = upgraded.settings.models_dir / ".staging"
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("kind", ["merge", "convert"])
def test_the_same_request_gives_the_same_tensors_as_before(upgraded: Installation, kind: str) -> None:
    before, after = (result_json(upgraded.queue.get(IDS[f"{state}-{kind}"])) for state in ("ended", "queued"))
    assert after["tensor_digest"] == before["tensor_digest"]
