"""State of the application that the views use, built once in `create_app`."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from flask import current_app

from services.backend import Backend, ServedModel
from services.jobs.disk_reservations import NO_DISK_USE, DiskUse
from services.jobs.engine_record import EngineRecord
from services.jobs.queue import JobQueue
from services.kinds.shared import JobRequest
from services.models.hub import Hub
from services.models.store import ModelStore
from services.preflight import Limits, Plan, Planner, Servers, preflight
from services.preflight.model_reader import ModelReader
from services.preflight.plan import NO_ARCHIVES, NO_SERVERS
from services.settings import Settings

EXTENSION = "graftwerk"


@dataclass(frozen=True, slots=True)
class AppState:
    """Settings, queue and model store of one application.

    `models` describes what the store holds, `planner` makes plans, `backend` is the other server that generates, if any.
    `engines` are those of the workers.
    """

    settings: Settings
    queue: JobQueue
    store: ModelStore
    models: ModelReader
    planner: Planner
    backend: Backend | None
    hub: Hub
    engines: EngineRecord

    def served(self, request: JobRequest) -> ServedModel | None:
        """Returns the other server's model that runs this request, None if a local model does.

        Raises:
            NotReady: the other server does not answer.
            InvalidSettings: the other server is this service itself.
        """
        if self.backend is None or not request.is_forwardable:
            return None
        return self.backend.models().get(request.reads[0])

    def preflight(
        self,
        request: JobRequest,
        promised: Collection[str] = (),
        *,
        servers: Servers = NO_SERVERS,
        limits: Limits = NO_ARCHIVES,
        disk_use: DiskUse = NO_DISK_USE,
    ) -> Plan:
        """Returns the plan of a request, whose files no header is read of in this process.

        Raises:
            UnreadableFile, ReadLimitExceeded: as `ModelReader.require_readable`.
            GraftwerkError: as `preflight` and `IsolatedPlanner`.
        """
        self.models.require_readable(request.reads)
        servers = replace(servers, engines=self.engines.engines())
        return preflight(
            request, self.store, promised, limits=limits, servers=servers, disk_use=disk_use, planner=self.planner,
        )  # fmt: skip


def state() -> AppState:
    """Returns the state of the application that handles the current request."""
    found: AppState = current_app.extensions[EXTENSION]
    return found
