"""Counters of ended jobs since the first start of the service: outcomes, durations, and the work that they did.

A job is counted in the transaction that finalizes it, which happens once. They are fields of one hash; the name of a field is
a JSON list of the counter and its labels.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.jobs.status import Job
from services.kinds.shared import JobResult, Usage

COUNTERS_KEY = "graftwerk:counters"

BUCKETS_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
"""Upper limits of the histograms' buckets; the last bucket has none."""

ENDED = "ended"
RUN_SECONDS = "run"
WAIT_SECONDS = "wait"
WORK = "work"


@dataclass(slots=True)
class Histogram:
    """Numbers of observations in each of `BUCKETS_SECONDS` and beyond, and the sum of all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_SECONDS) + 1))
    sum_seconds: float = 0.0


@dataclass(slots=True)
class Counters:
    """All counters: `ended` by kind, status and code, histograms by kind, `work` by kind and unit."""

    ended: dict[tuple[str, str, str], int] = field(default_factory=dict)
    run: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    wait: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    work: dict[tuple[str, str], int] = field(default_factory=dict)


def count_end(pipe: Pipeline, job: Job) -> None:
    """Counts an ended job."""
    code = job.error.code if job.error is not None else ""
    pipe.hincrby(COUNTERS_KEY, _name(ENDED, job.kind, job.status, code), 1)
    ended_at = job.finished_at or job.created_at
    started_at = job.started_at or ended_at
    _observe(pipe, WAIT_SECONDS, job.kind, (started_at - job.created_at).total_seconds())
    if job.started_at is not None:
        _observe(pipe, RUN_SECONDS, job.kind, (ended_at - job.started_at).total_seconds())
    for unit, amount in work_of(job.result).items():
        pipe.hincrby(COUNTERS_KEY, _name(WORK, job.kind, unit), amount)


def work_of(result: JobResult | None) -> Mapping[str, int]:
    """Returns the bytes and tokens of a result, as far as its kind counts them."""
    usages = [getattr(result, "usage", None)]
    if usages == [None]:
        usages = [getattr(output, "usage", None) for output in getattr(result, "outputs", None) or []]
    known = [usage for usage in usages if isinstance(usage, Usage)]
    work = {
        "bytes_read": getattr(result, "bytes_read", None) or 0,
        "bytes_written": getattr(result, "bytes_written", None) or 0,
        "prompt_tokens": sum(usage.prompt_tokens for usage in known),
        "completion_tokens": sum(usage.completion_tokens for usage in known),
    }
    return {unit: amount for unit, amount in work.items() if amount}


def read_counters(redis: Redis) -> Counters:
    """Returns all counters."""
    counters = Counters()
    for name, value in redis.hgetall(COUNTERS_KEY).items():
        _add(counters, json.loads(name), as_text(value))
    return counters


def _add(counters: Counters, name: list[str], value: str) -> None:
    match name:
        case ["ended", kind, status, code]:
            counters.ended[kind, status, code] = int(value)
        case ["work", kind, unit]:
            counters.work[kind, unit] = int(value)
        case ["run" | "wait" as which, kind, "sum"]:
            getattr(counters, which)[kind].sum_seconds = float(value)
        case ["run" | "wait" as which, kind, bucket]:
            getattr(counters, which)[kind].counts[int(bucket)] = int(value)


def _observe(pipe: Pipeline, which: str, kind: str, seconds: float) -> None:
    seconds = max(0.0, seconds)  # clocks of two machines differ
    pipe.hincrby(COUNTERS_KEY, _name(which, kind, str(bisect_left(BUCKETS_SECONDS, seconds))), 1)
    pipe.hincrbyfloat(COUNTERS_KEY, _name(which, kind, "sum"), seconds)


def _name(*parts: str) -> str:
    return json.dumps(parts)
