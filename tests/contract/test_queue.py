"""Queue on a real server without workers: submission, listing, refusals and cancellation."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis import Redis
from rq.job import Job as RQJob

from services.errors import (
    GraftwerkError,
    IdempotencyConflict,
    InvalidRequest,
    JobAlreadyEnded,
    JobNotEnded,
    JobNotFound,
    ModelExists,
    NotReady,
    QueueFull,
    UpstreamFailed,
)
from services.jobs.listing import JobFilter
from services.jobs.queue import JobQueue, connect
from services.jobs.submission import TASK
from services.kinds.convert import ConvertRequest
from services.kinds.generate import GenerateRequest
from services.kinds.merge import MergeRequest
from services.settings import Settings
from tests.redis_server import free_port

TASKS_OF_0_1_0 = ("import_model", "convert", "merge", "verify", "extend_tokenizer")
"""Names under which version 0.1.0 queued jobs, without those that the inference worker runs."""


def convert(target: str, *, after: list[str] | None = None, **metadata: str) -> ConvertRequest:
    return ConvertRequest.model_validate(
        {"kind": "convert", "source": "llama", "target": target, "after": after or [], "metadata": metadata}
    )


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


def test_a_submitted_job_is_queued_and_found(queue: JobQueue) -> None:
    before = datetime.now(UTC)
    job, created = queue.submit(convert("a", note="mine"))
    assert created
    assert (job.kind, job.status, job.queue_position) == ("convert", "queued", 1)
    assert (job.started_at, job.finished_at, job.result, job.error, job.progress) == (None,) * 5
    assert job.metadata == {"note": "mine"}
    assert job.request.reads == ["llama"]
    assert before <= job.created_at <= datetime.now(UTC)
    assert queue.get(job.id) == job


def test_positions_count_from_one_in_each_queue(queue: JobQueue) -> None:
    ids = [queue.submit(convert(name))[0].id for name in ("a", "b", "c")]
    merge = MergeRequest.model_validate({"kind": "merge", "base": "x", "adapters": ["y"], "target": "z"})
    assert queue.submit(merge)[0].queue_position == 1
    assert [queue.get(id).queue_position for id in ids] == [1, 2, 3]


def test_the_payload_on_the_wire_is_json(queue: JobQueue, redis: Redis) -> None:
    job, _ = queue.submit(convert("a"))
    data = RQJob.fetch(job.id, connection=redis, serializer="json").data
    function, instance, args, kwargs = json.loads(data)
    assert (function, instance, kwargs) == ("worker.tasks.run_job", None, {})
    assert args == [job.request.model_dump(mode="json")]


@pytest.mark.parametrize("name", [TASK, *(f"worker.tasks.{kind}" for kind in TASKS_OF_0_1_0)])
def test_each_name_on_the_wire_is_a_function(name: str) -> None:
    module, function = name.rsplit(".", 1)
    assert callable(getattr(import_module(module), function))


def test_an_unknown_job_is_not_found(queue: JobQueue) -> None:
    for action in (queue.get, queue.cancel, queue.retry, queue.delete, queue.log):
        with pytest.raises(JobNotFound, match="no-such-job"):
            action("no-such-job")


def test_the_same_id_and_body_is_the_same_job(queue: JobQueue) -> None:
    id = str(uuid4())
    first, created = queue.submit(convert("a"), id)
    again, created_again = queue.submit(convert("a"), id)
    assert (first, created, created_again) == (again, True, False)
    assert len(queue.list()[0]) == 1


def test_the_same_id_with_another_body_is_refused(queue: JobQueue) -> None:
    id = str(uuid4())
    queue.submit(convert("a"), id)
    with pytest.raises(IdempotencyConflict, match=id):
        queue.submit(convert("b"), id)
    assert queue.get(id).request.makes == "a"


def test_twenty_simultaneous_submissions_of_one_id_make_one_job(queue: JobQueue, settings: Settings) -> None:
    id = str(uuid4())
    made = in_threads(20, lambda: JobQueue(connect(settings), settings).submit(convert("a"), id)[1])
    assert sorted(map(str, made)) == ["False"] * 19 + ["True"]
    assert queue.redis.llen("rq:queue:convert") == 1


def test_one_name_is_promised_once_in_any_letter_case(queue: JobQueue) -> None:
    first, _ = queue.submit(convert("Alpaca"))
    with pytest.raises(ModelExists, match=first.id):
        queue.submit(convert("alpaca"))
    queue.cancel(first.id)
    assert queue.submit(convert("ALPACA"))[1]


def test_twenty_simultaneous_claims_of_one_name_make_one_job(queue: JobQueue, settings: Settings) -> None:
    made = in_threads(20, lambda: JobQueue(connect(settings), settings).submit(convert("a"))[1])
    assert [str(one) for one in made].count("True") == 1
    assert sum(isinstance(one, ModelExists) for one in made) == 19


def test_the_limit_of_waiting_jobs_is_exact(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"queue_limit": 5})
    queue = JobQueue(redis, limited)
    upstream = queue.submit(convert("first"))[0].id
    queue.submit(convert("second", after=[upstream]))

    def submit() -> bool:
        return JobQueue(connect(settings), limited).submit(convert(f"m-{uuid4()}"))[1]

    made = in_threads(12, submit)
    assert [str(one) for one in made].count("True") == 3
    with pytest.raises(QueueFull, match="5 jobs wait, and the limit is 5"):
        queue.submit(convert("one-more"))


def in_threads(count: int, action: Callable[[], bool]) -> list[bool | GraftwerkError]:
    results: list[bool | GraftwerkError] = []
    barrier = threading.Barrier(count)

    def go() -> None:
        barrier.wait()
        try:
            results.append(action())
        except GraftwerkError as error:
            results.append(error)

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_a_listing_is_newest_first_and_its_cursor_misses_nothing(queue: JobQueue) -> None:
    ids = [queue.submit(convert(f"m{number}"))[0].id for number in range(7)]
    first, cursor = queue.list(limit=3)
    queue.submit(convert("late"))
    second, cursor = queue.list(limit=3, after=cursor)
    third, end = queue.list(limit=3, after=cursor)
    assert [job.id for job in first + second + third] == ids[::-1]
    assert end is None


def test_a_page_that_ends_the_listing_has_no_cursor(queue: JobQueue) -> None:
    queue.submit(convert("a"))
    queue.submit(convert("b"))
    jobs, cursor = queue.list(limit=2)
    assert (len(jobs), cursor) == (2, None)


def test_a_listing_filters_by_kind_and_status(queue: JobQueue) -> None:
    kept = queue.submit(convert("a"))[0].id
    canceled = queue.submit(convert("b"))[0].id
    generate = GenerateRequest(kind="generate", model="m", prompt="hello")
    generating = queue.submit(generate)[0].id
    queue.cancel(canceled)
    assert [job.id for job in queue.list(JobFilter("generate"))[0]] == [generating]
    assert [job.id for job in queue.list(JobFilter("convert", "queued"))[0]] == [kept]
    assert [job.id for job in queue.list(JobFilter(status="canceled"))[0]] == [canceled]


def test_a_cursor_of_somebody_else_is_refused(queue: JobQueue) -> None:
    with pytest.raises(InvalidRequest, match="not a cursor"):
        queue.list(after="§§")


def test_a_queued_job_is_canceled_at_once(queue: JobQueue, redis: Redis) -> None:
    job, _ = queue.submit(convert("a"))
    canceled = queue.cancel(job.id)
    assert canceled.status == "canceled"
    assert canceled.error is not None
    assert canceled.error.code == "canceled"
    assert canceled.finished_at is not None
    assert redis.llen("rq:queue:convert") == 0
    with pytest.raises(JobAlreadyEnded, match="canceled"):
        queue.cancel(job.id)


def test_all_jobs_that_depend_on_a_canceled_job_fail(queue: JobQueue) -> None:
    first = queue.submit(convert("a"))[0].id
    second = queue.submit(convert("b", after=[first]))[0].id
    third = queue.submit(convert("c", after=[second]))[0].id
    assert queue.get(second).status == "queued"
    assert queue.get(second).queue_position is None
    queue.cancel(first)
    for job_id, upstream in ((second, first), (third, second)):
        job = queue.get(job_id)
        assert job.status == "failed"
        assert job.error is not None
        assert job.error.code == "upstream_failed"
        assert upstream in job.error.message
        assert job.finished_at is not None


def test_nothing_is_queued_behind_a_job_that_ended_badly(queue: JobQueue) -> None:
    first = queue.submit(convert("a"))[0].id
    queue.cancel(first)
    with pytest.raises(UpstreamFailed, match=first):
        queue.submit(convert("b", after=[first]))
    with pytest.raises(JobNotFound, match="which is not known"):
        queue.submit(convert("b", after=[str(uuid4())]))
    assert len(queue.list()[0]) == 1


def test_a_job_queued_while_its_upstream_is_canceled_never_waits_for_ever(
    queue: JobQueue, settings: Settings
) -> None:
    for number in range(20):
        first = queue.submit(convert(f"a{number}"))[0].id
        other = JobQueue(connect(settings), settings)
        barrier = threading.Barrier(2)

        def cancel(
            job_id: str = first, other: JobQueue = other, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            other.cancel(job_id)

        thread = threading.Thread(target=cancel)
        thread.start()
        barrier.wait()
        try:
            second = queue.submit(convert(f"b{number}", after=[first]))[0].id
        except UpstreamFailed:
            second = None
        thread.join()
        assert second is None or queue.get(second).status == "failed"


def test_an_ended_job_can_be_run_again_as_a_new_one(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("a", note="mine"))
    with pytest.raises(JobNotEnded, match="queued"):
        queue.retry(job.id)
    queue.cancel(job.id)
    again = queue.retry(job.id)
    assert again.id != job.id
    assert (again.status, again.request, again.metadata) == ("queued", job.request, {"note": "mine"})


def test_an_ended_job_can_be_deleted_without_a_trace(queue: JobQueue, redis: Redis) -> None:
    job, _ = queue.submit(convert("a"))
    with pytest.raises(JobNotEnded):
        queue.delete(job.id)
    queue.cancel(job.id)
    queue.delete(job.id)
    with pytest.raises(JobNotFound):
        queue.get(job.id)
    assert queue.list() == ([], None)
    assert not [key for key in redis.scan_iter() if job.id.encode() in key]


def test_promises_reach_through_the_line_of_jobs(queue: JobQueue) -> None:
    first = queue.submit(convert("base"))[0].id
    merge = {"kind": "merge", "base": "base", "adapters": ["x"], "target": "merged", "after": [first]}
    second = queue.submit(MergeRequest.model_validate(merge))[0].id
    promised = queue.promised([second])
    assert {name: request.kind for name, request in promised.items()} == {
        "base": "convert",
        "merged": "merge",
    }
    queue.cancel(first)
    assert queue.promised([second]) == {}


def test_a_model_is_in_use_while_an_unfinished_job_reads_or_makes_it(queue: JobQueue) -> None:
    job, _ = queue.submit(convert("made"))
    assert queue.using("LLAMA") == [job.id]
    assert queue.using("Made") == [job.id]
    assert queue.using("other") == []
    queue.cancel(job.id)
    assert queue.using("llama") == []


def test_a_redis_that_is_away_is_not_ready(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}/0")})
    queue = JobQueue(connect(away), away)
    with pytest.raises(NotReady, match="Redis does not answer"):
        queue.ping()
