"""A job that the inference worker has started."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from rq import Queue
from rq.executions import Execution
from rq.job import Job as RQJob

from services.backend import ServedModel
from services.errors import GraftwerkError
from services.jobs.status import WaitingFor
from worker.inference.session import Session
from worker.lifecycle import JobContext


@dataclass(slots=True, eq=False, kw_only=True)
class RunningJob:
    """One job that the worker has started.

    It has no session while the models of another server are looked up, and none if it is `waiting_for` something after that.
    """

    job: RQJob
    queue: Queue
    execution: Execution
    context: JobContext
    limit_seconds: float
    runs_alone: bool = False
    session: Session | None = None
    backend_lookup: Future[Mapping[str, ServedModel]] | None = None
    waiting_for: WaitingFor | None = None
    stop_reason: GraftwerkError | None = None
