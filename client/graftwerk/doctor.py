"""`graftwerk doctor`: checks of a service and of the way to it, each with its remedy."""

import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, Literal

import httpx
from pydantic import ValidationError
from rich.filesize import decimal

from graftwerk.errors import ClientError
from graftwerk.protocol import checked_address, connection_options
from graftwerk.quantities import counted, duration
from graftwerk.request_parts import JsonObject
from graftwerk.result import Result
from graftwerk.service_distribution import require_service
from graftwerk.service_models import EngineState, QueueState, WorkerState

SECONDS = 10.0
LOW_SPACE_BYTES = 10 * 2**30
"""Free space of the volume below which few models fit."""

CLOCK_SECONDS = 5.0
"""Difference of two clocks that is worth a warning; the header is exact to a second."""

SILENT_SECONDS = 90.0
"""Age of a worker's last heartbeat from which on it seems to be lost."""

PACKAGES = ("httpx", "pydantic", "rich", "typer")

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """Outcome of one check: what was found, and what to do about it ("" if nothing)."""

    name: str
    status: Status
    detail: str
    hint: str = ""

    def as_json(self) -> JsonObject:
        """Returns the check as a JSON object."""
        return asdict(self)


class Volume(Result):
    """The model volume, of this and of earlier versions."""

    models: int
    free_bytes: int
    total_bytes: int | None = None


class State(Result):
    """The state of a service of any version: those that lack a field are checked as well."""

    workers: list[WorkerState]
    queues: dict[str, QueueState]
    engine: EngineState | None = None
    volume: Volume
    versions: dict[str, str] = {}


class Service:
    """A service as plain HTTP shows it, whether it is one of Graftwerk or not."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        with checked_address(url):
            options = connection_options(self.url, api_key) | {"timeout": SECONDS}
            self._http = httpx.Client(**options, transport=httpx.HTTPTransport())

    def get(self, path: str) -> tuple[httpx.Response, JsonObject | None]:
        """Returns a response and its JSON object, None if it has none.

        Raises:
            httpx.HTTPError: the service does not respond.
        """
        response = self._http.get(path)
        try:
            found = response.json()
        except ValueError:
            found = None
        return response, found if isinstance(found, dict) else None


def examine(url: str, api_key: str | None) -> Iterator[Check]:
    """Yields the checks of a service; those that need a part which has failed are left out."""
    yield Check(
        "client", "ok", f"graftwerk {_own_version()}, Python {platform.python_version()}, {_packages()}"
    )
    service = Service(url, api_key)
    try:
        begin = time.monotonic()
        response, found = service.get("/healthz")
        took = duration(time.monotonic() - begin)
        if found is None or "status" not in found:
            hint = "Check the address: --url or GRAFTWERK_URL, and what a proxy before it answers."
            yield Check("service", "failed", f"{service.url} responds, but not as Graftwerk does.", hint)
            return
        yield Check("service", "ok", f"{service.url} responds in {took}")
        yield clock(response.headers.get("Date"), datetime.now(UTC))
        yield from readiness(service.get("/readyz")[1] or {})
        yield from system(*service.get("/api/system"))
    except httpx.HTTPError as error:
        yield Check(
            "service", "failed", f"No service responds at {service.url} ({str(error).rstrip('.')}).",
            "Start one with `graftwerk serve` or `docker compose up -d`, or set its address with --url or GRAFTWERK_URL.",
        )  # fmt: skip
        yield _local_service()


def _local_service() -> Check:
    """Returns the check whether `graftwerk serve` works in this environment."""
    try:
        require_service()
    except ClientError as error:
        return Check("serve", "warning", error.detail, error.hint)
    return Check("serve", "ok", "`graftwerk serve` can start a service in this environment")


def _own_version() -> str:
    return version("graftwerk")


def _packages() -> str:
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def clock(date: str | None, now: datetime) -> Check:
    """Returns the check of the service's clock by the `Date` header of a response."""
    try:
        difference = (parsedate_to_datetime(date or "") - now).total_seconds()
    except (TypeError, ValueError):
        return Check(
            "clock", "warning", "The service does not say its time.", "Check what a proxy before it removes."
        )
    if abs(difference) <= CLOCK_SECONDS:
        return Check("clock", "ok", "equal to that of this machine")
    ahead = "ahead of" if difference > 0 else "behind"
    return Check(
        "clock", "warning", f"The service is {duration(abs(difference))} {ahead} this machine.",
        "Set both clocks by NTP: durations and signatures of webhooks depend on them.",
    )  # fmt: skip


