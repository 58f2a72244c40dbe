"""Lists of jobs, newest first, filtered by kind, status and model."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from redis import Redis
from rq.utils import as_text

from services.errors import InvalidRequest
from services.jobs.indexes import IndexFields, ended_key, ensure_complete, known_kinds
from services.jobs.open_jobs import OpenJob, read_open
from services.jobs.records import JOBS_KEY, reaching_redis, read_jobs
from services.jobs.status import ENDED, Job, JobStatus


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Filter of a list; None selects all. `model` selects the jobs that read or make it."""

    kind: str | None = None
    status: JobStatus | None = None
    model: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if every job is selected."""
        return self == ALL_JOBS

    def matches(self, job: Job) -> bool:
        """Returns True if a job is selected."""
        return (
            self.kind in (None, job.kind)
            and self.status in (None, job.status)
            and (self.model is None or self.model.lower() in IndexFields.of(job.request).models)
        )

    def matches_open(self, job: OpenJob) -> bool:
        """Returns True if a job that is not finalized is selected."""
        return (
            self.kind in (None, job.kind)
            and self.status in (None, job.status)
            and (self.model is None or job.reads_or_makes(self.model))
        )

    def ended_keys(self, kinds: list[str]) -> list[str]:
        """Returns the keys of the sets of finalized jobs that are selected; `kinds` are all that there are."""
        model = None if self.model is None else self.model.lower()
        of_kinds = kinds if self.kind is None else [self.kind]
        statuses = sorted(ENDED) if self.status is None else sorted(ENDED & {self.status})
        return [ended_key(kind, status, model) for kind, status in product(of_kinds, statuses)]


ALL_JOBS = JobFilter()


def list_jobs(
    redis: Redis, selected: JobFilter, *, limit: int, after: str | None
) -> tuple[list[Job], str | None]:
    """Returns jobs, newest first, and the cursor of the next page (None after the last page).

    Raises:
        InvalidRequest: `after` is not a cursor of a listing.
    """
    below = None if after is None else _from_cursor(after)
    found: list[tuple[Job, int]] = []
    while len(found) <= limit:
        page = _newest(redis, selected, below, limit + 1 - len(found))
        if not page:
            break
        for job, created_us in zip(read_jobs(redis, list(page)), page.values(), strict=True):
            # an index may be older than the job: its real status and fields decide
            if job is not None and selected.matches(job):
                found.append((job, created_us))
        below = min(page.values())
    jobs = [job for job, _ in found[:limit]]
    return jobs, _to_cursor(found[limit - 1][1]) if len(found) > limit else None


def count_jobs(redis: Redis, selected: JobFilter) -> int:
    """Returns the number of selected jobs, from the sizes of the indexes."""
    if selected.is_empty:
        return int(redis.zcard(JOBS_KEY))
    ensure_complete(redis)
    # Open jobs are read first, as in `_newest`: one that is finalized meanwhile counts twice, and never not at all.
    unfinished = sum(selected.matches_open(job) for job in read_open(redis))
    with redis.pipeline(transaction=False) as pipe:
        for key in selected.ended_keys(known_kinds(redis)):
            pipe.zcard(key)
        sizes: list[int] = pipe.execute()
    return unfinished + sum(sizes)


@reaching_redis()
def newer_cursor(redis: Redis, selected: JobFilter, *, limit: int, after: str) -> str | None:
    """Returns the cursor of the page before the page at a cursor, None if that is the first page.

    Raises:
        InvalidRequest: `after` is not a cursor of a listing.
    """
    position = _from_cursor(after)
    times = sorted(_times_from(redis, selected, position, limit + 1))
    return _to_cursor(times[limit]) if len(times) > limit else None


def _times_from(redis: Redis, selected: JobFilter, position: int, count: int) -> list[int]:
    """Returns creation times of selected jobs that are not older than a position, among them the `count` oldest."""
    keys, times = [JOBS_KEY], list[int]()
    if not selected.is_empty:
        ensure_complete(redis)
        keys = selected.ended_keys(known_kinds(redis))
        found = [job for job in read_open(redis) if selected.matches_open(job)]
        times = [job.created_us for job in found if job.created_us >= position]
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.zrangebyscore(key, position, "+inf", start=0, num=count, withscores=True)
        ranges: list[Any] = pipe.execute()
    return times + [int(score) for entries in ranges for _, score in entries]


def _newest(redis: Redis, selected: JobFilter, below: int | None, count: int) -> Mapping[str, int]:
    """Returns ids of the newest selected jobs that are older than `below`, with their creation times, newest first."""
    if selected.is_empty:
        return dict(_ranges(redis, [JOBS_KEY], below, count))
    ensure_complete(redis)
    # Open jobs are read first: one that is finalized meanwhile is in both, and never in neither.
    found = {
        job.id: job.created_us
        for job in read_open(redis)
        if selected.matches_open(job) and (below is None or job.created_us < below)
    }
    found |= _ranges(redis, selected.ended_keys(known_kinds(redis)), below, count)
    newest = sorted(found.items(), key=lambda entry: entry[1], reverse=True)
    return dict(newest[:count])


def _ranges(redis: Redis, keys: list[str], below: int | None, count: int) -> dict[str, int]:
    """Returns the newest members of these sorted sets that are older than `below`, `count` of each set, with their scores."""
    newest = "+inf" if below is None else f"({below}"
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.zrevrangebyscore(key, newest, "-inf", start=0, num=count, withscores=True)
        ranges: list[Any] = pipe.execute()
    return {as_text(id): int(score) for entries in ranges for id, score in entries}


def _to_cursor(created_us: int) -> str:
    return base64.urlsafe_b64encode(str(created_us).encode()).decode().rstrip("=")


def _from_cursor(cursor: str) -> int:
    try:
        return int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"{cursor!r} is not a cursor.", "Pass on `after` as a listing returned it."
        ) from error
