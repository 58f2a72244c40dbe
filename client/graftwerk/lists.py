"""Lists of jobs and of models, one line each where the console is wide enough."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graftwerk.models import Job, JsonObject
from graftwerk.quantities import adapter_label, duration, local_time, magnitude
from graftwerk.status_text import COLOR_OF

WIDE_COLUMNS = 96
"""Width from which on jobs are a table."""

MODEL_COLUMNS = (
    "name",
    "kind",
    "size_bytes",
    "parameters",
    "vocabulary_size",
    "dtypes",
    "known_as",
    "problems",
)
"""Fields of a model in the list."""

DROPPED_COLUMNS = ("known_as", "dtypes", "vocabulary_size", "parameters", "problems")
"""Columns that a narrow console leaves out, in this order."""

FOLDED_COLUMNS = 20
"""Width that a folded text has at least."""

ENDLESS = 10_000
"""Width at which a table is measured that nothing constrains."""

_HEADINGS = {"size_bytes": "size", "vocabulary_size": "vocabulary", "known_as": "known as"}


MAIN_FACTS = (
    "name", "kind", "known_as", "size_bytes", "parameters", "dtypes", "vocabulary_size", "max_model_len", "ranks", "engine", "adapter",
    "created_at",
)  # fmt: skip
"""Fields of a model that `models show` prints without --verbose; files, origin and problems come after them."""


class JobsView:
    """Table of jobs: what, status, how long, when, and the id."""

    def __init__(self, jobs: Sequence[Job], now: datetime | None = None) -> None:
        self._jobs = jobs
        self._now = now or datetime.now().astimezone()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields a table, or on a narrow console two lines for each job."""
        if options.max_width < WIDE_COLUMNS:
            yield from (self._block(job) for job in self._jobs)
            return
        table = _table("id", "job", "status", "took", "created", fixed=("id", "took"))
        for job in self._jobs:
            state = f"\n{job.detail}" if job.detail else ""
            status = Text.assemble((job.status, COLOR_OF[job.status]), (state, "dim"))
            table.add_row(
                Text(job.id, style="dim"), Text(job.title), status, self._took(job), self._created(job)
            )
        yield table

    def _block(self, job: Job) -> Text:
        figures = (job.detail, self._took(job), self._created(job))
        more = "".join(f"  {figure}" for figure in figures if figure)
        status = (job.status, COLOR_OF[job.status])
        return Text.assemble(job.title, "  ", status, more, (f"\n  {job.id}", "dim"), overflow="fold")

    def _took(self, job: Job) -> str:
        if job.started_at is None:
            return ""
        return duration(((job.finished_at or self._now) - job.started_at).total_seconds())

    def _created(self, job: Job) -> str:
        return local_time(job.created_at, self._now) if job.created_at else ""


class ModelsView:
    """Table of models."""

    def __init__(self, models: Sequence[JsonObject]) -> None:
        self._models = models

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table, with as many columns as fit."""
        names = [name for name in MODEL_COLUMNS if any(model.get(name) for model in self._models)]
        unconstrained = options.update(max_width=ENDLESS)
        for dropped in DROPPED_COLUMNS:
            least = self._table(names, FOLDED_COLUMNS)
            if Measurement.get(console, unconstrained, least).maximum <= options.max_width:
                break
            names = [name for name in names if name != dropped]
        yield self._table(names)

    def _table(self, names: Sequence[str], longest: int | None = None) -> Table:
        table = _table(*(_HEADINGS.get(name, name) for name in names), fixed=("kind", "size", "parameters"))
        for model in self._models:
            table.add_row(*(_cell(name, model.get(name))[:longest] for name in names))
        return table


def main_facts(model: JsonObject) -> JsonObject:
    """Returns the fields of a model that most people look for, with its origin in one line."""
    facts = {name: model.get(name) for name in MAIN_FACTS}
    lineage = model.get("lineage") or {}
    inputs = [adapter_label(item) for item in lineage.get("inputs", [])]
    origin = {"made_by": f"{lineage.get('operation')} of {' + '.join(inputs)}"} if inputs else {}
    more = {name: model.get(name) for name in ("problems", "warnings")}
    return {**facts, **origin, "job": lineage.get("job_id"), "files": len(model.get("files", [])), **more}


def _cell(name: str, value: Any) -> Text:
    if not value:
        return Text("")
    if name == "problems":
        return Text(str(len(value)), style="red")
    return Text(_FORMS.get(name, str)(value))


_FORMS: Mapping[str, Callable[[Any], str]] = {
    "size_bytes": decimal,
    "parameters": magnitude,
    "vocabulary_size": "{:,}".format,
    "dtypes": ", ".join,
}


def _table(*headings: str, fixed: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in fixed)
    return table
