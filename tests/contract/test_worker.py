"""Real worker processes on a real server: outcomes, cancellation, death, stops."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Job as RQJob

from services.jobs.events import follow
from services.jobs.memory import MEMORY_KEY, Reservation, machine, read_memory
from services.jobs.queue import JobQueue
from services.jobs.status import Job
from services.kinds.convert import ConvertRequest
from services.settings import Settings
from tests.redis_server import Server, until
from tests.results import result_json
from worker.janitor import Janitor

ROOT = Path(__file__).parents[2]
TASK = "tests.contract.wire_tasks.work"

StartWorker = Callable[[], "subprocess.Popen[bytes]"]


def request_for(target: str, *, after: list[str] | None = None, **options: str) -> ConvertRequest:
    """Returns the request of a job with these options (see `wire_tasks.py`)."""
    return ConvertRequest.model_validate(
        {"kind": "convert", "source": "llama", "target": target, "after": after or [], "metadata": options}
    )


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings, task=TASK)


@pytest.fixture
def start_worker(redis: Redis, settings: Settings, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers as processes and kills the remaining ones at the end."""
    processes: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "GRAFTWERK_REDIS_URL": settings.redis_address,
        "GRAFTWERK_MODELS_DIR": str(settings.models_dir),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def start() -> "subprocess.Popen[bytes]":
        with (tmp_path / f"worker-{len(processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.contract.wire_worker"],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        processes.append(process)
        name = f"rq:worker:convert-test-{process.pid}"
        until(lambda: redis.hget(name, "state") == b"idle")
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def janitor(redis: Redis, settings: Settings) -> Iterator[Janitor]:
    """Janitor in a thread of the test."""
    stop = threading.Event()
    janitor = Janitor(redis, settings)
    thread = threading.Thread(target=janitor.work, args=(stop,))
    thread.start()
    yield janitor
    stop.set()
    thread.join()


def ended(queue: JobQueue, job_id: str, seconds: float = 20.0) -> Job:
    """Returns the job once it has ended."""
    until(lambda: queue.get(job_id).status in ("succeeded", "failed", "canceled"), seconds)
    return queue.get(job_id)


def running(queue: JobQueue, job_id: str) -> None:
    """Waits until the job has made progress."""
    until(lambda: queue.get(job_id).status == "running" and queue.get(job_id).progress is not None)


def runs(redis: Redis) -> list[tuple[str, int, int]]:
    """Returns job id, process and parent process of every run so far."""
    lines = [line.decode().split() for line in redis.lrange("test:runs", 0, -1)]
    return [(job_id, int(pid), int(parent)) for job_id, pid, parent in lines]


def error_code(job: Job) -> str | None:
    return job.error.code if job.error else None


