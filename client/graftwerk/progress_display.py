"""Progress of running jobs: moving bars on a terminal, lines in a log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from graftwerk.display import open_console
from graftwerk.models import Job
from graftwerk.models import Progress as JobProgress
from graftwerk.status_text import COLOR_OF

STATUS_TEXT = {"queued": "waiting", "succeeded": "done", "failed": "failed", "canceled": "canceled"}


class ProgressView(Protocol):
    """Display of the progress of jobs, used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: Job) -> None:
        """Updates the display of a job."""


def progress_view(console: Console) -> ProgressView:
    """Returns moving bars for a terminal or below the cell of a notebook, and lines for a log."""
    if console.is_jupyter:
        return NotebookBars(console)
    return Bars(console) if console.is_terminal else Lines(console)


@contextmanager
def transfer_report(kind: str, name: str, *, shown: bool) -> Iterator[Callable[[JobProgress], None]]:
    """Yields a function that shows the progress of an upload or a download on stderr, as that of a job is shown."""
    if not shown:
        yield lambda _: None
        return
    transfer = Job(id=kind, kind=kind, status="running", request={"target": name})
    with progress_view(open_console(stderr=True)) as view:
        yield lambda progress: view.show(transfer.model_copy(update={"progress": progress}))
        view.show(transfer.model_copy(update={"status": "succeeded"}))


class Bars(Progress):
    """A line for each job: title, bar, stage, amount, rate and time left."""

    def __init__(self, console: Console, *, disable: bool = False) -> None:
        super().__init__(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[stage]}", style="dim"),
            RateColumn(),
            console=console,
            disable=disable,
        )
        self._bars: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def show(self, job: Job) -> None:
        """Updates the display of a job."""
        if job.id not in self._bars:
            self._bars[job.id] = self.add_task(escape(job.title), total=None, stage="", progress=None)
        bar, progress = self._bars[job.id], job.progress
        stage = (
            progress.stage
            if progress and job.status == "running"
            else STATUS_TEXT.get(job.status, "starting")
        )
        if stage != self._stages.get(job.id):
            # the units of two stages differ: a rate across both would be wrong
            self.reset(bar)
            self._stages[job.id] = stage
        color = COLOR_OF[job.status]
        amounts = {"total": 1, "completed": 1} if job.ended else _amounts(progress)
        if job.ended:
            progress = None
        self.update(bar, stage=f"[{color}]{escape(stage)}[/]", progress=progress, **amounts)
        if job.ended:
            self.stop_task(bar)


class NotebookBars(Bars):
    """The same lines as a display of the notebook, replaced at each change; needs no widgets."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, disable=True)
        self._display: Any = None

    def show(self, job: Job) -> None:
        """Updates the display of a job."""
        from IPython.display import display  # noqa: PLC0415  (a notebook has it, a terminal need not)

        super().show(job)
        table = self.make_tasks_table(self.tasks)
        if self._display is None:
            show: Any = display  # it has no types
            self._display = show(table, display_id=True)
        else:
            self._display.update(table)


def _amounts(progress: JobProgress | None) -> dict[str, Any]:
    if progress is None or progress.total < 1:
        return {"total": None}
    return {"total": progress.total, "completed": progress.done}


class RateColumn(ProgressColumn):
    """Amount, rate and time left: `1.0 GB of 4.3 GB · 212.0 MB/s · 0:41 left`."""

    def render(self, task: Task) -> Text:
        """Returns the column of one task."""
        progress: JobProgress | None = task.fields["progress"]
        if progress is None:
            return Text("")
        parts = [_amount(progress)]
        if task.speed:
            parts.append(f"{_quantity(task.speed, progress.unit)}/s")
        if progress.eta_seconds is not None:
            minutes, seconds = divmod(round(progress.eta_seconds), 60)
            parts.append(f"{minutes}:{seconds:02} left")
        return Text(" · ".join(part for part in parts if part), style="dim")


def _amount(progress: JobProgress) -> str:
    if progress.total < 1:
        return ""
    if progress.unit == "bytes":
        return f"{decimal(progress.done)} of {decimal(progress.total)}"
    return f"{progress.done:,} of {progress.total:,} {progress.unit}"


def _quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return decimal(int(value))
    return f"{value:,.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


class Lines:
    """A line for each change of a job's status or stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, job: Job) -> None:
        """Prints the job's state if it differs from the line before."""
        stage = f": {job.progress.stage}" if job.progress and job.status == "running" else ""
        line = f"{job.title}  {job.status}{stage}"
        if self._shown.get(job.id) != line:
            self._shown[job.id] = line
            self._console.print(escape(line), highlight=False)
