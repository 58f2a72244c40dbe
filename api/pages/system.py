"""The page System: readiness, workers, queues, memory and disk."""

from datetime import UTC, datetime
from typing import Any

from flask import Response
from flask_babel import lazy_gettext

from api.health import OK, Readiness, readiness
from api.metrics import System, read_system
from api.pages.kind_names import kind_names
from api.pages.layout import is_fragment_request, page_blueprint, page_response
from api.state import state
from api.versions import SERVICE
from services.errors import NotReady, VolumeUnavailable
from services.jobs.status import WorkerState

CHECK_NAMES = {
    "redis": lazy_gettext("Redis"),
    "volume": lazy_gettext("Model volume"),
    "worker-convert": lazy_gettext("Worker for imports and conversions"),
    "worker-merge": lazy_gettext("Worker for merges and verifications"),
    "worker-generate": lazy_gettext("Worker for texts"),
}

REMEDIES = {
    "redis": lazy_gettext("Check that Redis runs and that GRAFTWERK_REDIS_URL is its address."),
    "volume": lazy_gettext("Check that GRAFTWERK_MODELS_DIR exists, can be written and has space left."),
}
"""Remedy of each check that fails; for workers see `START_A_WORKER`."""

START_A_WORKER = lazy_gettext(
    "With Docker Compose: docker compose up -d {service}. On one machine: graftwerk serve starts all workers again."
)

VERSION_NAMES = {SERVICE: "Graftwerk", "python": "Python", "redis": "Redis"}

page = page_blueprint("system")


@page.get("/system")
def system() -> Response:
    """Returns the page, or its content alone for htmx."""
    checks = readiness()
    values: dict[str, Any] = {
        "readiness": checks, "checks": _checks(checks), "system": _system(),
        "now": datetime.now(UTC), "host": host_of, "kind_names": kind_names(), "version_names": VERSION_NAMES,
    }  # fmt: skip
    return page_response("system/state.html" if is_fragment_request() else "system/page.html", **values)


def _system() -> System | None:
    """Returns the state of workers, queues and the volume; None if Redis or the volume does not answer."""
    try:
        return read_system(state(), state().queue.statistics())
    except (NotReady, VolumeUnavailable):
        return None  # the checks say which


def _checks(found: Readiness) -> list[dict[str, Any]]:
    return [
        {
            "name": CHECK_NAMES.get(check, check),
            "is_ok": outcome == OK,
            "message": outcome,
            "remedy": REMEDIES.get(check) or str(START_A_WORKER).format(service=check),
        }
        for check, outcome in found.checks.items()
    ]


def host_of(worker: WorkerState) -> str:
    """Returns the machine of a worker, which its name contains: `<queue>-<host>-<process>-<random>`."""
    parts = worker.name.removeprefix(f"{worker.queue}-").rsplit("-", 2)
    return parts[0] if len(parts) == 3 else worker.name
