"""The retry decision: what happens to a job whose execution has ended without a result."""

from enum import Enum

from services.errors import MemoryUnavailable, VolumeUnavailable
from services.jobs.records import Record

LOSES_NO_RETRY = {VolumeUnavailable.code, MemoryUnavailable.code}
"""Codes of what the job cannot help: it runs again when that is over."""


class RetryDecision(Enum):
    """Next state of the job."""

    RERUN = "queued again at the front, with one retry fewer, because its worker died"
    RETRY = "queued again at the end, with one retry fewer, because of a transient error"
    PUT_BACK = "queued again at the front, with all its retries"
    CANCEL = "canceled"
    FAIL = "failed with the error on its record"
    ABANDON = "failed because its worker died"


def decide(record: Record | None, *, has_retries: bool, is_worker_stopped: bool = False) -> RetryDecision:
    """Returns the decision for a job with this record.

    Only a job whose process died or whose error is transient runs again. A job that its own worker interrupted in
    order to stop, or that has lost the volume or found no memory, loses no retry.

    Args:
        record: our record of the job; None if it has expired.
        has_retries: RQ's count of retries is not used up.
        is_worker_stopped: the worker interrupted the job in order to stop.
    """
    if record is not None and record.cancel:
        return RetryDecision.CANCEL
    failure = record.failure if record is not None else None
    if failure is not None and failure.final:
        return RetryDecision.FAIL
    if is_worker_stopped or (failure is not None and failure.code in LOSES_NO_RETRY):
        return RetryDecision.PUT_BACK
    if failure is None:
        return RetryDecision.RERUN if has_retries else RetryDecision.ABANDON
    return RetryDecision.RETRY if has_retries else RetryDecision.FAIL
