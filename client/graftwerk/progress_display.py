"""Progress of running jobs: moving bars on a terminal, lines in a log."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from graftwerk.display import open_console, print_line
from graftwerk.models import Job
from graftwerk.models import Progress as JobProgress
from graftwerk.status_text import COLOR_OF

TITLE_SHARE = 3
"""A title takes a third of the line at most."""

SPINNER_AND_GAPS = 4
"""Columns of a line in addition to its title, its bar and its details."""

SPARE_LINES = 4
"""Lines of the terminal that are left free; where more jobs are shown, those that have ended leave the display."""

STATUS_TEXT = {"queued": "waiting", "succeeded": "done", "failed": "failed", "canceled": "canceled"}


class ProgressView(Protocol):
    """Display of the progress of jobs, used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: Job) -> None:
        """Updates the display of a job."""


def progress_view(console: Console, titles: Mapping[str, str] = MappingProxyType({})) -> ProgressView:
    """Returns moving bars for a terminal or below the cell of a notebook, and lines for a log.

    Args:
        titles: names of jobs by id, in place of their own titles.
    """
    if console.is_jupyter:
        return NotebookBars(console, titles)
    return Bars(console, titles) if console.is_terminal else Lines(console, titles)


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
    """A line for each job: title, bar, stage, share, time left, amount and rate, as many of them as fit."""

    def __init__(
        self, console: Console, titles: Mapping[str, str] = MappingProxyType({}), *, disable: bool = False
    ) -> None:
        bar_width = min(24, console.width // 5)
        self._details = DetailsColumn(console, bar_width)
        super().__init__(
            JobSpinner(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=bar_width, complete_style="cyan", finished_style="green"),
            self._details,
            console=console,
            disable=disable,
        )
        self._titles = titles
        self._bars: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def show(self, job: Job) -> None:
        """Updates the display of a job."""
        if job.id not in self._bars:
            self._bars[job.id] = self._added(job)
        bar, stage = self._bars[job.id], _stage(job)
        if stage != self._stages.get(job.id):
            # the units of two stages differ: a rate across both would be wrong
            self.reset(bar)
            self._stages[job.id] = stage
        self.update(bar, stage=stage, job=job, **_amounts(job))
        if job.ended:
            self.stop_task(bar)
            if len(self._bars) > self.console.height - SPARE_LINES:
                self.remove_task(self._bars.pop(job.id))

    def _added(self, job: Job) -> TaskID:
        title = Text(self._titles.get(job.id, job.title))
        title.truncate(self.console.width // TITLE_SHARE, overflow="ellipsis")
        self._details.title_width = max(self._details.title_width, title.cell_len)
        return self.add_task(title.plain, total=None, stage="", job=job)


class NotebookBars(Bars):
    """The same lines as a display of the notebook, replaced at each change; needs no widgets."""

    def __init__(self, console: Console, titles: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(console, titles, disable=True)
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


def _stage(job: Job) -> str:
    if job.progress and job.status == "running":
        return job.progress.stage
    return STATUS_TEXT.get(job.status, "starting")


def _amounts(job: Job) -> dict[str, Any]:
    """Returns the extent of a job's bar: full only for a job that has succeeded."""
    if job.status == "succeeded":
        return {"total": 1, "completed": 1}
    if job.progress is not None and job.progress.total > 0:
        return {"total": job.progress.total, "completed": job.progress.done}
    return {"total": 1, "completed": 0} if job.ended else {"total": None}


class JobSpinner(SpinnerColumn):
    """A spinner that is blank once the job has ended, in whichever way."""

    def render(self, task: Task) -> RenderableType:
        """Returns the column of one task."""
        return " " if task.fields["job"].ended else super().render(task)


class DetailsColumn(ProgressColumn):
    """Stage and figures, cut at the end of the line: `writing 25% · 0:41 left · 1.0 GB of 4.3 GB · 212.0 MB/s`.

    Attributes:
        title_width: width of the widest title.
    """

    def __init__(self, console: Console, bar_width: int) -> None:
        super().__init__(Column(no_wrap=True))
        self._console = console
        self._bar_width = bar_width
        self.title_width = 0

    def render(self, task: Task) -> Text:
        """Returns the column of one task."""
        job: Job = task.fields["job"]
        text = Text(task.fields["stage"], style=COLOR_OF[job.status])
        text.append(" · ".join(["", *_figures(task, job)]) if job.status == "running" else "", style="dim")
        if job.status == "succeeded":
            text.append(" 100%", style="dim")
        left = self._console.width - self._bar_width - self.title_width - SPINNER_AND_GAPS
        text.truncate(left, overflow="ellipsis")
        return text


def _figures(task: Task, job: Job) -> list[str]:
    progress = job.progress
    if progress is None or progress.total < 1:
        return []
    left = task.time_remaining if progress.eta_seconds is None else progress.eta_seconds
    found = [f"{progress.done / progress.total:.0%}"]
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        found.append(f"{minutes}:{seconds:02} left")
    found.append(_amount(progress))
    if task.speed:
        found.append(f"{_quantity(task.speed, progress.unit)}/s")
    return found


def _amount(progress: JobProgress) -> str:
    if progress.unit == "bytes":
        return f"{decimal(progress.done)} of {decimal(progress.total)}"
    return f"{progress.done:,} of {progress.total:,} {progress.unit}"


def _quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return decimal(int(value))
    return f"{value:,.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


class Lines:
    """A line for each new status of a job, and for each stage that begins the first time in it."""

    def __init__(self, console: Console, titles: Mapping[str, str] = MappingProxyType({})) -> None:
        self._console = console
        self._titles = titles
        self._status: dict[str, str] = {}
        self._stages: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, job: Job) -> None:
        """Prints the job's state if it is new."""
        if self._status.get(job.id) != job.status:
            self._status[job.id], self._stages[job.id] = job.status, set()
        stage = f": {job.progress.stage}" if job.progress and job.status == "running" else ""
        if stage not in self._stages[job.id]:
            self._stages[job.id].add(stage)
            print_line(self._console, f"{self._titles.get(job.id, job.title)}  {job.status}{stage}")
