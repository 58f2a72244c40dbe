"""The mapping from RQ's statuses to ours."""

import pytest
from rq.job import JobStatus

from services.jobs.status import status_of


@pytest.mark.parametrize(
    ("rq_status", "code", "expected"),
    [
        ("created", None, "queued"),
        ("queued", None, "queued"),
        ("deferred", None, "queued"),
        ("scheduled", None, "queued"),
        ("rate_limited", None, "queued"),
        ("ready_to_enqueue", None, "queued"),
        ("started", None, "running"),
        ("finished", None, "succeeded"),
        ("failed", None, "failed"),
        ("failed", "adapter_mismatch", "failed"),
        ("failed", "canceled", "canceled"),
        ("stopped", None, "canceled"),
        ("canceled", None, "canceled"),
        ("canceled", "canceled", "canceled"),
        ("canceled", "upstream_failed", "failed"),
        ("started", "canceled", "canceled"),
        ("queued", "not_ready", "queued"),
    ],
)
def test_each_status_of_rq_is_one_of_ours(rq_status: str, code: str | None, expected: str) -> None:
    assert status_of(rq_status, code) == expected


def test_no_status_of_rq_is_left_out() -> None:
    assert all(status_of(status.value, None) for status in JobStatus)
