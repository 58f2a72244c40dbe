"""The protocol of inference jobs, and the one place that opens a session by a job's kind."""

from importlib import import_module
from typing import Protocol

from services.generate import Event
from services.kinds import module_name
from services.kinds.shared import JobRequest, JobResult
from worker.inference.cached_model import CachedModel
from worker.inference.model_key import ModelKey
from worker.lifecycle import JobContext


class Session(Protocol):
    """One inference job from its request to its result. The scheduler drives it in a single thread.

    An exception of any method except `cancel` fails this job and no other.
    """

    @property
    def done(self) -> bool:
        """True once the result is complete."""

    @property
    def has_prompts(self) -> bool:
        """True while prompts wait for a free slot of the engine."""

    def needs(self) -> ModelKey | None:
        """Returns the key of the loaded model to run on next, None if another server generates."""

    def attach(self, model: CachedModel) -> None:
        """Takes over the model that `needs` named; called again whenever that changes."""

    def step(self) -> None:
        """Does a bounded piece of work: one prompt to the engine, one text, one window, the data of another server."""

    def on_event(self, event: Event) -> None:
        """Takes an event of one of this session's requests to the engine."""

    def report(self) -> None:
        """Reports progress, publishes new text and saves complete outputs."""

    def result(self) -> JobResult:
        """Returns the result of the job once it is done."""

    def cancel(self) -> None:
        """Ends the session's requests to the engine or to another server early. May be called from any thread."""

    def close(self) -> None:
        """Releases files and connections, at any time."""


def open_session(request: JobRequest, context: JobContext) -> Session:
    """Returns the session of a job that runs on a model of the volume.

    Raises:
        GraftwerkError: the request cannot be run; see the constructor of the kind's session.
    """
    module = import_module(f"worker.inference.{module_name(request.kind)}")
    session: Session = module.open_session(request, context)
    return session