REMEDIES = {
    "redis": "Check that Redis runs, and GRAFTWERK_REDIS_URL of the service.",
    "volume": "Check that GRAFTWERK_MODELS_DIR of the service exists, can be written and has space left.",
}
START_A_WORKER = "With Docker Compose: `docker compose up -d {name}`. On one machine: `graftwerk serve` starts all workers."


def readiness(found: Mapping[str, Any]) -> Iterator[Check]:
    """Yields the checks of Redis, the volume and the queues that the service makes itself."""
    for name, outcome in found.get("checks", {}).items():
        hint = REMEDIES.get(name, START_A_WORKER.format(name=name))
        yield Check(name, "ok", "responds") if outcome == "ok" else Check(name, "failed", str(outcome), hint)


def system(response: httpx.Response, found: JsonObject | None) -> Iterator[Check]:
    """Yields the checks of the state of the service."""
    if response.status_code in (401, 403):
        yield Check(
            "key", "failed", f"The service refuses the API key (HTTP {response.status_code}).",
            "Set GRAFTWERK_API_KEY or --api-key to a key with the role read.",
        )  # fmt: skip
        return
    try:
        state = State.model_validate(found if response.is_success else None)
    except ValidationError:
        detail = (found or {}).get("detail") or f"HTTP {response.status_code}"
        yield Check(
            "system",
            "failed",
            f"The state of the service cannot be read: {detail}",
            "See the log of the API.",
        )
        return
    yield _version(state.versions)
    yield _space(state.volume)
    if state.engine is not None:
        yield _engine(state.engine)
    for name, queue in state.queues.items():
        yield _queue(name, queue)
    for worker in state.workers:
        yield _worker(worker, datetime.now(UTC))


def _version(versions: Mapping[str, str]) -> Check:
    listed = ", ".join(f"{name} {number}" for name, number in versions.items()) or "unknown"
    if versions.get("graftwerk-service") == _own_version():
        return Check("versions", "ok", listed)
    return Check(
        "versions", "warning", f"This command is {_own_version()}, the service: {listed}.",
        "Install the client of the service's version; fields that one side does not know are left out or refused.",
    )  # fmt: skip


def _space(volume: Volume) -> Check:
    detail = f"{counted(volume.models, 'model')}, {decimal(volume.free_bytes)} free"
    if volume.total_bytes:
        detail += f" of {decimal(volume.total_bytes)}"
    if volume.free_bytes >= LOW_SPACE_BYTES:
        return Check("space", "ok", detail)
    return Check(
        "space", "warning", f"{detail}.", "Remove models with `graftwerk models rm`, or enlarge the volume."
    )


def _engine(engine: EngineState) -> Check:
    models = ", ".join(f"{kind} models by {name or 'none'}" for kind, name in engine.models.items())
    other = f", models of {engine.backend} there" if engine.backend else ""
    return Check("engine", "ok", f"GENERATE_ENGINE is {engine.setting}: {models}{other}")


def _queue(name: str, queue: QueueState) -> Check:
    if queue.waiting and not queue.workers:
        hint = START_A_WORKER.format(name=f"worker-{name}")
        detail = f"{counted(queue.waiting, 'job')} waiting, and no worker serves the queue."
        return Check(f"queue {name}", "failed", detail, hint)
    workers = counted(queue.workers, "worker")
    return Check(f"queue {name}", "ok", f"{queue.waiting:,} waiting, {queue.running:,} running, {workers}")


def _worker(worker: WorkerState, now: datetime) -> Check:
    name = f"worker {worker.queue}"
    memory = f", {decimal(worker.memory_bytes)} of memory" if worker.memory_bytes else ""
    holders = {process.model: f" ({process.engine}, process {process.pid})" for process in worker.processes}
    held = ", ".join(f"{model}{holders.get(model, '')}" for model in worker.models)
    models = f", holds {held}" if held else ""
    engines = ", ".join(
        f"{name} ({version})" if version else name for name, version in worker.engines.items()
    )
    models = f", engines {engines}{models}" if engines else models
    silent = (now - worker.last_heartbeat).total_seconds()
    if silent > SILENT_SECONDS:
        detail = f"{worker.name} on {worker.device}: last sign of life {duration(silent)} ago."
        return Check(name, "warning", detail, "See its log; the janitor gives its jobs to another worker.")
    return Check(name, "ok", f"{worker.name} on {worker.device}{memory}{models}")
