"""Hooks of a caller into long work: progress, cancellation, and the journal that makes it resumable."""

from dataclasses import dataclass
from pathlib import Path

from services.progress import CheckCanceled, Report, ignore_progress, never_canceled


@dataclass(frozen=True, slots=True)
class WriteHooks:
    """Progress, cancellation and resumption of one piece of work.

    Attributes:
        report: Called with each step of progress.
        check_canceled: Called between blocks and tensors; raises JobCanceled to stop the work.
        journal: File that records the finished tensors, so that a killed run can be resumed. It must not lie in the folder
            that is written. None records nothing.
    """

    report: Report = ignore_progress
    check_canceled: CheckCanceled = never_canceled
    journal: Path | None = None
