"""Prometheus' metrics, computed from Redis and the volume for each scrape: no process counts anything itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.jobs.counters import BUCKETS_SECONDS, Histogram
from services.jobs.statistics import Statistics
from services.jobs.status import WorkerState
from services.kinds import KINDS

QUEUE_GAUGES = (("waiting", "Queued jobs."), ("running", "Running jobs."), ("workers", "Living workers."))

WORK_COUNTERS = (
    ("bytes_read", "Bytes of models that succeeded jobs have read."),
    ("bytes_written", "Bytes of models that succeeded jobs have written."),
    ("prompt_tokens", "Tokens of the prompts of succeeded jobs."),
    ("completion_tokens", "Tokens that succeeded jobs have generated."),
)

KV_GAUGES = (
    ("limit_bytes", "Most bytes for keys and values of running sequences and kept prefixes of a worker."),
    ("held_bytes", "Bytes of keys and values of running sequences."),
    ("waiting_requests", "Prompts that wait for memory of keys and values."),
    ("prefix_bytes", "Bytes of kept prefixes."),
)

KV_COUNTERS = (
    ("prefix_hits", "Prompts that began like an earlier one, since the start of the worker."),
    ("prefix_reused_tokens", "Tokens of prompts that were found in kept prefixes."),
    ("prefix_read_tokens", "Tokens of prompts that were computed."),
    ("prefix_evictions", "Kept blocks that were dropped for others or for running sequences."),
)

LimitsAndCounts = list[tuple[str, float]]


class ServiceCollector(Collector):
    """Metrics of jobs, queues, workers and the volume.

    Args:
        statistics: numbers of all jobs.
        workers: the living workers.
        queues: `waiting`, `running` and `workers` of each queue.
        volume: number of `models` and `free_bytes`.
    """

    def __init__(
        self,
        statistics: Statistics,
        workers: Sequence[WorkerState],
        queues: Mapping[str, Mapping[str, int]],
        volume: Mapping[str, int],
    ) -> None:
        self.statistics = statistics
        self.workers = workers
        self.queues = queues
        self.volume = volume

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics."""
        yield from self._jobs()
        yield from self._ended()
        yield from self._queues()
        yield from self._workers()
        pending = self.statistics.pending_deliveries
        yield GaugeMetricFamily("graftwerk_deliveries_pending", "Messages to webhooks that are due.", pending)
        yield GaugeMetricFamily("graftwerk_models", "Models on the volume.", self.volume["models"])
        free_bytes = self.volume["free_bytes"]
        yield GaugeMetricFamily("graftwerk_volume_free_bytes", "Free space on the volume.", free_bytes)

    def _jobs(self) -> Iterator[Metric]:
        jobs = self.statistics.jobs
        yield _gauges(
            "graftwerk_jobs", "Jobs by kind and status, until their records expire.", ("kind", "status"), jobs
        )
        waiting = {(kind,): jobs[kind, "queued"] for kind in KINDS}
        yield _gauges("graftwerk_waiting_jobs", "Waiting jobs by kind.", ("kind",), waiting)
        oldest = self.statistics.oldest_wait_seconds
        waits = {(kind,): oldest.get(kind, 0.0) for kind in KINDS}
        text = "Seconds since the submission of the oldest waiting job; 0 without one."
        yield _gauges("graftwerk_oldest_wait_seconds", text, ("kind",), waits)

    def _ended(self) -> Iterator[Metric]:
        counters = self.statistics.counters
        text = "Jobs that have ended, by outcome and the code of their error."
        ended = CounterMetricFamily("graftwerk_jobs_ended", text, labels=["kind", "status", "code"])
        for labels, count in sorted(counters.ended.items()):
            ended.add_metric(labels, count)
        yield ended
        yield _histograms("graftwerk_job_run_seconds", "Time from start to end of a job.", counters.run)
        yield _histograms(
            "graftwerk_job_wait_seconds", "Time from submission to start of a job.", counters.wait
        )
        for unit, text in WORK_COUNTERS:
            family = CounterMetricFamily(f"graftwerk_{unit}", text, labels=["kind"])
            for kind in sorted({kind for kind, of_unit in counters.work if of_unit == unit}):
                family.add_metric([kind], counters.work[kind, unit])
            yield family

    def _queues(self) -> Iterator[Metric]:
        for name, text in QUEUE_GAUGES:
            values = {(queue,): state[name] for queue, state in self.queues.items()}
            yield _gauges(f"graftwerk_queue_{name}", text, ("queue",), values)

    def _workers(self) -> Iterator[Metric]:
        now = datetime.now(UTC)
        ages = {(w.name, w.queue): (now - w.last_heartbeat).total_seconds() for w in self.workers}
        text = "Seconds since the last heartbeat of a worker."
        yield _gauges("graftwerk_worker_heartbeat_age_seconds", text, ("worker", "queue"), ages)
        resident = {(w.name, model): 1 for w in self.workers for model in w.models}
        text = "1 for each model in the memory of a worker."
        yield _gauges("graftwerk_resident_model", text, ("worker", "model"), resident)
        yield from self._kv_caches()

    def _kv_caches(self) -> Iterator[Metric]:
        found = {w.name: w.kv_cache.model_dump() for w in self.workers if w.kv_cache is not None}
        for name, text in KV_GAUGES:
            values = {(worker,): state[name] for worker, state in found.items()}
            yield _gauges(f"graftwerk_kv_cache_{name}", text, ("worker",), values)
        for name, text in KV_COUNTERS:
            family = CounterMetricFamily(f"graftwerk_{name}", text, labels=["worker"])
            for worker, state in sorted(found.items()):
                family.add_metric([worker], state[name])
            yield family


def _gauges(name: str, text: str, labels: Sequence[str], values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in sorted(values.items()):
        family.add_metric(label_values, value)
    return family


def _histograms(name: str, text: str, found: Mapping[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["kind"])
    for kind, histogram in sorted(found.items()):
        family.add_metric([kind], _cumulative(histogram.counts), histogram.sum_seconds)
    return family


def _cumulative(counts: Iterable[int]) -> LimitsAndCounts:
    limits = [*(str(float(limit)) for limit in BUCKETS_SECONDS), "+Inf"]
    return list(zip(limits, map(float, accumulate(counts)), strict=True))
