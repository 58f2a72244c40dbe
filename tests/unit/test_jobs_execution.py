"""Execution of a job: intervals of progress, remaining time, cancellation and fencing."""

import errno
import json
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError, TimeoutError
from rq.timeouts import JobTimeoutException

from services.errors import ExecutionSuperseded, JobCanceled, ModelNotFound
from services.jobs.execution import JobExecution, Pace
from services.jobs.recorded_errors import as_error
from services.progress import Progress

KEY = "graftwerk:job:j"


class Clock:
    """Clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def redis() -> FakeRedis:
    redis = FakeRedis()
    redis.hset(KEY, mapping={"request": "{}", "created_at": "0", "execution": "e1"})
    return redis


@pytest.fixture
def execution(redis: FakeRedis, clock: Clock) -> JobExecution:
    return JobExecution("j", "e1", redis, clock=clock)


def written(redis: FakeRedis) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads(redis.hget(KEY, "progress") or "null")
    return progress


def test_progress_is_written_at_most_four_times_a_second(
    redis: FakeRedis, clock: Clock, execution: JobExecution
) -> None:
    for step in range(1, 101):
        clock.now += 0.01
        execution.report(Progress("writing", step, 100))
    assert redis.xlen("graftwerk:events:j") == 4


def test_the_last_progress_is_written_however_soon_it_comes(
    redis: FakeRedis, clock: Clock, execution: JobExecution
) -> None:
    execution.report(Progress("writing", 1, 100))
    clock.now += 0.01
    execution.report(Progress("writing", 100, 100))
    assert written(redis)["done"] == 1
    execution.flush()
    assert written(redis)["done"] == 100


def test_a_new_stage_is_written_at_once(redis: FakeRedis, clock: Clock, execution: JobExecution) -> None:
    execution.report(Progress("reading", 1, 2))
    clock.now += 0.01
    execution.report(Progress("writing", 0, 2))
    assert written(redis)["stage"] == "writing"


def test_the_event_carries_the_progress_and_the_job(redis: FakeRedis, execution: JobExecution) -> None:
    execution.report(Progress("writing", 25, 100, "tensors"))
    ((_, fields),) = redis.xrange("graftwerk:events:j")
    assert fields[b"name"] == b"progress"
    assert json.loads(fields[b"data"]) == {
        "id": "j",
        "progress": {
            "stage": "writing",
            "done": 25,
            "total": 100,
            "unit": "tensors",
            "fraction": 0.25,
            "eta_seconds": None,
        },
    }


def test_a_steady_rate_gives_the_exact_remaining_time(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.eta_seconds(Progress("writing", 0, 1000)) is None
    clock.now += 2
    assert pace.eta_seconds(Progress("writing", 100, 1000)) == pytest.approx(18.0)
    clock.now += 2
    assert pace.eta_seconds(Progress("writing", 200, 1000)) == pytest.approx(16.0)


def test_one_slow_moment_moves_the_remaining_time_only_a_little(clock: Clock) -> None:
    pace = Pace(clock)
    pace.eta_seconds(Progress("writing", 0, 1000))
    clock.now += 1
    pace.eta_seconds(Progress("writing", 100, 1000))  # 100 a second
    clock.now += 1
    # Nothing for a second weighs 1 - exp(-1/5) = 0.18127: 100 -> 81.873 a second, 900 to do.
    assert pace.eta_seconds(Progress("writing", 100, 1000)) == pytest.approx(10.9926, rel=1e-4)


def test_a_new_stage_forgets_the_rate_of_the_one_before(clock: Clock) -> None:
    pace = Pace(clock)
    pace.eta_seconds(Progress("reading", 0, 1000))
    clock.now += 1
    pace.eta_seconds(Progress("reading", 1000, 1000))
    clock.now += 1
    assert pace.eta_seconds(Progress("writing", 0, 1000)) is None


def test_nothing_is_known_of_a_stage_without_a_total(clock: Clock) -> None:
    pace = Pace(clock)
    pace.eta_seconds(Progress("reading", 0, 0))
    clock.now += 1
    assert pace.eta_seconds(Progress("reading", 10, 0)) is None


def test_cancellation_is_seen_within_a_quarter_second_and_asked_for_no_oftener(
    redis: FakeRedis, clock: Clock, execution: JobExecution
) -> None:
    execution.check_canceled()
    redis.hset(KEY, "cancel", "1")
    clock.now += 0.2
    execution.check_canceled()
    clock.now += 0.06
    with pytest.raises(JobCanceled):
        execution.check_canceled()


def test_an_execution_stops_counting_when_another_takes_over(
    redis: FakeRedis, clock: Clock, execution: JobExecution
) -> None:
    execution.ensure_current()
    JobExecution("j", "e2", redis, clock=clock).start("w")
    assert not execution.is_current()
    with pytest.raises(ExecutionSuperseded):
        execution.ensure_current()


def test_a_superseded_execution_writes_neither_progress_nor_error(
    redis: FakeRedis, clock: Clock, execution: JobExecution
) -> None:
    JobExecution("j", "e2", redis, clock=clock).start("w")
    execution.report(Progress("writing", 1, 2))
    execution.fail(ModelNotFound("no model"))
    assert redis.hget(KEY, "progress") is None
    assert redis.hget(KEY, "error") is None


def test_a_new_start_forgets_an_old_error_but_never_a_cancellation(redis: FakeRedis) -> None:
    JobExecution("j", "e1", redis).fail(ModelNotFound("no model"))
    JobExecution("j", "e2", redis).start("w")
    assert redis.hget(KEY, "error") is None
    JobExecution("j", "e2", redis).fail(JobCanceled("stop"))
    JobExecution("j", "e3", redis).start("w")
    assert json.loads(redis.hget(KEY, "error") or "")["code"] == "canceled"


def test_a_log_of_several_lines_keeps_them_apart(redis: FakeRedis, execution: JobExecution) -> None:
    execution.log("one\ntwo")
    lines = [line.decode().split(" ", 1) for line in redis.lrange("graftwerk:log:j", 0, -1)]
    assert [line[1] for line in lines] == ["one", "two"]
    assert all(line[0].endswith("Z") for line in lines)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound("no model"), "model_not_found"),
        (JobTimeoutException("1 s"), "timeout"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (ConnectionError("Connection closed by server."), "not_ready"),
        (TimeoutError("Timeout reading from socket"), "not_ready"),
        (FileNotFoundError("x"), "internal_error"),
        (ZeroDivisionError("division by zero"), "internal_error"),
    ],
)
def test_every_exception_has_a_stable_code(error: Exception, code: str) -> None:
    assert as_error(error).code == code


@pytest.mark.parametrize("text", ["division by zero", "division by zero.", "division by zero. "])
def test_the_message_of_an_exception_ends_with_one_full_stop(text: str) -> None:
    assert as_error(ZeroDivisionError(text)).message == "ZeroDivisionError: division by zero."
