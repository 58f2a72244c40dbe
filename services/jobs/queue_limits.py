"""Limits of waiting jobs: of all, of one API key, and of each kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.errors import InvalidSettings, QueueFull
from services.jobs.open_jobs import OpenJob
from services.kinds import KINDS
from services.settings import Settings


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of the settings; None of `per_key` and a kind that is not in `of_kinds` have no limit of their own."""

    total: int
    per_key: int | None
    of_kinds: Mapping[str, int]

    @classmethod
    def of(cls, settings: Settings) -> "QueueLimits":
        """Returns the limits of these settings.

        Raises:
            InvalidSettings: QUEUE_LIMITS is malformed or names an unknown kind.
        """
        return cls(settings.queue_limit, settings.queue_limit_per_key, _parse(settings.queue_limits))

    @property
    def need_jobs(self) -> bool:
        """True if the waiting jobs themselves must be read, not only their number."""
        return self.per_key is not None or bool(self.of_kinds)

    def check_total(self, waiting: int) -> None:
        """Checks the number of waiting jobs before one more is queued.

        Raises:
            QueueFull: it has reached the limit.
        """
        if waiting >= self.total:
            raise QueueFull(
                f"{waiting} jobs wait, and the limit is {self.total}.",
                "Try again later, or raise QUEUE_LIMIT.",
            )

    def check(self, open_jobs: Sequence[OpenJob], *, kind: str, owner: str) -> None:
        """Checks the limits of a kind and of an owner (an API key) before a job is queued.

        Raises:
            QueueFull: one of the two numbers has reached its limit.
        """
        waiting = [job for job in open_jobs if job.status == "queued"]
        of_kind = sum(job.kind == kind for job in waiting)
        limit = self.of_kinds.get(kind)
        if limit is not None and of_kind >= limit:
            raise QueueFull(
                f"{of_kind} {kind} jobs wait, and the limit of this kind is {limit}.",
                f"Try again later, or raise {kind} in QUEUE_LIMITS.",
            )
        of_owner = sum(job.owner == owner for job in waiting)
        if self.per_key is not None and of_owner >= self.per_key:
            raise QueueFull(
                f"{of_owner} jobs of this key wait, and the limit of one key is {self.per_key}.",
                "Try again when some have run, cancel some, or raise QUEUE_LIMIT_PER_KEY.",
            )


def _parse(text: str) -> dict[str, int]:
    limits = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"([a-z-]+)=(\d{1,9})", part)
        if found is None or found[1] not in KINDS:
            raise InvalidSettings(
                f"GRAFTWERK_QUEUE_LIMITS has {part!r}, which is not a kind of job with a number.",
                f"Write kind=number, separated by commas; kinds are {', '.join(KINDS)}.",
            )
        limits[found[1]] = int(found[2])
    return limits
