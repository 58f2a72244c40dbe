"""Indexes of jobs: lists and counts under every filter, after crashes, upgrades and the expiry of records."""

import json
from itertools import product
from typing import Any, get_args

import pytest
from redis import Redis
from rq import SimpleWorker
from rq.job import Job as RQJob
from rq.results import Result

from services.jobs.finalization import finalize
from services.jobs.listing import JobFilter
from services.jobs.maintenance import run_maintenance
from services.jobs.queue import JobQueue
from services.jobs.status import JobStatus
from services.kinds import parse_request
from services.settings import Settings

KINDS = ("convert", "merge", "generate")
MODELS = ("llama", "LoRA", "out-1", "unknown")


def request_of(kind: str, number: int) -> Any:
    target = f"out-{number}"
    bodies: dict[str, dict[str, Any]] = {
        "convert": {"source": "llama", "target": target},
        "merge": {"base": "llama", "adapters": ["lora"], "target": target},
        "generate": {"model": "other", "adapters": ["lora"], "prompt": "x"},
    }
    return parse_request({"kind": kind, **bodies[kind]})


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


def end(redis: Redis, job_id: str, status: str, result: dict[str, Any] | None = None) -> None:
    """Commits the end of a job as RQ does, without our finalization."""
    job = RQJob.fetch(job_id, connection=redis, serializer="json")
    redis.lrem(f"rq:queue:{job.origin}", 0, job_id)
    if status == "finished":
        Result.create(job, Result.Type.SUCCESSFUL, ttl=1000, return_value=result or {})
    redis.hset(f"rq:job:{job_id}", mapping={"status": status, "ended_at": "2026-01-01T00:00:00.000000Z"})
    redis.expire(f"rq:job:{job_id}", 1000)


@pytest.fixture
def jobs(queue: JobQueue, redis: Redis) -> dict[str, tuple[str, str, set[str]]]:
    """Kind, status and models by id, oldest first; one of each ended status of each kind is not finalized."""
    made = {}
    rq_statuses = ("queued", "started", "finished", "failed", "canceled", "finished", "failed", "canceled")
    ours = ("queued", "running", "succeeded", "failed", "canceled", "succeeded", "failed", "canceled")
    for number, (kind, index) in enumerate(product(KINDS, range(len(ours)))):
        request = request_of(kind, number)
        job_id = queue.submit(request)[0].id
        if index > 0:
            end(redis, job_id, rq_statuses[index])
        if index > 4:
            assert finalize(redis, job_id)
        models = {name for name in (*request.reads, request.makes) if name}
        made[job_id] = (kind, ours[index], models)
    return made


def expected(jobs: dict[str, tuple[str, str, set[str]]], selected: JobFilter) -> list[str]:
    kind, status, model = selected.kind, selected.status, selected.model
    return [
        job_id
        for job_id, (of_kind, of_status, models) in reversed(jobs.items())
        if kind in (None, of_kind)
        and status in (None, of_status)
        and (model is None or model.lower() in models)
    ]


FILTERS = [
    JobFilter(kind, status, model)
    for kind, status, model in product((None, *KINDS), (None, *get_args(JobStatus)), (None, *MODELS))
]


def listed(queue: JobQueue, selected: JobFilter) -> list[str]:
    """Ids of all pages of two jobs each."""
    page, cursor = queue.list(selected, limit=2)
    found = [job.id for job in page]
    while cursor is not None:
        page, cursor = queue.list(selected, limit=2, after=cursor)
        found += [job.id for job in page]
    return found


