"""State of workers, queues and the volume, as JSON and for Prometheus."""

from collections import Counter
from collections.abc import Iterator

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel

from api.errors import problems
from api.openapi import METRICS, SECURITY
from api.responses import json_response
from api.state import AppState, state
from services.jobs.status import JobStatus, WorkerState
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


class _Gauges(Collector):
    """Gauges computed from Redis and the volume for each scrape: this process counts nothing."""

    def __init__(self, state: AppState) -> None:
        self.state, self.jobs = _observe(state)

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "graftwerk_jobs",
            "Jobs by kind and status, until their records expire.",
            labels=["kind", "status"],
        )
        for (kind, status), count in sorted(self.jobs.items()):
            jobs.add_metric([kind, status], count)
        yield jobs
        for field, text in (
            ("waiting", "Queued jobs."),
            ("running", "Running jobs."),
            ("workers", "Living workers."),
        ):
            gauge = GaugeMetricFamily(f"graftwerk_queue_{field}", text, labels=["queue"])
            for name, queue in self.state.queues.items():
                gauge.add_metric([name], getattr(queue, field))
            yield gauge
        yield GaugeMetricFamily("graftwerk_models", "Models on the volume.", self.state.volume.models)
        free_bytes = self.state.volume.free_bytes
        yield GaugeMetricFamily("graftwerk_volume_free_bytes", "Free space on the volume.", free_bytes)


@api.get("/api/system", responses={200: System, **problems(503)})
def system() -> Response:
    """Get the state of workers, queues and the volume."""
    return json_response(_observe(state())[0])


@api.get("/metrics", responses={200: METRICS, **problems(503)})
def metrics() -> Response:
    """Get the state of queues, jobs, workers and the volume in Prometheus' format."""
    registry = CollectorRegistry()
    registry.register(_Gauges(state()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _observe(state: AppState) -> tuple[System, Counter[tuple[str, JobStatus]]]:
    jobs = state.queue.count()
    workers = list(state.queue.workers())
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
    return System(workers=workers, queues=queues, volume=volume), jobs
