"""Where a job stands: what the API returns, and the one mapping from RQ's word for it to ours."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from services.errors import JobCanceled, UpstreamFailed

JobStatus = Literal["queued", "running", "succeeded", "failed", "canceled"]

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled"})
"""The statuses that never change again."""

WAITING = frozenset({"created", "queued", "deferred", "scheduled", "rate_limited", "ready_to_enqueue"})
"""RQ's words for a job that no worker has started."""

_OUTCOMES: dict[str, JobStatus] = {
    **dict.fromkeys(WAITING, "queued"),
    "started": "running",
    "failed": "failed",
    "stopped": "canceled",
    "canceled": "canceled",
}


def status_of(rq_status: str, error_code: str | None) -> JobStatus:
    """Our status for RQ's, given the code of the error in our own record.

    A recorded `canceled` or `upstream_failed` is a verdict: it holds even while a worker that had
    already taken the job from the queue has yet to notice. A job that has finished has succeeded.
    """
    if rq_status == "finished":
        return "succeeded"
    if error_code == JobCanceled.code:
        return "canceled"
    if error_code == UpstreamFailed.code:
        return "failed"
    return _OUTCOMES[rq_status]


class JobProgress(BaseModel):
    """How far a running job is; `fraction` and `eta_seconds` are None where they cannot be known."""

    model_config = ConfigDict(frozen=True)

    stage: str
    done: int
    total: int
    unit: str
    fraction: float | None
    eta_seconds: float | None


class JobError(BaseModel):
    """Why a job failed: a stable code, a message for people and what to do about it."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    hint: str


class Job(BaseModel):
    """One job as everybody outside sees it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    after: list[str]
    queue_position: int | None
    progress: JobProgress | None
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: JobError | None
    metadata: dict[str, str]


class WorkerState(BaseModel):
    """One living worker process; a generation worker may run several jobs at once.

    `device` says on what it computes, where that is more than this machine's CPU cores.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    queue: str
    state: str
    job_ids: list[str]
    last_heartbeat: datetime
    device: str
