"""Account of the keys that a run has left in Redis: each kind has a reason and a largest number."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from redis import Redis

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
QUEUE = "(?:convert|merge|generate)"


@dataclass(frozen=True, kw_only=True)
class KeyKind:
    """Keys of one kind: `per_job` of them for each job at most, and `fixed` ones; `is_expiring` if Redis removes them."""

    pattern: str
    reason: str
    per_job: int = 0
    fixed: int = 0
    is_expiring: bool = False


KEY_KINDS = (
    KeyKind(
        pattern=f"graftwerk:job:{UUID}", reason="record of each job, until the janitor removes it", per_job=1
    ),
    KeyKind(
        pattern=f"graftwerk:log:{UUID}", reason="log of each job that wrote one", per_job=1, is_expiring=True
    ),
    KeyKind(pattern=f"graftwerk:events:{UUID}", reason="events of each job", per_job=1, is_expiring=True),
    KeyKind(
        pattern="graftwerk:(events|jobs|ended|kinds|service|volume|models|counters|engine)",
        reason="all events, all jobs, kinds, the ids of service and volume, descriptions of models, counters, engine",
        fixed=9,
    ),
    KeyKind(pattern="graftwerk:ended:[a-z-]+:[a-z]+", reason="ended jobs by kind and status", fixed=36),
    KeyKind(
        pattern="graftwerk:ended:[a-z-]+:[a-z]+:.+", reason="ended jobs by kind, status and model", per_job=4
    ),
    KeyKind(
        pattern="graftwerk:(memory-wanted:.+|volume-unavailable)",
        reason="reasons why jobs wait",
        fixed=2,
        is_expiring=True,
    ),
    KeyKind(pattern="graftwerk:session-secret", reason="secret that signs sessions", fixed=1),
    KeyKind(
        pattern="graftwerk:signed-out:.+", reason="sessions that were ended", fixed=100, is_expiring=True
    ),
    KeyKind(pattern="graftwerk:(janitor|indexing)", reason="locks", fixed=2, is_expiring=True),
    KeyKind(pattern=f"rq:job:{UUID}", reason="RQ's job", per_job=1, is_expiring=True),
    KeyKind(pattern=f"rq:results:{UUID}", reason="results of RQ's jobs", per_job=1, is_expiring=True),
    KeyKind(
        pattern=f"rq:job::?{UUID}:(dependents|dependencies)",
        reason="jobs after others",
        per_job=2,
        is_expiring=True,
    ),
    KeyKind(
        pattern=f"rq:execution:{UUID}:[0-9a-f]{{32}}",
        reason="executions whose last heartbeat came after their end",
        per_job=3,
        is_expiring=True,
    ),
    KeyKind(pattern="rq:(queues|workers|registries)", reason="RQ's sets of names", fixed=3),
    KeyKind(pattern=f"rq:workers:{QUEUE}", reason="names of the workers of a queue", fixed=3),
    KeyKind(pattern=f"rq:(finished|failed):{QUEUE}", reason="ended jobs of a queue", fixed=6),
    KeyKind(
        pattern=f"rq:queue:{QUEUE}:intermediate:first_seen:{UUID}",
        reason="times at which jobs were between queue and worker",
        per_job=1,
        is_expiring=True,
    ),
    KeyKind(pattern="rq:clean_groups", reason="lock of RQ's cleaning", fixed=1, is_expiring=True),
    KeyKind(
        pattern="rq:worker:.+",
        reason="workers, also dead ones until they expire",
        fixed=200,
        is_expiring=True,
    ),
)
"""Everything else is a leak: queues, started jobs, reservations of disk and memory, names of targets must be gone."""


@dataclass(frozen=True, slots=True)
class KeyCount:
    """Number of keys of one kind and its limit."""

    reason: str
    count: int
    limit: int


def count_keys(redis: Redis, jobs: int) -> tuple[list[KeyCount], list[str]]:
    """Returns the counts by kind, and the problems: unexplained keys, and kinds with too many."""
    counts: Counter[KeyKind] = Counter()
    problems = []
    for key in sorted(_text(key) for key in redis.scan_iter(count=1000)):
        kind = next((kind for kind in KEY_KINDS if re.fullmatch(kind.pattern, key)), None)
        if kind is None:
            problems.append(f"the key {key} is not explained")
        elif kind.is_expiring and redis.ttl(key) == -1:
            problems.append(f"the key {key} does not expire")
        if kind is not None:
            counts[kind] += 1
    rows = [KeyCount(kind.reason, counts[kind], kind.per_job * jobs + kind.fixed) for kind in KEY_KINDS]
    problems += [
        f"{row.reason}: {row.count} keys, at most {row.limit}" for row in rows if row.count > row.limit
    ]
    return rows, problems


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