def test_every_filter_lists_what_it_selects(
    queue: JobQueue, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    wrong = [selected for selected in FILTERS if listed(queue, selected) != expected(jobs, selected)]
    assert wrong == []
    assert len(expected(jobs, JobFilter("merge", "failed", "LORA"))) == 2


def test_every_filter_counts_what_it_selects(
    queue: JobQueue, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    assert [s for s in FILTERS if queue.count(s) != len(expected(jobs, s))] == []
    assert queue.count() == len(jobs)


def test_counts_are_those_of_the_jobs(queue: JobQueue, jobs: dict[str, tuple[str, str, set[str]]]) -> None:
    counts = queue.statistics().jobs
    assert counts == {
        (kind, status): 1 if status in ("queued", "running") else 2
        for kind, status in product(KINDS, get_args(JobStatus))
    }


def test_jobs_of_an_earlier_version_are_indexed(
    queue: JobQueue, redis: Redis, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    for key in redis.scan_iter("graftwerk:ended:*"):
        redis.delete(key)
    for job_id in jobs:
        redis.hdel(f"graftwerk:job:{job_id}", "kind", "models")
        redis.expire(f"graftwerk:job:{job_id}", 1000)
    assert [s for s in FILTERS if listed(queue, s) != expected(jobs, s)] == []


def test_an_end_that_an_earlier_version_finalizes_is_indexed(
    queue: JobQueue, redis: Redis, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    assert queue.statistics().jobs.total() == len(jobs)
    ended = next(id for id, (_, status, _) in jobs.items() if status == "failed")
    redis.srem("graftwerk:active", ended)
    assert listed(queue, JobFilter(status="failed")) == expected(jobs, JobFilter(status="failed"))


def test_expired_records_of_an_earlier_version_do_not_count(
    queue: JobQueue, redis: Redis, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    gone = next(id for id, (_, status, _) in jobs.items() if status == "succeeded")
    redis.srem("graftwerk:active", gone)
    redis.delete(f"graftwerk:job:{gone}", f"rq:job:{gone}", f"rq:results:{gone}")
    assert queue.statistics().jobs.total() == len(jobs) - 1
    assert gone not in listed(queue, JobFilter())


def test_a_record_that_is_lost_leaves_the_counts_right(
    queue: JobQueue, redis: Redis, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    run_maintenance(redis)
    lost = next(id for id, (_, status, _) in jobs.items() if status == "failed")
    redis.delete(f"graftwerk:job:{lost}")
    redis.zadd("graftwerk:ended", {lost: 1.0})
    run_maintenance(redis)
    assert queue.statistics().jobs.total() == len(jobs) - 1
    before = redis.info("commandstats").get("cmdstat_zrange", {}).get("calls", 0)
    queue.statistics()
    assert redis.info("commandstats").get("cmdstat_zrange", {}).get("calls", 0) == before, (
        "nothing is built again"
    )


def test_nothing_is_left_of_expired_and_deleted_jobs(
    queue: JobQueue, redis: Redis, jobs: dict[str, tuple[str, str, set[str]]]
) -> None:
    run_maintenance(redis)
    ended = [id for id, (_, status, _) in jobs.items() if status not in ("queued", "running")]
    for job_id in ended[::2]:
        queue.delete(job_id)
    redis.zadd("graftwerk:ended", dict.fromkeys(ended[1::2], 1.0))
    run_maintenance(redis)
    assert list(redis.scan_iter("graftwerk:ended:*")) == []
    remaining = {key.decode() for id in ended for key in redis.scan_iter(f"*{id}*")}
    assert remaining == {f"rq:job:{id}" for id in ended[1::2]}, "RQ's hashes expire by themselves"
    assert all(redis.ttl(key) > 0 for key in remaining)


def test_a_finalized_job_keeps_its_result_and_loses_what_only_rq_needed(
    queue: JobQueue, redis: Redis
) -> None:
    request = request_of("generate", 1)
    job_id = queue.submit(request)[0].id
    outputs = [{"prompt": "x", "text": "é" * 3000, "finish_reason": "stop"}]
    end(redis, job_id, "finished", {"outputs": outputs, "extra": [1, 2]})
    before, size_before = queue.get(job_id), size(redis, job_id)
    assert before.result is not None
    assert before.result.model_dump(mode="json", exclude_unset=True)["extra"] == [1, 2]
    finalize(redis, job_id)
    assert queue.get(job_id) == before
    assert not redis.exists(f"rq:results:{job_id}")
    events = f"graftwerk:events:{job_id}"
    assert 0 < redis.ttl(events) <= 600
    assert size(redis, job_id) - (redis.memory_usage(events, samples=0) or 0) < size_before / 4
    after = queue.submit(parse_request({**json.loads(request.model_dump_json()), "after": [job_id]}))[0]
    assert (after.status, after.queue_position) == ("queued", 1), "RQ reads the ended job"


def size(redis: Redis, job_id: str) -> int:
    return sum(redis.memory_usage(key, samples=0) or 0 for key in redis.scan_iter(f"*{job_id}*"))


def commands(redis: Redis) -> int:
    return sum(entry["calls"] for entry in redis.info("commandstats").values())


def test_a_list_reads_no_more_of_more_records(queue: JobQueue, redis: Redis) -> None:
    needed = []
    for count in (30, 120):
        for number in range(count):
            job_id = queue.submit(request_of("generate", number))[0].id
            end(redis, job_id, "failed" if number % 2 else "finished")
            finalize(redis, job_id)
        for selected in (JobFilter(), JobFilter("generate", "failed", "lora")):
            assert len(queue.list(selected, limit=10)[0]) == 10  # the first use may build
            before = commands(redis)
            queue.list(selected, limit=10)
            needed.append(commands(redis) - before)
        before = commands(redis)
        queue.statistics()
        needed.append(commands(redis) - before)
    assert needed[:3] == needed[3:]


def test_a_repeated_finalization_publishes_no_second_end(queue: JobQueue, redis: Redis) -> None:
    job_id = queue.submit(request_of("merge", 1))[0].id
    end(redis, job_id, "finished")
    for _ in range(3):
        assert finalize(redis, job_id)
    for stream in (f"graftwerk:events:{job_id}", "graftwerk:events"):
        statuses = [json.loads(fields[b"data"])["status"] for _, fields in redis.xrange(stream)]
        assert statuses == ["queued", "succeeded"]


def test_a_heartbeat_after_the_end_leaves_the_job(queue: JobQueue, redis: Redis) -> None:
    job_id = queue.submit(request_of("merge", 1))[0].id
    worker = SimpleWorker(["merge"], connection=redis, serializer="json")
    job = RQJob.fetch(job_id, connection=redis, serializer="json")
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job)
    end(redis, job_id, "finished")
    assert finalize(redis, job_id)
    worker.maintain_heartbeats(job, execution)
    assert queue.get(job_id).status == "succeeded"