def alive(pid: int) -> bool:
    """Returns True if a process runs and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


# ---- outcomes ----------------------------------------------------------------------------------------


def test_a_job_succeeds_with_result_progress_and_times(queue: JobQueue, start_worker: StartWorker) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", steps="3", total="7"))[0].id)
    assert job.status == "succeeded"
    assert result_json(job) == {"steps": 3, "target": "a"}
    assert job.error is None
    assert job.progress is not None
    assert (job.progress.done, job.progress.total) == (7, 7)
    assert (job.progress.fraction, job.progress.eta_seconds) == (1.0, None)
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at


def test_the_stream_has_queued_running_progress_and_the_end(
    queue: JobQueue, start_worker: StartWorker
) -> None:
    job, _ = queue.submit(request_for("a", steps="4", step_seconds="0.3"))
    events = follow(queue.redis, job.id, last_id="0-0")
    start_worker()
    seen = [event for event in events if event]
    statuses = [re.findall(r'"status": "(\w+)"', event.data)[0] for event in seen if event.name == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    assert sum(event.name == "progress" for event in seen) == 4


def test_a_users_error_fails_at_once_with_its_full_message(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", wrong="1"))[0].id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.model_dump() == {
        "code": "wrong_model_kind",
        "message": "This is not a base model.",
        "hint": "Name another.",
    }
    assert len(runs(redis)) == 1


def test_an_internal_error_fails_at_once_with_the_traceback_in_the_log_only(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", broken="1"))[0].id)
    assert (job.status, error_code(job)) == ("failed", "internal_error")
    assert job.error is not None
    assert "Traceback" not in job.error.message
    assert "ZeroDivisionError: internal fault" in queue.log(job.id)
    assert len(runs(redis)) == 1


def test_a_transient_error_is_retried(queue: JobQueue, start_worker: StartWorker, redis: Redis) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", not_ready_runs="2"))[0].id)
    assert (job.status, error_code(job)) == ("succeeded", None)
    assert len(runs(redis)) == 3


def test_a_transient_error_that_persists_fails_after_three_attempts(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", not_ready_runs="9"))[0].id)
    assert (job.status, error_code(job)) == ("failed", "not_ready")
    assert len(runs(redis)) == 3


def test_a_job_over_its_time_is_stopped_as_timeout(
    redis: Redis, settings: Settings, start_worker: StartWorker
) -> None:
    hurried = JobQueue(redis, settings.model_copy(update={"job_timeout_seconds": 1}), task=TASK)
    start_worker()
    job = ended(hurried, hurried.submit(request_for("a", steps="100", step_seconds="0.1"))[0].id)
    assert (job.status, error_code(job)) == ("failed", "timeout")
    assert len(runs(redis)) == 1


def test_jobs_run_in_the_order_of_submission_and_after_their_upstream(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    first = queue.submit(request_for("a"))[0].id
    third = queue.submit(request_for("c", after=[first]))[0].id
    second = queue.submit(request_for("b"))[0].id
    start_worker()
    assert ended(queue, third).status == "succeeded"
    assert [job_id for job_id, _, _ in runs(redis)] == [first, second, third]


def test_all_jobs_that_depend_on_a_failed_job_fail(queue: JobQueue, start_worker: StartWorker) -> None:
    first = queue.submit(request_for("a", wrong="1"))[0].id
    second = queue.submit(request_for("b", after=[first]))[0].id
    third = queue.submit(request_for("c", after=[second]))[0].id
    start_worker()
    until(lambda: queue.get(third).status == "failed")
    assert error_code(queue.get(second)) == "upstream_failed"
    assert "wrong_model_kind" in (queue.get(second).error or pytest.fail()).message
    assert error_code(queue.get(third)) == "upstream_failed"


def test_the_worker_is_listed_with_its_job(queue: JobQueue, start_worker: StartWorker) -> None:
    process = start_worker()
    (idle,) = queue.workers()
    assert (idle.name, idle.queue, idle.state, idle.job_ids) == (
        f"convert-test-{process.pid}",
        "convert",
        "idle",
        [],
    )
    job, _ = queue.submit(request_for("a", steps="1000", step_seconds="0.05"))
    running(queue, job.id)
    (busy,) = queue.workers()
    assert (busy.state, busy.job_ids) == ("busy", [job.id])


# ---- cancellation ------------------------------------------------------------------------------------


def test_a_running_job_is_canceled_within_a_second(queue: JobQueue, start_worker: StartWorker) -> None:
    start_worker()
    job, _ = queue.submit(request_for("a", steps="1000", step_seconds="0.05"))
    waiting = queue.submit(request_for("b", after=[job.id]))[0].id
    running(queue, job.id)
    queue.cancel(job.id)
    seconds = until(lambda: queue.get(job.id).status == "canceled")
    assert seconds < 1.0
    assert error_code(queue.get(job.id)) == "canceled"
    assert ended(queue, waiting).status == "failed"
    assert ended(queue, queue.submit(request_for("a"))[0].id).status == "succeeded"


def test_a_running_job_that_ignores_cancellation_is_killed(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job, _ = queue.submit(request_for("a", ignores_cancel="1", steps="1000", step_seconds="0.1"))
    running(queue, job.id)
    queue.cancel(job.id)
    assert ended(queue, job.id).status == "canceled"
    assert len(runs(redis)) == 1
    assert redis.llen("test:published") == 0


# ---- death -------------------------------------------------------------------------------------------


def test_a_job_whose_process_was_killed_runs_again_and_is_published_once(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", killed_runs="2"))[0].id)
    assert job.status == "succeeded"
    assert (len(runs(redis)), redis.llen("test:published")) == (3, 1)


def test_a_job_that_kills_its_process_each_time_fails_as_worker_died(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", killed_runs="9"))[0].id)
    assert (job.status, error_code(job)) == ("failed", "worker_died")
    assert "signal 9" in (job.error or pytest.fail()).message
    assert len(runs(redis)) == 3


def test_a_killed_worker_takes_its_job_process_along_and_another_finishes_the_job_once(
    queue: JobQueue, start_worker: StartWorker, redis: Redis, janitor: Janitor
) -> None:
    workers = {worker.pid: worker for worker in (start_worker(), start_worker())}
    job, _ = queue.submit(request_for("a", steps="60", step_seconds="0.05"))
    running(queue, job.id)
    ((_, orphan, parent),) = runs(redis)
    workers[parent].kill()
    until(lambda: not alive(orphan), seconds=2)
    assert until(lambda: len(runs(redis)) == 2, seconds=30) < 15
    assert ended(queue, job.id).status == "succeeded"
    assert redis.lrange("test:published", 0, -1) == [job.id.encode()]
    assert redis.llen("rq:queue:convert:intermediate") == 0


def test_a_job_of_a_killed_worker_that_was_canceled_ends_as_canceled(
    queue: JobQueue, start_worker: StartWorker, redis: Redis, janitor: Janitor
) -> None:
    worker = start_worker()
    job, _ = queue.submit(request_for("a", steps="1000", step_seconds="0.05"))
    waiting = queue.submit(request_for("b", after=[job.id]))[0].id
    running(queue, job.id)
    worker.kill()
    queue.cancel(job.id)
    assert ended(queue, job.id, seconds=30).status == "canceled"
    assert error_code(ended(queue, waiting)) == "upstream_failed"
    assert len(runs(redis)) == 1


def test_a_job_that_loses_the_volume_waits_until_it_is_back_and_loses_no_retry(
    queue: JobQueue, start_worker: StartWorker, redis: Redis, settings: Settings
) -> None:
    start_worker()
    job, _ = queue.submit(request_for("a", uses_volume="1", steps="40", step_seconds="0.05"))
    running(queue, job.id)
    away = settings.models_dir.with_name("away")
    settings.models_dir.rename(away)  # as an unmounted volume: not even its folder is there
    until(lambda: queue.get(job.id).status == "queued")
    later = queue.submit(request_for("b", uses_volume="1"))[0].id
    threading.Event().wait(2.5)
    assert len(runs(redis)) == 1, "no job is taken meanwhile"
    assert [queue.get(id).queue_position for id in (job.id, later)] == [1, 2]
    away.rename(settings.models_dir)
    assert ended(queue, job.id).status == ended(queue, later).status == "succeeded"
    assert len(runs(redis)) == 3
    lost = [line for line in queue.log(job.id).splitlines() if str(settings.models_dir) in line]
    assert lost == []


# ---- stops -------------------------------------------------------------------------------------------


def test_a_job_whose_need_is_known_late_waits_in_its_queue_and_others_run(
    queue: JobQueue, start_worker: StartWorker, redis: Redis, janitor: Janitor
) -> None:
    """Another job has reserved all the memory of the machine."""
    hog = Reservation(machine=machine(), needed_bytes=read_memory().total_bytes)
    redis.hset(MEMORY_KEY, "hog", json.dumps(asdict(hog)))
    start_worker()
    waiting = queue.submit(request_for("a", needed_bytes="1000000"))[0].id
    until(lambda: queue.get(waiting).waiting_for is not None)
    others = [queue.submit(request_for(f"other-{number}"))[0].id for number in range(3)]
    assert [ended(queue, job_id).status for job_id in others] == ["succeeded"] * 3
    job = queue.get(waiting)
    assert (job.status, job.error) == ("queued", None)
    assert job.waiting_for is not None
    assert job.waiting_for.what == "memory"
    assert "needs 1000000 bytes of memory" in job.waiting_for.message
    assert [job_id for job_id, _, _ in runs(redis)].count(waiting) == 1, "it is not started again to look"
    assert RQJob.fetch(waiting, connection=redis, serializer="json").retries_left == 2
    redis.hdel(MEMORY_KEY, "hog")
    assert ended(queue, waiting).status == "succeeded"
    until(lambda: redis.hkeys(MEMORY_KEY) == [])  # the finalization follows the status


def test_a_job_whose_need_is_known_late_and_never_fits_fails(
    queue: JobQueue, start_worker: StartWorker
) -> None:
    start_worker()
    job = ended(queue, queue.submit(request_for("a", needed_bytes=str(10**18)))[0].id)
    assert (job.status, error_code(job)) == ("failed", "insufficient_memory")


def test_a_stopped_worker_puts_its_job_back_at_once_and_no_retry_is_lost(
    queue: JobQueue, start_worker: StartWorker, redis: Redis
) -> None:
    worker = start_worker()
    job, _ = queue.submit(request_for("a", steps="40", step_seconds="0.05"))
    later = queue.submit(request_for("b"))[0].id
    running(queue, job.id)
    worker.terminate()
    assert until(lambda: queue.get(job.id).status == "queued") < 1.0
    assert worker.wait(timeout=5) == 0
    back = queue.get(job.id)
    assert (back.queue_position, back.started_at, back.error) == (1, None, None)
    assert queue.get(later).queue_position == 2
    assert RQJob.fetch(job.id, connection=redis, serializer="json").retries_left == 2
    assert queue.workers() == []
    start_worker()
    assert ended(queue, job.id).status == "succeeded"
    assert redis.lrange("test:published", 0, 0) == [job.id.encode()]


def test_an_idle_worker_stops_at_once_and_well(start_worker: StartWorker) -> None:
    worker = start_worker()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=5) == 0


def test_jobs_survive_the_death_of_redis(
    queue: JobQueue, start_worker: StartWorker, redis_server: Server
) -> None:
    start_worker()
    job, _ = queue.submit(request_for("a", steps="30", step_seconds="0.1"))
    running(queue, job.id)
    waiting = queue.submit(request_for("b"))[0].id
    redis_server.stop()
    redis_server.start()
    assert ended(queue, job.id, seconds=30).status == "succeeded"
    assert ended(queue, waiting, seconds=30).status == "succeeded"
