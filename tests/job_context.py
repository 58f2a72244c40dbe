"""Context of a job that runs without a queue: nothing is reported, reserved or canceled unless a test says so."""

from collections.abc import Callable, Sequence
from pathlib import Path

from services.errors import GraftwerkError
from services.jobs.disk_reservations import DiskNeed
from services.jobs.execution import JobExecution
from services.jobs.status import WaitingFor
from services.kinds.generate import TokenPiece
from services.models.store import ModelStore
from services.progress import CheckCanceled, Progress, Report, ignore_progress, never_canceled
from services.settings import Settings
from worker.lifecycle import JobContext


class FakeExecution(JobExecution):
    """Execution without Redis: it keeps log lines, pieces of text and errors, and calls the functions of the test."""

    def __init__(
        self,
        job_id: str = "job",
        run: str = "1",
        report: Report = ignore_progress,
        check_canceled: CheckCanceled = never_canceled,
        ensure_current: Callable[[], None] = lambda: None,
    ) -> None:
        self.job_id, self.execution_id, self.service = job_id, run, ""
        self.lines: list[str] = []
        self.pieces: list[TokenPiece] = []
        self.errors: list[GraftwerkError] = []
        self.waits_for: WaitingFor | None = None
        self._on_report, self._on_check, self._on_ensure = report, check_canceled, ensure_current

    def report(self, progress: Progress, waits_for: WaitingFor | None = None) -> None:
        """Passes the progress to the test, and keeps what the job waits for."""
        self.waits_for = waits_for
        self._on_report(progress)

    def check_canceled(self) -> None:
        """Raises the error that the test has chosen, if any."""
        self._on_check()

    def ensure_current(self) -> None:
        """Raises the error that the test has chosen, if any."""
        self._on_ensure()

    def reserve_disk(self, need: DiskNeed) -> None:
        """Does nothing: there is enough space."""

    def require_memory(self, needed_bytes: int) -> None:
        """Does nothing: there is enough memory."""

    def log(self, line: str) -> None:
        """Keeps the line."""
        self.lines.append(line)

    def flush(self) -> None:
        """Does nothing: progress is never held back."""

    def fail(self, error: GraftwerkError) -> None:
        """Keeps the error."""
        self.errors.append(error)

    def publish_tokens(self, pieces: Sequence[TokenPiece]) -> None:
        """Keeps the pieces."""
        self.pieces.extend(pieces)


def job_context(
    volume: Path,
    *,
    job_id: str = "job",
    run: str = "1",
    report: Report = ignore_progress,
    check_canceled: CheckCanceled = never_canceled,
    ensure_current: Callable[[], None] = lambda: None,
) -> JobContext:
    """Returns the context of one execution of a job on the volume."""
    execution = FakeExecution(job_id, run, report, check_canceled, ensure_current)
    return JobContext(ModelStore(volume), Settings(models_dir=volume), execution)
