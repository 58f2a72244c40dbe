"""State of workers, queues and the volume, as JSON and for Prometheus."""

from collections import Counter

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field

from api.collector import ServiceCollector
from api.errors import problems
from api.openapi import METRICS, SECURITY
from api.responses import json_response
from api.state import AppState, state
from api.versions import redis_version, service_versions
from services.generate_engines import ENGINES, Engine, GenerateEngine
from services.jobs.memory import machine, read_memory, reserved_memory
from services.jobs.statistics import Statistics
from services.jobs.status import WorkerState
from services.kinds import KINDS, QUEUES

api = APIBlueprint(
    "metrics",
    __name__,
    abp_tags=[Tag(name="system")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 429, 500),
)


class QueueState(BaseModel):
    """Counts of one queue: queued jobs, running jobs, living workers."""

    waiting: int
    running: int
    workers: int


class KindState(BaseModel):
    """Counts of the jobs of one kind, and the queue whose workers run them."""

    queue: str
    waiting: int
    running: int
    oldest_wait_seconds: float = Field(
        description="Since the submission of the oldest waiting job; 0 without one."
    )


class VolumeState(BaseModel):
    """The model volume."""

    models: int
    free_bytes: int
    total_bytes: int
    reserved_bytes: int = Field(description="Free bytes that jobs have reserved and not written yet.")


class MemoryState(BaseModel):
    """Memory of the machine, or of the container, that the API runs in."""

    total_bytes: int
    available_bytes: int
    reserved_bytes: int = Field(
        description="Available bytes that jobs on this machine have reserved and not taken yet."
    )


class EngineState(BaseModel):
    """The engine that generates with models of each kind: `null` if no worker has it. `backend` is another server, asked first."""

    setting: GenerateEngine = Field(description="`GENERATE_ENGINE` of the service.")
    models: dict[str, Engine | None]
    backend: str | None


class System(BaseModel):
    """Workers, queues, kinds of job, the engine, the volume, memory and versions."""

    workers: list[WorkerState]
    queues: dict[str, QueueState]
    kinds: dict[str, KindState]
    engine: EngineState
    volume: VolumeState
    memory: MemoryState
    versions: dict[str, str] = Field(description="Versions of `graftwerk-service`, `python` and `redis`.")


@api.get("/api/system", responses={200: System, **problems(503)})
def system() -> Response:
    """Get the state of workers, queues, the volume and memory."""
    return json_response(read_system(state(), state().queue.statistics()))


@api.get("/metrics", responses={200: METRICS, **problems(503)})
def metrics() -> Response:
    """Get the state of queues, jobs, workers and the volume in Prometheus' format."""
    statistics = state().queue.statistics()
    system = read_system(state(), statistics)
    queues = {name: queue.model_dump() for name, queue in system.queues.items()}
    registry = CollectorRegistry()
    registry.register(ServiceCollector(statistics, system.workers, queues, system.volume.model_dump()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def read_system(state: AppState, statistics: Statistics) -> System:
    """Returns the present state."""
    jobs, workers = statistics.jobs, list(state.queue.workers())
    serving = Counter(worker.queue for worker in workers)
    queues = {
        name: QueueState(
            waiting=sum(jobs[kind, "queued"] for kind, row in KINDS.items() if row.queue == name),
            running=sum(jobs[kind, "running"] for kind, row in KINDS.items() if row.queue == name),
            workers=serving[name],
        )
        for name in QUEUES
    }
    return System(
        workers=workers, queues=queues, kinds=_kinds(statistics), engine=_engine(state), volume=_volume(state), memory=_memory(state),
        versions=service_versions() | redis_version(state.queue.redis),
    )  # fmt: skip


def _kinds(statistics: Statistics) -> dict[str, KindState]:
    jobs, oldest = statistics.jobs, statistics.oldest_wait_seconds
    return {
        kind: KindState(
            queue=row.queue, waiting=jobs[kind, "queued"], running=jobs[kind, "running"],
            oldest_wait_seconds=oldest.get(kind, 0.0),
        )
        for kind, row in KINDS.items()
    }  # fmt: skip


def _engine(state: AppState) -> EngineState:
    engines = state.engines.engines()
    return EngineState(
        setting=engines.setting,
        models={kind: engines.of(kind) for kind in ENGINES},
        backend=None if state.backend is None else state.backend.server,
    )


def _volume(state: AppState) -> VolumeState:
    store = state.store
    return VolumeState(
        models=len(store.names()), free_bytes=store.free_bytes(), total_bytes=store.total_bytes(),
        reserved_bytes=state.queue.reserved_bytes(store.staging.bytes_of),
    )  # fmt: skip


def _memory(state: AppState) -> MemoryState:
    memory = read_memory()
    reserved = reserved_memory(state.queue.redis, machine())
    return MemoryState(
        total_bytes=memory.total_bytes, available_bytes=memory.available_bytes, reserved_bytes=reserved
    )
