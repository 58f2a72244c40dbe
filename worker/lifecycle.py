"""What surrounds every task: parse the request again, open the store, report, record the failure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from services.errors import GraftwerkError, InternalError
from services.jobs.disk_reservations import DiskNeed
from services.jobs.execution import JobExecution, as_error, assigned, traceback_of
from services.kinds.shared import JobRequest, JobResult
from services.models.store import ModelStore
from services.progress import CheckCanceled, Report
from services.settings import Settings

R = TypeVar("R", bound=JobRequest)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a task is handed. `confirm` is called right before publishing and raises if it must not.

    `reserve_disk` sets room on the volume aside. `execution` is `<job>.<run>`, as the store names what is being made.
    """

    store: ModelStore
    settings: Settings
    job_id: str
    execution: str
    report: Report
    check_canceled: CheckCanceled
    confirm: Callable[[], None]
    reserve_disk: Callable[[DiskNeed], None]
    log: Callable[[str], None]
    publish_tokens: Callable[[Sequence[dict[str, Any]]], None]


Work = Callable[[R, JobContext], Mapping[str, Any] | JobResult]


def run(request_class: type[R], payload: dict[str, Any], work: Work[R]) -> dict[str, Any]:
    """The result of `work` as plain JSON. Whatever it raises is recorded first, then raised as one of ours."""
    assignment = assigned()
    running, settings = assignment.running, assignment.settings

    def attempt() -> dict[str, Any]:
        request = request_class.model_validate(payload)
        running.check_canceled()
        return plain(work(request, context_of(running, settings)))

    outcome = attempted(attempt)
    running.flush()
    if isinstance(outcome, Exception):
        raise fail(running, outcome) from outcome
    return outcome


def attempted(action: Callable[[], T]) -> T | Exception:
    """What the action gives, or the exception that it raised: the one place that catches them all."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        return error


def context_of(running: JobExecution, settings: Settings) -> JobContext:
    """The context of one execution."""
    return JobContext(
        store=ModelStore(settings.models_dir),
        settings=settings,
        job_id=running.job_id,
        execution=f"{running.job_id}.{running.execution_id}",
        report=running.report,
        check_canceled=running.check_canceled,
        confirm=running.confirm,
        reserve_disk=running.reserve_disk,
        log=running.log,
        publish_tokens=running.publish_tokens,
    )


def fail(running: JobExecution, error: Exception) -> GraftwerkError:
    """Record why the job fails, and give that; the traceback of a fault of our own goes to the job's log."""
    failure = as_error(error)
    if isinstance(failure, InternalError):
        running.log(traceback_of(error))
    running.fail(failure)
    return failure


def plain(result: Mapping[str, Any] | JobResult) -> dict[str, Any]:
    """The result in JSON's own types: no str subclass, no Path, null for NaN and infinity."""
    content = result.model_dump(exclude_unset=True) if isinstance(result, JobResult) else dict(result)
    value = from_json(to_json(content, inf_nan_mode="null"))
    if not isinstance(value, dict):
        raise InternalError(f"a task gave {type(result).__name__}, not a JSON object")
    return value
