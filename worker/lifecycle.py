"""One job execution from its payload to its result: parsing, context, recorded failures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic_core import from_json

from services.errors import (
    ExecutionSuperseded,
    GraftwerkError,
    InternalError,
    JobCanceled,
    JobTimeout,
    VolumeUnavailable,
)
from services.jobs.execution import JobExecution, assigned
from services.jobs.recorded_errors import as_error, traceback_of
from services.kinds import parse_request
from services.kinds.shared import JobRequest, JobResult
from services.models.hub import WORKER_SECONDS, Hub
from services.models.store import ModelStore
from services.models.volume import Volume
from services.settings import Settings


@dataclass(frozen=True, slots=True)
class JobContext:
    """Volume, settings and execution of the job that runs."""

    store: ModelStore
    settings: Settings
    execution: JobExecution

    @classmethod
    def of(cls, execution: JobExecution, settings: Settings) -> "JobContext":
        """Returns the context of an execution."""
        return cls(ModelStore(settings.models_dir), settings, execution)

    @property
    def hub(self) -> Hub:
        """The Hub of the settings; a cancellation of the job interrupts every wait for it."""
        return Hub.of(self.settings, seconds=WORKER_SECONDS, check_canceled=self.execution.check_canceled)


def volume_check(settings: Settings) -> Callable[[], None]:
    """Returns a function that raises VolumeUnavailable while jobs cannot use the volume; a full one can be read."""
    return partial(Volume(settings.models_dir).require_writable, full=True)


Work = Callable[[JobRequest, JobContext], JobResult]
"""Function that runs the jobs of one kind."""


@dataclass(slots=True)
class Caught:
    """Exception of a `catching` or `failing` block; `error` is None as long as there is none."""

    error: Exception | None = None


@dataclass(slots=True)
class JobFailure:
    """Recorded failure of a job: `error` as its record has it, None as long as there is none, and its `cause`."""

    error: GraftwerkError | None = None
    cause: Exception | None = None

    def reraise(self) -> None:
        """Raises the recorded error, if there is one."""
        if self.error is not None:
            raise self.error from self.cause


@contextmanager
def catching() -> Iterator[Caught]:
    """Catches every exception of the block and exposes it: the only such place."""
    caught = Caught()
    try:
        yield caught
    except Exception as error:  # noqa: BLE001
        caught.error = error


@contextmanager
def failing(context: JobContext) -> Iterator[JobFailure]:
    """Records an exception of the block as the failure of the job, and exposes it.

    The caller ends the RQ job: a task with `reraise()`, the inference worker with RQ's own failure handler.
    """
    failure = JobFailure()
    with context.execution.log_ids():
        with catching() as caught:
            yield failure
        if caught.error is not None:
            failure.cause, failure.error = caught.error, fail(context, caught.error)


def fail(context: JobContext, cause: Exception) -> GraftwerkError:
    """Records the reason of a failure and returns it; the traceback of an internal error goes to the job's log.

    While the volume is not available, that is the reason: its files seem to be missing or damaged.
    """
    execution = context.execution
    execution.flush()
    error = as_error(cause)
    if not isinstance(error, (JobCanceled, ExecutionSuperseded, JobTimeout)):
        try:
            context.store.volume.require_writable(full=True)
        except VolumeUnavailable as unavailable:
            error = unavailable
    if isinstance(error, InternalError):
        execution.log(traceback_of(cause))
    execution.fail(error)
    return error


def perform(payload: dict[str, Any], work: Work) -> dict[str, Any]:
    """Runs the job that this process was given, and returns its result as JSON.

    Raises:
        GraftwerkError: the job failed; the error is on its record already.
    """
    assignment = assigned()
    execution = assignment.execution
    context = JobContext.of(execution, assignment.settings)
    with failing(context) as failure:
        request = parse_request(payload)
        execution.check_canceled()
        result = result_as_json(work(request, context))
    failure.reraise()
    execution.flush()
    return result


def result_as_json(result: JobResult) -> dict[str, Any]:
    """Returns the fields of a result that were set, in JSON's own types: null for NaN and infinity."""
    value: dict[str, Any] = from_json(result.model_dump_json(exclude_unset=True))
    return value
