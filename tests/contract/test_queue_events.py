"""Events of one job and of all jobs, and resumption after a lost connection."""

import json
import threading
from collections.abc import Iterator

import pytest
from redis import Redis

from services.errors import InvalidRequest, JobNotFound
from services.jobs.events import (
    EVENTS_KEPT,
    Event,
    follow,
    keeps_all_events,
    publish_progress,
    publish_status,
    publish_tokens,
)
from services.jobs.queue import JobQueue
from services.jobs.status import JobProgress
from services.kinds.convert import ConvertRequest
from services.kinds.generate import TokenPiece
from services.kinds.shared import JobResult
from services.settings import Settings


def convert(target: str) -> ConvertRequest:
    return ConvertRequest(kind="convert", source="llama", target=target)


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


def statuses(events: Iterator[Event | None]) -> list[str]:
    return [json.loads(event.data)["status"] for event in events if event and event.name == "status"]


def counting(number: int) -> JobProgress:
    return JobProgress(stage="counting", done=number, total=0, unit="steps", fraction=None, eta_seconds=None)


def number_of(event: Event) -> int:
    number: int = json.loads(event.data)["progress"]["done"]
    return number


def next_event(events: Iterator[Event | None]) -> Event:
    event = next(events)
    assert event is not None
    return event


def test_a_stream_has_the_present_status_the_events_and_the_end(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    events = follow(queue.redis, job.id, last_id=None)
    first = next_event(events)
    assert (first.name, json.loads(first.data)["status"]) == ("status", "queued")
    publish_progress(queue.redis, job.id, counting(1))
    queue.cancel(job.id)
    assert next_event(events).name == "progress"
    assert statuses(events) == ["canceled"]


def test_events_are_not_all_kept_once_too_many_have_come(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    pieces = [TokenPiece(index=0, offset=number, text="x") for number in range(EVENTS_KEPT + 200)]
    publish_tokens(queue.redis, job.id, pieces[:100])
    assert keeps_all_events(queue.redis, job.id)
    publish_tokens(queue.redis, job.id, pieces[100:])
    assert not keeps_all_events(queue.redis, job.id)


def test_a_reader_resumes_after_its_last_event(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    for number in range(3):
        publish_progress(queue.redis, job.id, counting(number))
    events = follow(queue.redis, job.id, last_id="0-0")
    seen = [next_event(events) for _ in range(3)]  # queued, 0, 1
    resumed = follow(queue.redis, job.id, last_id=seen[-1].id)
    assert number_of(next_event(resumed)) == 2


def test_the_stream_of_an_ended_job_has_all_events_and_ends(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    queue.cancel(job.id)
    assert statuses(follow(queue.redis, job.id, last_id=None)) == ["queued", "canceled"]


def test_a_reader_of_all_events_of_an_ended_job_does_not_wait(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    queue.cancel(job.id)
    last = queue.redis.xrevrange(f"graftwerk:events:{job.id}", count=1)[0][0]
    assert statuses(follow(queue.redis, job.id, last_id=last.decode())) == ["canceled"]


def test_an_end_whose_event_was_lost_is_sent_all_the_same(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    events = follow(queue.redis, job.id, last_id=None, keepalive_seconds=1)
    next_event(events)
    queue.cancel(job.id)
    queue.redis.delete(f"graftwerk:events:{job.id}")
    assert next(events) is None
    assert statuses(events) == ["canceled"]


def test_silence_is_a_keep_alive(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    events = follow(queue.redis, job.id, last_id=None, keepalive_seconds=1)
    next_event(events)
    assert next(events) is None


def test_a_job_that_is_deleted_ends_its_stream(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    events = follow(queue.redis, job.id, last_id=None, keepalive_seconds=1)
    next_event(events)
    queue.redis.delete(f"graftwerk:job:{job.id}")
    assert list(events) == [None]


def test_the_stream_for_all_jobs_has_the_events_of_every_job_from_now_on(queue: JobQueue) -> None:
    queue.submit(convert("before"))
    events = follow(queue.redis, None, last_id=None)
    first, second = queue.submit(convert("a"))[0].id, queue.submit(convert("b"))[0].id
    assert [json.loads(next_event(events).data)["id"] for _ in range(2)] == [first, second]


def test_no_event_is_lost_between_two_reads_of_the_stream_for_all_jobs(queue: JobQueue) -> None:
    events = follow(queue.redis, None, last_id=None)
    publisher = threading.Thread(
        target=lambda: [publish_progress(queue.redis, "j", counting(number)) for number in range(200)]
    )
    publisher.start()
    numbers = [number_of(next_event(events)) for _ in range(200)]
    publisher.join()
    assert numbers == list(range(200))


def test_a_large_result_is_left_out_of_the_stream_for_all_jobs(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a"))
    result = JobResult.model_validate({"text": "x" * 40_000})
    publish_status(queue.redis, job.model_copy(update={"status": "succeeded", "result": result}))
    own = queue.redis.xrevrange(f"graftwerk:events:{job.id}", count=1)[0][1]
    shared = queue.redis.xrevrange("graftwerk:events", count=1)[0][1]
    assert len(json.loads(own[b"data"])["result"]["text"]) == 40_000
    assert json.loads(shared[b"data"]) == {**json.loads(own[b"data"]), "result": None}


def test_streams_are_cut_to_a_length(queue: JobQueue) -> None:
    with queue.redis.pipeline() as pipe:
        for _ in range(5000):
            pipe.xadd("graftwerk:events:j", {"name": "progress", "data": "{}"})
        pipe.execute()
    publish_progress(queue.redis, "j", counting(1))
    assert queue.redis.xlen("graftwerk:events:j") < 4300


def test_an_invalid_event_id_and_an_unknown_job_are_refused(queue: JobQueue) -> None:
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        follow(queue.redis, None, last_id="yesterday")
    with pytest.raises(JobNotFound):
        follow(queue.redis, "unknown", last_id=None)
