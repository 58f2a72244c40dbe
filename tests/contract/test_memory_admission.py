"""Memory: a job waits until its peak fits, and no two count on the same bytes."""

import json
from pathlib import Path

import pytest
from redis import Redis

from services.errors import InsufficientMemory
from services.jobs import fork_worker
from services.jobs.fork_worker import ForkWorker
from services.jobs.memory import (
    MEMORY_KEY,
    PATIENCE_SECONDS,
    Memory,
    MemoryAdmission,
    is_memory_wanted,
    machine,
    note_used,
    read_memory,
)
from services.jobs.queue import JobQueue
from services.jobs.recovery import Recovery
from services.settings import Settings
from tests.contract.test_worker_janitor import convert, take

GB = 10**9


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


@pytest.fixture
def worker(redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> ForkWorker:
    """Worker of a machine with 10 GB, 8 of them available, that only notes the jobs that it would start."""
    monkeypatch.setattr(fork_worker, "read_memory", lambda: Memory(10 * GB, 8 * GB))
    monkeypatch.setattr(
        fork_worker.Worker, "execute_job", lambda self, job, queue: redis.rpush("test:started", job.id)
    )
    return ForkWorker("convert", name="w", redis=redis, settings=settings, prepare_process=lambda: None)


def admission(redis: Redis, job_id: str, available: int, *, name: str = "m") -> MemoryAdmission:
    return MemoryAdmission(redis, job_id, Memory(10 * GB, available), name)


def submit(queue: JobQueue, target: str, memory_bytes: int) -> str:
    return queue.submit(convert(target), memory_bytes=memory_bytes)[0].id


def run_next(worker: ForkWorker) -> None:
    worker.execute_job(take(worker), worker.queues[0])


def started(redis: Redis) -> list[str]:
    return [job_id.decode() for job_id in redis.lrange("test:started", 0, -1)]


def test_a_job_waits_for_memory_and_a_smaller_one_behind_it_goes_ahead(
    queue: JobQueue, worker: ForkWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy, light = submit(queue, "a", 9 * GB), submit(queue, "b", GB)
    run_next(worker)
    run_next(worker)
    assert started(redis) == [light]
    job = queue.get(heavy)
    assert job.status == "queued"
    assert job.waiting_for is not None
    assert job.waiting_for.what == "memory"
    assert "needs 9000000000 bytes of memory; 8000000000 are available" in job.waiting_for.message
    assert is_memory_wanted(redis)
    queue.redis.delete(MEMORY_KEY)  # the light one has ended
    Recovery(redis).round()
    assert queue.get(heavy).queue_position == 1
    monkeypatch.setattr(fork_worker, "read_memory", lambda: Memory(10 * GB, 9 * GB))
    run_next(worker)
    assert started(redis) == [light, heavy]
    assert not redis.hexists(f"graftwerk:job:{heavy}", "waiting_for")


def test_a_job_that_never_fits_fails_with_both_numbers(
    queue: JobQueue, worker: ForkWorker, redis: Redis
) -> None:
    job_id = submit(queue, "a", 11 * GB)
    run_next(worker)
    job = queue.get(job_id)
    assert job.error is not None
    assert (job.status, job.error.code, started(redis)) == ("failed", "insufficient_memory", [])
    assert "needs 11000000000 bytes of memory; the worker may use 10000000000" in job.error.message
    assert redis.llen("rq:queue:convert:intermediate") == 0


def test_a_job_that_waits_for_memory_can_be_canceled(
    queue: JobQueue, worker: ForkWorker, redis: Redis
) -> None:
    job_id = submit(queue, "a", 9 * GB)
    run_next(worker)
    assert queue.cancel(job_id).status == "canceled"
    Recovery(redis).round()
    assert (redis.llen("rq:queue:convert"), redis.exists("graftwerk:held:convert")) == (0, 0)


def test_two_workers_of_a_machine_never_count_on_the_same_bytes(redis: Redis) -> None:
    assert admission(redis, "a", 8 * GB).admit(5 * GB, 0) == ""
    assert "5000000000 are reserved" in admission(redis, "b", 8 * GB).admit(4 * GB, 0)
    note_used(redis, "a", 4 * GB)  # the process has 4 of its 5 GB, which are not available any more
    assert "1000000000 are reserved" in admission(redis, "b", 4 * GB).admit(4 * GB, 0)
    assert admission(redis, "b", 4 * GB).admit(3 * GB, 0) == ""
    assert admission(redis, "c", 8 * GB, name="another machine").admit(8 * GB, 0) == ""


def test_a_note_of_used_memory_does_not_revive_a_reservation(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert admission(redis, "a", 8 * GB).admit(5 * GB, 0) == ""

    def end_meanwhile(entry: object) -> str:
        redis.hdel(MEMORY_KEY, "a")
        return json.dumps(entry)

    monkeypatch.setattr("services.jobs.memory.dumps", end_meanwhile)
    note_used(redis, "a", 4 * GB)
    assert not redis.exists(MEMORY_KEY)


def test_a_job_that_has_waited_for_long_is_not_starved_by_later_heavy_ones(
    queue: JobQueue, redis: Redis
) -> None:
    first, later, light = (submit(queue, name, GB) for name in ("a", "b", "c"))
    earlier_wait = admission(redis, first, 6 * GB).admit(7 * GB, PATIENCE_SECONDS)
    assert earlier_wait != ""
    assert admission(redis, later, 6 * GB).admit(2 * GB, 0) != "", "its memory is kept"
    assert admission(redis, light, 6 * GB).admit(GB, 0) == "", "a light one passes"
    redis.hdel(MEMORY_KEY, light)
    assert admission(redis, later, 6 * GB).admit(7 * GB, PATIENCE_SECONDS) != ""
    assert admission(redis, first, 7 * GB).admit(7 * GB, PATIENCE_SECONDS) == "", "none waits for a later one"


def test_an_ended_job_leaves_no_reservation(queue: JobQueue, redis: Redis) -> None:
    job_id = submit(queue, "a", GB)
    admission(redis, job_id, 8 * GB).admit(GB, 0)
    assert json.loads(redis.hget(MEMORY_KEY, job_id) or b"")["needed_bytes"] == GB
    queue.cancel(job_id)
    assert not redis.exists(MEMORY_KEY)


def test_what_never_fits_is_refused(redis: Redis) -> None:
    with pytest.raises(
        InsufficientMemory, match="needs 10000000001 bytes of memory; the worker may use 10000000000"
    ):
        admission(redis, "a", 10 * GB).admit(10 * GB + 1, 0)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", Memory(8192 * 1024, 4096 * 1024)), ("3145728", Memory(3145728, 2097152))],
    ids=["no limit", "container"],
)
def test_the_memory_is_that_of_the_machine_or_of_the_container(
    tmp_path: Path, limit: str, expected: Memory
) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  8192 kB\nMemFree: 1 kB\nMemAvailable: 4096 kB\nHugePages_Total: 0\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("2097152\n")
    (tmp_path / "memory.stat").write_text("anon 1048576\ninactive_file 1048576\n")
    assert read_memory(info, tmp_path) == expected


def test_this_machine_has_a_name_and_memory() -> None:
    memory = read_memory()
    assert machine() == machine() != ""
    assert 0 < memory.available_bytes <= memory.total_bytes
