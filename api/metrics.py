"""State of workers, queues and the volume, as JSON and for Prometheus."""

from collections import Counter

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel

from api.collector import ServiceCollector
from api.errors import problems
from api.openapi import METRICS, SECURITY
from api.responses import json_response
from api.state import AppState, state
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


class VolumeState(BaseModel):
    """The model volume."""

    models: int
    free_bytes: int


class System(BaseModel):
    """Workers, queues and the volume."""

    workers: list[WorkerState]
    queues: dict[str, QueueState]
    volume: VolumeState


@api.get("/api/system", responses={200: System, **problems(503)})
def system() -> Response:
    """Get the state of workers, queues and the volume."""
    return json_response(_system(state(), state().queue.statistics()))


@api.get("/metrics", responses={200: METRICS, **problems(503)})
def metrics() -> Response:
    """Get the state of queues, jobs, workers and the volume in Prometheus' format."""
    statistics = state().queue.statistics()
    system = _system(state(), statistics)
    queues = {name: queue.model_dump() for name, queue in system.queues.items()}
    registry = CollectorRegistry()
    registry.register(ServiceCollector(statistics, system.workers, queues, system.volume.model_dump()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _system(state: AppState, statistics: Statistics) -> System:
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
    volume = VolumeState(models=len(state.store.names()), free_bytes=state.store.free_bytes())
    return System(workers=workers, queues=queues, volume=volume)
