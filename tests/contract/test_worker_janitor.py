"""Repairs of the janitor, each from the state that a process leaves when it dies at that point."""

import json
import time
from collections.abc import Iterator

import pytest
from redis import Redis
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.utils import as_text

from services.errors import JobNotFound, NotReady
from services.jobs.events import follow
from services.jobs.fork_worker import ForkWorker
from services.jobs.identity import service_tag
from services.jobs.memory import read_reservations
from services.jobs.queue import JobQueue
from services.jobs.records import Failure, read_records
from services.kinds.convert import ConvertRequest
from services.settings import Settings
from tests.contract.janitor_clock import Clock, watch
from worker.janitor import LOCK_KEY, Janitor


def convert(target: str, after: list[str] | None = None) -> ConvertRequest:
    return ConvertRequest.model_validate(
        {"kind": "convert", "source": "llama", "target": target, "after": after or []}
    )


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def janitor(redis: Redis, settings: Settings, clock: Clock) -> Janitor:
    return Janitor(redis, settings, clock)


@pytest.fixture
def worker(redis: Redis, settings: Settings) -> Iterator[ForkWorker]:
    """Worker whose steps the tests call one by one, up to the point where a real one would die."""
    yield ForkWorker("convert", name="w", redis=redis, settings=settings, prepare_process=lambda: None)


def take(worker: ForkWorker) -> RQJob:
    """Takes the next job from the queue and does nothing else."""
    taken = worker.queue_class.dequeue_any(
        worker.queues, None, connection=worker.connection, job_class=worker.job_class, serializer="json"
    )
    assert taken is not None
    return taken[0]


def start(worker: ForkWorker) -> RQJob:
    """Takes the next job and starts it."""
    job = take(worker)
    worker.prepare_execution(job)
    worker.prepare_job_execution(job, True)
    return job


def start_execution(worker: ForkWorker) -> str:
    """Starts the next job and returns the id of its execution."""
    job = start(worker)
    return as_text(worker.connection.hget(f"graftwerk:job:{job.id}", "execution") or b"")


