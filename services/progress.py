"""Progress of a job: one value, passed up through a callable.

Code that computes does not know the queue. It gets `report`, which it may call with a `Progress` at any rate, and
`check_canceled`, which raises `JobCanceled`; both do nothing by default.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress within a named stage: `done` of `total` in `unit` ("bytes", "tokens", "files"); a `total` of 0 is unknown."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = "bytes"

    @property
    def fraction(self) -> float | None:
        """Share that is done, between 0 and 1; None if the total is unknown."""
        return min(1.0, self.done / self.total) if self.total > 0 else None


Report = Callable[[Progress], None]
CheckCanceled = Callable[[], None]


def ignore_progress(progress: Progress) -> None:
    """Ignores the progress."""


def never_canceled() -> None:
    """Returns: the caller never cancels."""
