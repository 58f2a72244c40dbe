"""Counters of ended jobs in `/metrics`: each job once, with its outcome, its times and its work."""

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from rq.job import Job as RQJob
from rq.results import Result

from api import create_app
from services.jobs.finalization import finalize
from services.jobs.queue import JobQueue
from services.jobs.records import Failure
from services.jobs.status import KVCacheState
from services.kinds import parse_request
from services.settings import Settings

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


KV_CACHE = KVCacheState(
    limit_bytes=1000, held_bytes=600, waiting_requests=2, prefix_bytes=250, prefix_hits=5,
    prefix_reused_tokens=640, prefix_read_tokens=77, prefix_evictions=3,
)  # fmt: skip


def samples(queue: JobQueue, settings: Settings) -> Samples:
    """The samples by name and values of labels, in the alphabetical order of the labels."""
    text = create_app(settings, queue=queue).test_client().get("/metrics").text
    families = text_string_to_metric_families(text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def run(
    queue: JobQueue, kind: str, *, seconds: float, result: dict[str, Any] | None = None, code: str = ""
) -> str:
    """Ends a job as RQ does, after this run time."""
    bodies: dict[str, dict[str, Any]] = {
        "generate": {"model": "m", "prompt": "x"},
        "convert": {"source": "m", "target": f"t-{seconds}"},
    }
    redis = queue.redis
    job_id = queue.submit(parse_request({"kind": kind, **bodies[kind]}))[0].id
    start = queue.get(job_id).created_at.timestamp() + 2
    times = {name: _utc(moment) for name, moment in (("started_at", start), ("ended_at", start + seconds))}
    if code:
        redis.hset(f"graftwerk:job:{job_id}", "error", Failure(code, "It failed.", "", True).dumps())
    else:
        rq = RQJob.fetch(job_id, connection=redis, serializer="json")
        Result.create(rq, Result.Type.SUCCESSFUL, ttl=1000, return_value=result)
    redis.hset(f"rq:job:{job_id}", mapping={"status": "failed" if code else "finished", **times})
    return job_id


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def test_ended_jobs_are_counted_once(queue: JobQueue, settings: Settings) -> None:
    outputs = [
        {"prompt": "x", "text": "y", "usage": usage(3, 5)},
        {"prompt": "x", "text": "y", "usage": usage(4, 6)},
    ]
    generated = {
        "outputs": outputs,
        "seconds": 1.0,
        "tokens_per_second": 1.0,
        "device": "cpu",
        "dtype": "float32",
    }
    ids = [
        run(queue, "generate", seconds=0.3, result=generated),
        run(queue, "generate", seconds=70, code="disk_full"),
    ]
    ids.append(run(queue, "convert", seconds=20, code="non_finite_tensor"))
    for job_id in ids * 2:
        assert finalize(queue.redis, job_id)
    found = samples(queue, settings)
    assert found["graftwerk_jobs_ended_total", "", "generate", "succeeded"] == 1
    assert found["graftwerk_jobs_ended_total", "disk_full", "generate", "failed"] == 1
    assert found["graftwerk_jobs_ended_total", "non_finite_tensor", "convert", "failed"] == 1
    assert found["graftwerk_job_run_seconds_bucket", "generate", "0.1"] == 0
    assert found["graftwerk_job_run_seconds_bucket", "generate", "0.5"] == 1
    assert found["graftwerk_job_run_seconds_bucket", "generate", "60.0"] == 1
    assert found["graftwerk_job_run_seconds_bucket", "generate", "300.0"] == 2
    assert found["graftwerk_job_run_seconds_count", "generate"] == 2
    assert found["graftwerk_job_run_seconds_sum", "generate"] == pytest.approx(70.3, abs=0.01)
    assert found["graftwerk_job_wait_seconds_sum", "convert"] == pytest.approx(2, abs=0.01)
    assert found["graftwerk_prompt_tokens_total", "generate"] == 7
    assert found["graftwerk_completion_tokens_total", "generate"] == 11


def test_a_canceled_job_has_waited_and_not_run(queue: JobQueue, settings: Settings) -> None:
    queue.cancel(queue.submit(parse_request({"kind": "generate", "model": "m", "prompt": "x"}))[0].id)
    found = samples(queue, settings)
    assert found["graftwerk_jobs_ended_total", "canceled", "generate", "canceled"] == 1
    assert found["graftwerk_job_wait_seconds_count", "generate"] == 1
    assert ("graftwerk_job_run_seconds_count", "generate") not in found


def test_bytes_of_made_models_are_counted(queue: JobQueue, settings: Settings) -> None:
    finalize(queue.redis, run(queue, "convert", seconds=1, result={"bytes_read": 100, "bytes_written": 70}))
    finalize(queue.redis, run(queue, "convert", seconds=2, result={"bytes_read": 5, "bytes_written": 1}))
    found = samples(queue, settings)
    assert found["graftwerk_bytes_read_total", "convert"] == 105
    assert found["graftwerk_bytes_written_total", "convert"] == 71


def test_models_in_memory_are_those_of_the_workers(queue: JobQueue, settings: Settings) -> None:
    queue.redis.sadd("rq:workers", "rq:worker:generate-1")
    entry = {
        "queues": "generate",
        "state": "idle",
        "last_heartbeat": _utc(1e9),
        "models": '["llama", "llama+zh"]',
        "kv_cache": KV_CACHE.model_dump_json(),
    }
    queue.redis.hset("rq:worker:generate-1", mapping=entry)
    found = samples(queue, settings)
    assert found["graftwerk_resident_model", "llama+zh", "generate-1"] == 1
    assert found["graftwerk_worker_heartbeat_age_seconds", "generate", "generate-1"] > 1e8


def test_keys_and_values_are_those_of_the_workers(queue: JobQueue, settings: Settings) -> None:
    for name, kv_cache in (("generate-1", KV_CACHE.model_dump_json()), ("merge-1", "")):
        queue.redis.sadd("rq:workers", f"rq:worker:{name}")
        entry = {"queues": name[:-2], "state": "idle", "last_heartbeat": _utc(1e9)}
        queue.redis.hset(f"rq:worker:{name}", mapping=entry | ({"kv_cache": kv_cache} if kv_cache else {}))
    found = samples(queue, settings)
    of_worker = {key[0]: value for key, value in found.items() if key[1:] == ("generate-1",)}
    assert of_worker == {
        "graftwerk_kv_cache_limit_bytes": 1000, "graftwerk_kv_cache_held_bytes": 600,
        "graftwerk_kv_cache_waiting_requests": 2, "graftwerk_kv_cache_prefix_bytes": 250,
        "graftwerk_prefix_hits_total": 5, "graftwerk_prefix_reused_tokens_total": 640,
        "graftwerk_prefix_read_tokens_total": 77, "graftwerk_prefix_evictions_total": 3,
    }  # fmt: skip
    assert not [key for key in found if key[1:] == ("merge-1",)]