def test_a_job_taken_and_never_started_goes_back_to_the_front(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    first = queue.submit(convert("a"))[0].id
    queue.submit(convert("b"))
    take(worker)
    watch(janitor, clock, 7)
    assert queue.get(first).queue_position is None
    watch(janitor, clock, 1)
    assert queue.get(first).queue_position == 1
    assert RQJob.fetch(first, connection=redis, serializer="json").retries_left == 2
    assert redis.llen("rq:queue:convert:intermediate") == 0


def test_a_lost_job_is_retried_twice_and_then_fails_with_its_dependents(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    waiting = queue.submit(convert("b", after=[job_id]))[0].id
    for _ in range(2):
        start(worker)
        watch(janitor, clock)
        assert queue.get(job_id).status == "queued"
    start(worker)
    watch(janitor, clock)
    job, dependent = queue.get(job_id), queue.get(waiting)
    assert job.error is not None
    assert dependent.error is not None
    assert (job.status, job.error.code) == ("failed", "worker_died")
    assert "memory" in job.error.hint
    assert (dependent.status, dependent.error.code) == ("failed", "upstream_failed")
    assert job.finished_at is not None
    assert queue.submit(convert("a"))[1], "the name is free again"


def test_lost_jobs_go_to_the_front_in_their_order_and_run_alone(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    lost = [queue.submit(convert(name))[0].id for name in ("a", "b", "c")]
    waiting = queue.submit(convert("d"))[0].id
    for _ in lost:
        start(worker)
    watch(janitor, clock)
    assert [queue.get(id).queue_position for id in [*lost, waiting]] == [1, 2, 3, 4]
    assert [record.alone for record in read_records(redis, [*lost, waiting]) if record] == [True] * 3 + [
        False
    ]


def test_a_lost_job_with_a_transient_error_goes_to_the_end(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    first = queue.submit(convert("a"))[0].id
    second = queue.submit(convert("b"))[0].id
    start(worker)
    redis.hset(f"graftwerk:job:{first}", "error", Failure.of(NotReady("m")).dumps())
    watch(janitor, clock)
    assert [queue.get(id).queue_position for id in (second, first)] == [1, 2]


def test_a_slow_worker_that_is_connected_keeps_its_job(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    member = f"{job_id}:{start_execution(worker)}"
    for _ in range(4):
        watch(janitor, clock, 29)
        redis.zincrby("rq:wip:convert", 1, member)
    assert queue.get(job_id).status == "running"
    watch(janitor, clock, 30)
    assert queue.get(job_id).status == "queued"


def test_a_worker_that_is_not_connected_any_more_loses_its_job_within_six_seconds(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    start(worker)
    redis.client_setname("another")
    watch(janitor, clock, 4)
    assert queue.get(job_id).status == "running"
    watch(janitor, clock, 2)
    assert queue.get(job_id).status == "queued"


def cut_off(worker: ForkWorker, janitor: Janitor, clock: Clock) -> tuple[RQJob, Execution]:
    """Starts the next job and lets its worker be without a connection until the job is queued again."""
    job = take(worker)
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job, True)
    name = worker.connection.client_getname()
    worker.connection.client_setname("another")
    watch(janitor, clock, 6)
    worker.connection.client_setname(name)
    assert worker.connection.hget(job.key, "status") == b"queued"
    return job, execution


def retries_left(redis: Redis, job_id: str) -> int | None:
    return RQJob.fetch(job_id, connection=redis, serializer="json").retries_left


def test_a_worker_that_was_cut_off_takes_its_job_back_and_no_try_is_lost(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"), memory_bytes=1000)[0].id
    for _ in range(4):  # more often than a job has tries
        job, execution = cut_off(worker, janitor, clock)
        assert retries_left(redis, job_id) == 1
        worker.maintain_heartbeats(job, execution)
        found = queue.get(job_id)
        assert (found.status, found.queue_position, retries_left(redis, job_id)) == ("running", None, 2)
        [record] = read_records(redis, [job_id])
        assert record is not None
        assert (record.alone, record.execution) == (False, execution.id)
        watch(janitor, clock, 20)
        assert queue.get(job_id).status == "running", "its heartbeats count again"
        assert read_reservations(redis)[job_id].needed_bytes == 1000
        watch(janitor, clock, 11)
        assert queue.get(job_id).status == "queued", "without further ones it is lost like any other"
        redis.hset(job.key, "retries_left", 2)
    job, execution = cut_off(worker, janitor, clock)
    worker.maintain_heartbeats(job, execution)
    job.ended_at = job.started_at
    worker.handle_job_success(job, worker.queues[0], None, execution)
    assert queue.get(job_id).status == "succeeded"


def test_a_try_is_given_back_if_another_execution_has_begun(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    old_job, old = cut_off(worker, janitor, clock)
    for _ in range(2):
        start(worker)
        worker.maintain_heartbeats(old_job, old)  # the second time it has nothing to give back
        assert queue.get(job_id).status == "running"
        watch(janitor, clock)
        assert queue.get(job_id).status == "queued"
    start(worker)
    watch(janitor, clock)
    job = queue.get(job_id)
    assert (job.status, job.error and job.error.code) == ("failed", "worker_died"), (
        "after three deaths and a cut"
    )


def test_a_worker_that_hung_gets_its_job_not_back(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    """A job that makes its worker hang each time would otherwise never end."""
    job_id = queue.submit(convert("a"))[0].id
    job = take(worker)
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job, True)
    watch(janitor, clock)
    worker.maintain_heartbeats(job, execution)
    assert (queue.get(job_id).status, retries_left(redis, job_id)) == ("queued", 1)


def test_a_worker_whose_last_heartbeat_is_an_hour_ahead_loses_its_job_too(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    """The clock was set back an hour just after the worker had died."""
    job_id = queue.submit(convert("a"))[0].id
    redis.zincrby("rq:wip:convert", 3600, f"{job_id}:{start_execution(worker)}")
    watch(janitor, clock)
    assert queue.get(job_id).status == "queued"


def test_a_janitor_that_was_held_up_finds_nobody_lost(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    start(worker)
    redis.client_setname("another")
    janitor.recover()
    clock.seconds += 3600
    janitor.recover()
    assert queue.get(job_id).status == "running"


def test_the_entry_of_a_lost_worker_is_removed_and_a_living_one_writes_its_own_again(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker
) -> None:
    worker.register_birth()
    worker.set_state("idle")
    watch(janitor, clock)
    assert queue.workers() == []
    worker.heartbeat()
    assert [(state.name, state.queue, state.state) for state in queue.workers()] == [("w", "convert", "idle")]


def test_a_job_that_ended_without_heartbeats_stays_ended(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    start(worker)
    redis.hset(f"rq:job:{job_id}", "status", "finished")
    watch(janitor, clock)
    janitor.round()
    assert queue.get(job_id).status == "succeeded"
    assert redis.llen("rq:queue:convert") == 0


def test_an_end_that_was_not_finalized_is_published_and_cascaded(
    queue: JobQueue, janitor: Janitor, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    waiting = queue.submit(convert("b", after=[job_id]))[0].id
    redis.hset(f"rq:job:{job_id}", "status", "failed")
    janitor.round()
    statuses = [json.loads(event.data)["status"] for event in follow(redis, job_id, last_id="0-0") if event]
    assert statuses == ["queued", "failed"]
    assert queue.get(waiting).status == "failed"
    assert not redis.exists("graftwerk:target:a")
    assert redis.scard("graftwerk:active") == 0


def test_an_expired_record_is_removed_without_a_trace(
    queue: JobQueue, janitor: Janitor, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    queue.cancel(job_id)
    assert redis.ttl(f"rq:job:{job_id}") == pytest.approx(queue.settings.job_retention_seconds, abs=5)
    assert redis.ttl(f"graftwerk:job:{job_id}") == -1, "the janitor removes it together with its indexes"
    redis.zadd("graftwerk:ended", {job_id: time.time() - 1})
    redis.delete(f"rq:job:{job_id}")
    with pytest.raises(JobNotFound):
        queue.get(job_id)
    janitor.round()
    assert not [key for key in redis.scan_iter() if job_id.encode() in key]
    assert queue.list() == ([], None)


def test_staging_folders_are_kept_while_their_job_may_go_on_and_swept_afterwards(
    queue: JobQueue, janitor: Janitor, worker: ForkWorker, settings: Settings
) -> None:
    queue.submit(convert("a"))
    job = take(worker)
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job, True)
    own = service_tag(queue.redis)
    killed, present = f"{job.id}.0123456789abcdef", f"{job.id}.{execution.id}.{own}"
    gone = ["ended-job.0123456789abcdef", f"ended-job.1123456789abcdef.{own}"]
    for name in (killed, present, *gone):
        (settings.models_dir / ".staging" / name).mkdir(parents=True)
    janitor.round()
    left = sorted(path.name for path in (settings.models_dir / ".staging").iterdir())
    assert left == sorted([killed, present])


def test_only_one_janitor_works_at_a_time(janitor: Janitor, redis: Redis) -> None:
    with redis.lock(LOCK_KEY, timeout=60):
        assert not janitor.round()
    assert janitor.round()


def test_a_superseded_execution_changes_nothing_when_it_ends(
    queue: JobQueue, janitor: Janitor, clock: Clock, worker: ForkWorker
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    old_job = take(worker)
    old = worker.prepare_execution(old_job)
    worker.prepare_job_execution(old_job, True)
    watch(janitor, clock)
    new_job = take(worker)
    new = worker.prepare_execution(new_job)
    worker.prepare_job_execution(new_job, True)
    worker.handle_job_failure(old_job, worker.queues[0], exc_string="late", execution=old)
    assert queue.get(job_id).status == "running"
    new_job.ended_at = new_job.started_at
    worker.handle_job_success(new_job, worker.queues[0], None, new)
    worker.handle_job_failure(old_job, worker.queues[0], exc_string="later", execution=old)
    assert queue.get(job_id).status == "succeeded"


def test_a_finished_job_that_is_still_in_the_queue_is_not_run_again(
    queue: JobQueue, worker: ForkWorker, redis: Redis
) -> None:
    job_id = queue.submit(convert("a"))[0].id
    job = take(worker)
    redis.hset(f"rq:job:{job_id}", "status", "finished")
    worker.execute_job(job, worker.queues[0])
    assert queue.get(job_id).status == "succeeded"
    assert redis.llen("rq:queue:convert:intermediate") == 0
