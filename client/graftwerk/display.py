"""Output of the commands: results and tables on stdout, errors in two lines on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from graftwerk.inference_results import CompareResult, EmbedResult, FirstDifference, GenerateResult, Output
from graftwerk.models import Job, JsonObject, fields_of

COLOR_OF = {"queued": "dim", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}
PIPE_COLUMNS = 240


def open_console(*, stderr: bool = False) -> Console:
    """Returns a console for results, or with `stderr` for messages. Lines in a pipe are not wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PIPE_COLUMNS)


# ---- results ------------------------------------------------------------------------------------------


def print_result(console: Console, job: Job) -> None:
    """Prints an ended job's result: texts, vectors, or a table of fields."""
    result = job.result
    if isinstance(result, CompareResult):
        print_comparison(console, result)
    elif isinstance(result, GenerateResult) and result.results_file is None:
        print_outputs(console, result.outputs)
    elif isinstance(result, EmbedResult):
        for embedding in result.embeddings:
            console.print(json.dumps(embedding), soft_wrap=True, markup=False)
    elif result is not None:
        fields = fields_of(result)
        if isinstance(result, GenerateResult):
            del fields["outputs"]
        console.print(facts_view(fields))


def print_outputs(console: Console, outputs: Sequence[Output]) -> None:
    """Prints generated texts unchanged, each below its prompt if there are several."""
    for output in outputs:
        if len(outputs) > 1:
            console.print(Text(output.prompt or f"output {output.index + 1}", style="bold"), soft_wrap=True)
        if output.error is not None:
            complain(console, output.error.message, output.error.hint)
        else:
            print_text(console, output.text or "")


def print_comparison(console: Console, result: CompareResult) -> None:
    """Prints the variants' outputs for each prompt and their first differences."""
    labels = [variant.label for variant in result.variants]
    for comparison in result.comparisons:
        console.print(Text(comparison.prompt, style="bold"), soft_wrap=True)
        for label, output in zip(labels, comparison.outputs, strict=True):
            console.print(Text(f"{label}:", style="cyan"), soft_wrap=True)
            print_outputs(console, [output])
        for difference in comparison.differences:
            console.print(Text(_difference_line(difference), style="dim"), soft_wrap=True)
    for pair in result.pairs:
        one, other = pair.variants
        line = f"{one} and {other}: {pair.equal} of {pair.compared} outputs equal"
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print(Text(f"seed {result.seed}", style="dim"))


def _difference_line(difference: FirstDifference) -> str:
    one, other = difference.variants
    if difference.token is None:
        return f"{one} = {other}"
    position = f"token {difference.token}"
    if difference.character is not None:
        position += f", character {difference.character}"
    return f"{one} ≠ {other} from {position} on"


def print_text(console: Console, text: str) -> None:
    """Prints a model's text unchanged; on a terminal, escape sequences are made visible."""
    console.print(Text(_without_escapes(console, text)), soft_wrap=True)


def print_piece(console: Console, text: str) -> None:
    """Prints a piece of a model's text directly after the previous one."""
    console.out(_without_escapes(console, text), end="", highlight=False)


def _without_escapes(console: Console, text: str) -> str:
    return text.replace("\x1b", "␛") if console.is_terminal else text


def facts_view(facts: Mapping[str, Any]) -> RenderableType:
    """Returns the names and values of a JSON object; nested objects are indented, lists of objects are tables."""
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
    """Returns a table of JSON objects, with a column for each name that has a value in any of them."""
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
    """Returns the view of a dry run's plan, with the warnings last and in yellow."""
    facts = {name: value for name, value in plan.items() if name != "warnings"}
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.get("warnings", [])]
    return Group(facts_view(facts), *warnings)


def jobs_view(jobs: Sequence[Job]) -> Table:
    """Returns a table of jobs."""
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
            escape(_state(job)),
        )
    return table


def _state(job: Job) -> str:
    if job.error is not None:
        return job.error.code
    if job.status == "queued" and job.waiting_for is not None:
        return f"waiting for {job.waiting_for.what}: {job.waiting_for.message}"
    if job.status == "queued" and job.queue_position is not None:
        return f"position {job.queue_position} in the queue"
    if job.status == "running" and job.progress is not None:
        share = "" if job.progress.fraction is None else f" {job.progress.fraction:.0%}"
        return f"{job.progress.stage}{share}"
    return ""


def complain(console: Console, detail: str, hint: str = "") -> None:
    """Prints an error in two lines: the finding and the remedy."""
    console.print(Text.assemble(("error: ", "bold red"), detail), soft_wrap=True)
    if hint:
        console.print(Text(f"       {hint}", style="dim"), soft_wrap=True)
