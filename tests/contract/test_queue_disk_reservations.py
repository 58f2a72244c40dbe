"""Disk reservations: no two jobs count on the same free bytes, neither in the API nor in the worker."""

import threading

import pytest
from redis import Redis

from services.errors import DiskFull
from services.jobs.disk_reservations import RESERVATIONS_KEY, DiskNeed
from services.jobs.execution import JobExecution
from services.jobs.queue import JobQueue
from services.kinds.convert import ConvertRequest
from services.settings import Settings

GB = 10**9


def convert(target: str) -> ConvertRequest:
    return ConvertRequest.model_validate({"kind": "convert", "source": "llama", "target": target})


def need(needed: int, *, free: int = 10 * GB, taken: dict[str, int] | None = None) -> DiskNeed:
    return DiskNeed(needed, free, lambda job: (taken or {}).get(job, 0))


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


def test_room_that_a_waiting_job_needs_is_not_there_for_another(queue: JobQueue) -> None:
    first, _ = queue.submit(convert("a"), need=need(6 * GB))
    with pytest.raises(DiskFull) as caught:
        queue.submit(convert("b"), need=need(5 * GB))
    assert caught.value.message == (
        "The job needs 5000000000 bytes on the volume; 10000000000 are free, and jobs that have not ended have reserved "
        "6000000000 of them."
    )
    assert [job.id for job in queue.list()[0]] == [first.id], "a refused job leaves nothing"
    queue.submit(convert("c"), need=need(4 * GB))
    assert queue.reserved_bytes(lambda job: 0) == 10 * GB


def test_a_job_that_has_ended_needs_no_room_any_more(queue: JobQueue, redis: Redis) -> None:
    first, _ = queue.submit(convert("a"), need=need(6 * GB))
    queue.cancel(first.id)
    assert redis.hgetall(RESERVATIONS_KEY) == {}
    queue.submit(convert("b"), need=need(10 * GB))


def test_bytes_that_a_job_has_written_count_once(queue: JobQueue) -> None:
    """The first job has written 5 of its 6 GB on a volume of 10 GB: 5 are free, and 1 is still reserved."""
    first, _ = queue.submit(convert("a"), need=need(6 * GB))
    written = {first.id: 5 * GB}
    assert queue.reserved_bytes(written.__getitem__) == GB
    with pytest.raises(
        DiskFull, match="5000000000 are free, and jobs that have not ended have reserved 1000000000"
    ):
        queue.submit(convert("b"), need=need(4 * GB + 1, free=5 * GB, taken=written))
    queue.submit(convert("b"), need=need(4 * GB, free=5 * GB, taken=written))


def test_of_many_that_come_at_once_only_as_many_are_taken_as_there_is_room_for(queue: JobQueue) -> None:
    outcomes: list[str] = []

    def submit(number: int) -> None:
        try:
            queue.submit(convert(f"m{number}"), need=need(3 * GB))
            outcomes.append("taken")
        except DiskFull:
            outcomes.append("refused")

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["taken"] * 3


def test_a_job_whose_size_was_not_known_claims_its_room_when_it_starts(queue: JobQueue, redis: Redis) -> None:
    first, _ = queue.submit(convert("a"))
    queue.submit(convert("b"), need=need(6 * GB))
    running = JobExecution(first.id, "run", redis)
    with pytest.raises(DiskFull, match="have reserved 6000000000 of them"):
        running.reserve_disk(need(5 * GB))
    running.reserve_disk(need(4 * GB))
    running.reserve_disk(need(4 * GB))  # once more, as a job that runs again does
    assert queue.reserved_bytes(lambda job: 0) == 10 * GB
