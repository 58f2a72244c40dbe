"""Health probes: liveness and readiness, open without a key."""

from collections.abc import Callable

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field

from api.responses import json_response
from api.state import state
from services.errors import NotReady, VolumeUnavailable
from services.generate_engines import GenerateEngine
from services.kinds import QUEUES

OK = "ok"

LOW_SPACE_BYTES = 2**30
"""Free space of the volume below which the service warns."""

api = APIBlueprint("health", __name__, abp_tags=[Tag(name="system")])


class Health(BaseModel):
    """The process is alive."""

    status: str = OK


class Readiness(BaseModel):
    """Readiness of the service and of its parts."""

    status: str = Field(description="`ok` or `unavailable`.")
    checks: dict[str, str] = Field(
        description="`ok` or what is wrong, for `redis`, `volume` and the workers of each queue.",
        examples=[
            {
                "redis": OK,
                "volume": OK,
                "worker-convert": OK,
                "worker-merge": "No merge worker is alive.",
                "worker-generate": OK,
            }
        ],
    )
    engine: GenerateEngine = Field(description="`GENERATE_ENGINE` of the service.")
    warnings: list[str] = Field(default=[], description="Problems that do not make the service unavailable.")


@api.get("/healthz", responses={200: Health})
def healthz() -> Response:
    """Check that the process is alive."""
    return json_response(Health())


@api.get("/readyz", responses={200: Readiness, 503: Readiness})
def readyz() -> Response:
    """Check that Redis, the volume and a worker of each queue answer.

    The status is 503 if any of the `checks` is not `ok`.
    """
    found = readiness()
    return json_response(found, 200 if found.status == OK else 503)


def readiness() -> Readiness:
    """Returns the outcome of all checks."""
    redis = _outcome(state().queue.ping)
    workers = _workers() if redis == OK else {f"worker-{queue}": redis for queue in QUEUES}
    checks = {"redis": redis, "volume": _outcome(state().store.check), **workers}
    is_ready = set(checks.values()) == {OK}
    warnings = _space_warnings() if checks["volume"] == OK else []
    status = OK if is_ready else "unavailable"
    engine = state().settings.generate_engine
    return Readiness(status=status, checks=checks, engine=engine, warnings=warnings)


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except (NotReady, VolumeUnavailable) as error:
        return error.message
    return OK


def _workers() -> dict[str, str]:
    try:
        served = {worker.queue for worker in state().queue.workers()}
        refusal = state().engines.refusal()
    except NotReady as error:
        return {f"worker-{queue}": error.message for queue in QUEUES}
    found = {f"worker-{queue}": OK if queue in served else f"No {queue} worker is alive." for queue in QUEUES}
    if refusal is not None and "generate" not in served:
        found["worker-generate"] += f" One did not start: {refusal}"
    return found


def _space_warnings() -> list[str]:
    free_bytes = state().store.free_bytes()
    if free_bytes >= LOW_SPACE_BYTES:
        return []
    return [f"The model volume has {free_bytes} bytes left. Delete models, or enlarge it."]
