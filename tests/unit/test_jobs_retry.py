"""The retry decision, from the record of a job and the retries that are left."""

from datetime import UTC, datetime

import pytest

from services.jobs.records import Failure, Record
from services.jobs.retry import RetryDecision, decide
from services.kinds.convert import ConvertRequest

FINAL = Failure("model_not_found", "m", "h", final=True)
AWAY = Failure("volume_unavailable", "m", "h", final=False)
NO_MEMORY = Failure("memory_unavailable", "m", "h", final=False)
TRANSIENT = Failure("not_ready", "m", "h", final=False)


def record(failure: Failure | None = None, *, cancel: bool = False) -> Record:
    return Record(
        request=ConvertRequest(kind="convert", source="a", target="b"),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        progress=None,
        failure=failure,
        cancel=cancel,
        execution="e1",
    )


@pytest.mark.parametrize(
    ("found", "has_retries", "is_worker_stopped", "expected"),
    [
        (record(), True, False, RetryDecision.RERUN),
        (record(), False, False, RetryDecision.ABANDON),
        (record(TRANSIENT), True, False, RetryDecision.RETRY),
        (record(TRANSIENT), False, False, RetryDecision.FAIL),
        (record(FINAL), True, False, RetryDecision.FAIL),
        (record(FINAL), True, True, RetryDecision.FAIL),
        (record(), True, True, RetryDecision.PUT_BACK),
        (record(), False, True, RetryDecision.PUT_BACK),
        (record(cancel=True), True, False, RetryDecision.CANCEL),
        (record(FINAL, cancel=True), True, True, RetryDecision.CANCEL),
        (record(AWAY), True, False, RetryDecision.PUT_BACK),
        (record(AWAY), False, False, RetryDecision.PUT_BACK),
        (record(NO_MEMORY), False, False, RetryDecision.PUT_BACK),
        (None, True, False, RetryDecision.RERUN),
        (None, False, False, RetryDecision.ABANDON),
    ],
)
def test_each_end_without_a_result_has_one_decision(
    found: Record | None, has_retries: bool, is_worker_stopped: bool, expected: RetryDecision
) -> None:
    assert decide(found, has_retries=has_retries, is_worker_stopped=is_worker_stopped) is expected
