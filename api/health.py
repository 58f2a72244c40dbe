"""Is it alive, is it ready: the two probes, open to everybody."""

from collections.abc import Callable

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field

from api.responses import answer
from api.state import state
from services.errors import NotReady

api = APIBlueprint("health", __name__, abp_tags=[Tag(name="system")])


class Health(BaseModel):
    """The process lives."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether work can be done, and which part does not answer."""

    status: str = Field(description="`ok` or `unavailable`.")
    checks: dict[str, str] = Field(
        description="`ok` or what is wrong with `redis`, `volume` and `workers`.",
        examples=[{"redis": "ok", "volume": "ok", "workers": "no worker is alive"}],
    )


@api.get("/healthz", responses={200: Health})
def healthz() -> Response:
    """Tell that the process lives."""
    return answer(Health())


@api.get("/readyz", responses={200: Readiness, 503: Readiness})
def readyz() -> Response:
    """Tell whether Redis, the volume and at least one worker answer."""
    checks = {
        "redis": _outcome(state().queue.ping),
        "volume": _outcome(state().store.check),
        "workers": _outcome(_need_a_worker),
    }
    is_ready = set(checks.values()) == {"ok"}
    return answer(
        Readiness(status="ok" if is_ready else "unavailable", checks=checks), 200 if is_ready else 503
    )


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except NotReady as error:
        return error.message
    return "ok"


def _need_a_worker() -> None:
    if not state().queue.workers():
        raise NotReady("no worker is alive")
