"""Many queued jobs at once against the same jobs one after another."""

import statistics
import time
from typing import Any

from bench.job_requests import Json
from bench.service import Service, seconds_since, token_ids

Run = dict[str, Any]


def together(service: Service, asks: list[Json]) -> Run:
    """Runs all jobs queued at once."""
    start = time.time()
    ids = [service.submit(ask) for ask in asks]
    return _run(start, [service.wait(job_id) for job_id in ids])


def one_after_another(service: Service, asks: list[Json]) -> Run:
    """Runs each job after the previous one has ended."""
    start = time.time()
    return _run(start, [service.wait(service.submit(ask)) for ask in asks])


def _run(start: float, jobs: list[Json]) -> Run:
    """Latencies count from the start of the run, when all outputs were requested."""
    ends = [seconds_since(start, job["finished_at"]) for job in jobs]
    tokens = [token_ids(job) for job in jobs]
    return {
        "tokens": tokens, "seconds": max(ends), "tokens_per_second": sum(map(len, tokens)) / max(ends),
        "mean_latency": statistics.mean(ends),
    }  # fmt: skip


def compare(service: Service, asks: list[Json], runs: int) -> tuple[Json, list[str]]:
    """Returns medians of interleaved runs and their ratios; all token ids must equal those of the first solo run."""
    solo, crowd = [], []
    for _ in range(runs):
        solo.append(one_after_another(service, asks))
        crowd.append(together(service, asks))
    expected = solo[0]["tokens"]
    same = [sum(a == b for a, b in zip(run["tokens"], expected, strict=True)) for run in (*solo[1:], *crowd)]
    report: Json = {
        name: {
            key: round(statistics.median(run[key] for run in found), 2)
            for key in ("seconds", "tokens_per_second", "mean_latency")
        }
        for name, found in (("one_after_another", solo), ("together", crowd))
    }
    report["jobs"] = len(asks)
    report["new_tokens"] = sum(map(len, expected))
    report["throughput_ratio"] = _ratio(crowd, solo, "tokens_per_second")
    report["latency_ratio"] = _ratio(crowd, solo, "mean_latency")
    report["equal_to_solo"] = f"{min(same)}/{len(asks)}"
    return report, [] if min(same) == len(asks) else [
        f"only {min(same)} of {len(asks)} jobs wrote together what they wrote alone"
    ]


def _ratio(crowd: list[Run], solo: list[Run], key: str) -> float:
    return round(statistics.median(a[key] / b[key] for a, b in zip(crowd, solo, strict=True)), 3)
