"""How far a job is: one value, handed up through a plain callable.

What computes knows no queue: it is given `report` (called with a `Progress` as often as it likes) and
`check_canceled` (raises `JobCanceled`), both of which do nothing by default.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` in `unit` ("bytes", "tokens", "files") within a named stage; `total` 0 is unknown."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = "bytes"

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1, or None where the total is not known."""
        return min(1.0, self.done / self.total) if self.total > 0 else None


Report = Callable[[Progress], None]
CheckCanceled = Callable[[], None]


def ignore_progress(progress: Progress) -> None:
    """The report of a caller who does not watch."""


def never_canceled() -> None:
    """The check of a caller who never cancels."""
