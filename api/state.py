"""The state of the house that the views talk to, built once in `create_app`."""

from dataclasses import dataclass

from flask import current_app

from services.backend import Backend, ServedModel, may_forward
from services.jobs.queue import JobQueue
from services.kinds.generate import GenerateRequest
from services.kinds.shared import JobRequest
from services.models.store import ModelStore
from services.settings import Settings

EXTENSION = "graftwerk"


@dataclass(frozen=True, slots=True)
class AppState:
    """One application's settings, queue and store, and the server that takes generation, if one does."""

    settings: Settings
    queue: JobQueue
    store: ModelStore
    backend: Backend | None

    def served(self, request: JobRequest) -> ServedModel | None:
        """The other server's model that answers a request, where one does. Raises NotReady, InvalidSettings."""
        if self.backend is None or not isinstance(request, GenerateRequest) or not may_forward(request):
            return None
        return self.backend.models().get(request.model)


def state() -> AppState:
    """The state of the application that answers the current request."""
    found: AppState = current_app.extensions[EXTENSION]
    return found
