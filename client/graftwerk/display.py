"""What people see: a bar while a job runs, tables when it has ended, two lines when something is wrong."""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from graftwerk.models import Job, JsonObject
from graftwerk.models import Progress as JobProgress

COLOR_OF = {"queued": "dim", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}
PIPE_COLUMNS = 240
STANDS = {"queued": "waiting", "succeeded": "done", "failed": "failed", "canceled": "canceled"}


def open_console(*, stderr: bool = False) -> Console:
    """A console for results or (stderr) for what is said about them; a pipe gets lines that are not wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PIPE_COLUMNS)


class Watching(Protocol):
    """Something that shows how jobs go on, from the first look at them to their end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: Job) -> None:
        """Shows where the job now stands."""


def watching(console: Console) -> Watching:
    """Moving bars on a terminal, a line for each change in a log."""
    return Bars(console) if console.is_terminal else Lines(console)


class Bars(Progress):
    """A line for each job: what it is, where it stands, a bar, how much, how fast, how much longer."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[stage]}", style="dim"),
            RateColumn(),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def show(self, job: Job) -> None:
        """Shows where the job now stands."""
        if job.id not in self._bars:
            self._bars[job.id] = self.add_task(escape(job.title), total=None, stage="", progress=None)
        bar, progress = self._bars[job.id], job.progress
        stage = progress.stage if progress and job.status == "running" else STANDS.get(job.status, "starting")
        if stage != self._stages.get(job.id):
            # the units of two stages differ, and so would a rate across both
            self.reset(bar)
            self._stages[job.id] = stage
        color = COLOR_OF[job.status]
        amounts = {"total": 1, "completed": 1} if job.ended else _amounts(progress)
        if job.ended:
            progress = None
        self.update(bar, stage=f"[{color}]{escape(stage)}[/]", progress=progress, **amounts)
        if job.ended:
            self.stop_task(bar)


def _amounts(progress: JobProgress | None) -> dict[str, Any]:
    if progress is None or progress.total < 1:
        return {"total": None}
    return {"total": progress.total, "completed": progress.done}


class RateColumn(ProgressColumn):
    """Amount, rate and time left: `1.0 GB of 4.3 GB · 212.0 MB/s · 0:41 left`."""

    def render(self, task: Task) -> Text:
        """The column of one task."""
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
    """A line whenever a job's status or stage changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, job: Job) -> None:
        """Shows where the job now stands, if it has not just been said."""
        stage = f": {job.progress.stage}" if job.progress and job.status == "running" else ""
        line = f"{job.title}  {job.status}{stage}"
        if self._shown.get(job.id) != line:
            self._shown[job.id] = line
            self._console.print(escape(line), highlight=False)


# ---- results ------------------------------------------------------------------------------------------


def print_result(console: Console, job: Job) -> None:
    """An ended job's result: text for `generate`, facts for the other kinds."""
    if job.result is not None and "results_file" in job.result:
        console.print(facts_view({name: value for name, value in job.result.items() if name != "outputs"}))
    elif job.kind == "compare" and job.result is not None:
        print_comparison(console, job.result)
    elif job.kind == "generate" and job.result is not None:
        print_generated(console, job.result.get("outputs", []))
    elif job.result is not None:
        console.print(facts_view(job.result))


def print_generated(console: Console, outputs: Sequence[JsonObject]) -> None:
    """The generated texts as they are; each below its prompt where there are several."""
    for number, output in enumerate(outputs):
        if len(outputs) > 1:
            prompt = Text(str(output.get("prompt") or f"answer {number + 1}"), style="bold")
            console.print(prompt, soft_wrap=True)
        if "error" in output:
            complain(console, output["error"]["message"], output["error"]["hint"])
        else:
            print_text(console, output["text"])


def print_comparison(console: Console, result: JsonObject) -> None:
    """The variants' answers to each prompt, and where they part."""
    labels = [variant["label"] for variant in result["variants"]]
    for comparison in result["comparisons"]:
        console.print(Text(comparison["prompt"], style="bold"), soft_wrap=True)
        for label, output in zip(labels, comparison["outputs"], strict=True):
            console.print(Text(f"{label}:", style="cyan"), soft_wrap=True)
            print_generated(console, [output])
        for difference in comparison["differences"]:
            console.print(Text(_difference_line(difference), style="dim"), soft_wrap=True)
    for pair in result["pairs"]:
        one, other = pair["variants"]
        line = f"{one} and {other}: {pair['equal']} of {pair['compared']} answers equal"
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print(Text(f"seed {result['seed']}", style="dim"))


def _difference_line(difference: JsonObject) -> str:
    one, other = difference["variants"]
    if difference["token"] is None:
        return f"{one} = {other}"
    where = f"token {difference['token']}"
    if difference["character"] is not None:
        where += f", character {difference['character']}"
    return f"{one} ≠ {other} from {where} on"


def print_text(console: Console, text: str) -> None:
    """A model's text, letter for letter; on a terminal it must not steer the terminal."""
    console.print(Text(_harmless(console, text)), soft_wrap=True)


def print_piece(console: Console, text: str) -> None:
    """A piece of a model's text, right behind the one before."""
    console.out(_harmless(console, text), end="", highlight=False)


def _harmless(console: Console, text: str) -> str:
    return text.replace("\x1b", "␛") if console.is_terminal else text


def facts_view(facts: Mapping[str, Any]) -> RenderableType:
    """Names and values of a JSON object; objects in it are indented, lists of objects are tables."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, [], {}, ""):
            grid.add_row(_heading(name), _value_view(name, value))
    return grid


def _value_view(name: str, value: Any) -> RenderableType:
    if isinstance(value, dict):
        return facts_view(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return rows_view(value)
    return Text(_plain(name, value))


def rows_view(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of JSON objects; a column for each name that any of them has a value for."""
    names = list(
        dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, [], {}))
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(_heading(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(name, row.get(name))) for name in names))
    return table


def _heading(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _plain(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(name, item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(key, item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return decimal(value) if name.endswith("bytes") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "" if value is None else str(value)


def plan_view(plan: JsonObject) -> RenderableType:
    """A dry run's plan, warnings last and in yellow."""
    facts = {name: value for name, value in plan.items() if name != "warnings"}
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.get("warnings", [])]
    return Group(facts_view(facts), *warnings)


def jobs_view(jobs: Sequence[Job]) -> Table:
    """A table of jobs."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("id", "job", "status", "created", "progress"):
        table.add_column(heading, no_wrap=heading == "id")
    for job in jobs:
        created = f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S}" if job.created_at else ""
        table.add_row(
            job.id,
            escape(job.title),
            Text(job.status, style=COLOR_OF[job.status]),
            created,
            escape(_stands(job)),
        )
    return table


def _stands(job: Job) -> str:
    if job.error is not None:
        return job.error.code
    if job.status == "queued" and job.queue_position is not None:
        return f"place {job.queue_position} in the queue"
    if job.status == "running" and job.progress is not None:
        share = "" if job.progress.fraction is None else f" {job.progress.fraction:.0%}"
        return f"{job.progress.stage}{share}"
    return ""


def complain(console: Console, detail: str, hint: str = "") -> None:
    """An error in two lines: what happened, and what to do."""
    console.print(Text.assemble(("error: ", "bold red"), detail), soft_wrap=True)
    if hint:
        console.print(Text(f"       {hint}", style="dim"), soft_wrap=True)
