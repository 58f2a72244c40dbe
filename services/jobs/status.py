"""The job as the API returns it, and the one mapping from RQ's statuses to ours."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, WrapValidator

from services.errors import InsufficientMemory, JobAbandoned, JobCanceled, UpstreamFailed
from services.kinds import KINDS, AnyRequest, parse_request, parse_result
from services.kinds.shared import JobRequest, JobResult
from services.validation import is_none

JobStatus = Literal["queued", "running", "succeeded", "failed", "canceled"]

ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled"})
"""Statuses that never change again."""

WAITING = frozenset({"created", "queued", "deferred", "scheduled", "rate_limited", "ready_to_enqueue"})
"""RQ's statuses of a job that no worker has started."""

_OUTCOMES: dict[str, JobStatus] = {
    **dict.fromkeys(WAITING, "queued"),
    "started": "running",
    "failed": "failed",
    "stopped": "canceled",
    "canceled": "canceled",
}


def status_of(rq_status: str, error_code: str | None) -> JobStatus:
    """Returns our status for RQ's, given the code of the error in our own record.

    A recorded `canceled`, `upstream_failed` or `insufficient_memory` is final: it holds even while a worker that had already taken the job
    from the queue has yet to notice. A job that has finished has succeeded.
    """
    if rq_status == "finished":
        return "succeeded"
    if error_code == JobCanceled.code:
        return "canceled"
    if error_code in (UpstreamFailed.code, InsufficientMemory.code):
        return "failed"
    return _OUTCOMES[rq_status]


def worker_died(reason: str = "") -> JobAbandoned:
    """Returns the error of a job whose process died once too often; `reason`: what is known of the death."""
    return JobAbandoned(
        "The process that ran the job died, and no retry is left" + (f": {reason}." if reason else "."),
        "If it ran out of memory, give the worker more memory, or run fewer jobs at once.",
    )


class JobProgress(BaseModel):
    """Progress of a job; `fraction` and `eta_seconds` are null if they cannot be known."""

    model_config = ConfigDict(frozen=True)

    stage: str
    done: int
    total: int
    unit: str
    fraction: float | None
    eta_seconds: float | None

    def completed(self) -> "JobProgress":
        """Returns the progress of a job that has succeeded: everything is done and no time is left."""
        return self.model_copy(update={"done": self.total or self.done, "fraction": 1.0, "eta_seconds": None})


class JobError(BaseModel):
    """Reason of a failure: a stable code, a message for people and a hint what to do."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    hint: str
    order: list[str] | None = Field(
        default=None,
        exclude_if=is_none,
        description="Of `wrong_adapter_order`: the adapters in the order that fits; empty if no order of these does.",
    )


class WaitingFor(BaseModel):
    """Reason why a queued job does not run yet, in addition to the jobs before it in its queue, or why a running one computes nothing."""

    model_config = ConfigDict(frozen=True)

    what: Literal["memory", "worker", "volume", "jobs"]
    message: str


WAITS_FOR = "waits_for"
"""Field of a record with the reason why its current execution waits."""

WAITS_FOR_JOBS = WaitingFor(what="jobs", message="The job runs after the jobs in `after` have succeeded.")


def read_waiting_for(fields: dict[bytes, bytes]) -> dict[JobStatus, WaitingFor]:
    """Returns the reasons in the fields of a record: that of the job in its queue, that of its execution."""
    found: dict[JobStatus, bytes | None] = {
        "queued": fields.get(b"waiting_for"),
        "running": fields.get(WAITS_FOR.encode()),
    }
    return {status: WaitingFor.model_validate_json(text) for status, text in found.items() if text}


def waiting_for(
    status: JobStatus, rq_status: str, recorded: Mapping[JobStatus, WaitingFor]
) -> WaitingFor | None:
    """Returns what a job with these statuses waits for; None if nothing, and once it has ended."""
    return WAITS_FOR_JOBS if (status, rq_status) == ("queued", "deferred") else recorded.get(status)


class UnknownRequest(JobRequest):
    """Request in a record of another version that this version cannot read: it can be listed, but not run again."""

    model_config = ConfigDict(extra="allow")


def read_request(value: object) -> JobRequest:
    """Returns the request in a job's JSON."""
    if isinstance(value, JobRequest):
        return value
    try:
        return parse_request(value)
    except ValidationError:
        return UnknownRequest.model_validate(value)


def read_result(kind: str, value: object) -> JobResult | None:
    """Returns the result in a job's JSON; one of another version that does not fit the kind keeps its fields."""
    if value is None or isinstance(value, JobResult):
        return value
    try:
        return parse_result(kind, value)
    except (ValidationError, KeyError):
        return JobResult.model_validate(value)


if TYPE_CHECKING:
    StoredRequest = JobRequest
    StoredResult = JobResult
else:
    StoredRequest = Annotated[
        AnyRequest,
        WrapValidator(lambda value, _: read_request(value)),
        PlainSerializer(lambda request, info: request.model_dump(mode=info.mode)),
    ]
    StoredResult = Annotated[
        Union[tuple(kind.result for kind in KINDS.values())],  # noqa: UP007
        WrapValidator(lambda value, _, info: read_result(info.data["kind"], value)),
        PlainSerializer(lambda result, info: result.model_dump(mode=info.mode, exclude_unset=True)),
    ]
"""Request and result of any kind in a job: only the fields of a result that were set are serialized."""


class Job(BaseModel):
    """One job as the API returns it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    after: list[str]
    queue_position: int | None
    waiting_for: WaitingFor | None = None
    progress: JobProgress | None
    request: StoredRequest
    result: StoredResult | None
    error: JobError | None
    metadata: dict[str, str]


class EngineProcess(BaseModel):
    """A model that a process of llama.cpp or vLLM below a worker has; `pid` is the id of its group on the worker's machine.

    Several models have the same process if it applies the adapters of each to one base.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    engine: str
    pid: int


class KVCacheState(BaseModel):
    """Keys and values in the memory of one inference worker; counters since its start."""

    model_config = ConfigDict(frozen=True)

    limit_bytes: int = Field(description="Most bytes of running sequences and kept prefixes together.")
    held_bytes: int = Field(description="Bytes of running sequences.")
    waiting_requests: int = Field(description="Prompts that wait for memory.")
    prefix_bytes: int = Field(description="Bytes of kept prefixes.")
    prefix_hits: int = Field(description="Prompts that began like an earlier one.")
    prefix_reused_tokens: int = Field(description="Tokens of prompts that were found in kept prefixes.")
    prefix_read_tokens: int = Field(description="Tokens of prompts that were computed.")
    prefix_evictions: int = Field(
        description="Kept blocks that were dropped for others or for running sequences."
    )


class WorkerState(BaseModel):
    """One living worker process; an inference worker may run several jobs at once.

    `device`: display name of the device that it computes on; `models`: names of the models in its memory, those with
    adapters on the fly as `base+adapter`; `processes`: those of them that processes of other engines have.
    `engines`: package and version of each engine that it has.
    `memory_bytes`: memory that it may use in all, 0 if unknown. `kv_cache`: null for a worker without models in its own memory.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    queue: str
    state: str
    job_ids: list[str]
    last_heartbeat: datetime
    device: str
    models: list[str] = []
    memory_bytes: int = 0
    engines: dict[str, str] = {}
    processes: list[EngineProcess] = []
    kv_cache: KVCacheState | None = None
