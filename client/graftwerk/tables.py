"""Tables of JSON objects; none is wider than the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graftwerk.field_text import heading, plain
from graftwerk.models import JsonObject

LEAST_COLUMNS = 20
"""Width to which a column of a table may be folded; on a narrower console its rows stand one below the other."""


def facts_view(facts: Mapping[str, Any]) -> RenderableType:
    """Returns the names and values of a JSON object; nested objects are indented, lists of objects are tables."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, [], {}, ""):
            grid.add_row(heading(name), _value_view(name, value))
    return grid


def _value_view(name: str, value: Any) -> RenderableType:
    if isinstance(value, dict):
        return facts_view(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return RowsView(value)
    return Text(plain(name, value))


class RowsView:
    """Table of JSON objects with a column for each name that has a value in any of them.

    On a console that is too narrow for its columns, the objects come one below the other.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self._names = list(
            dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, [], {}))
        )
        self._cells = [[plain(name, row.get(name)) for name in self._names] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table or the objects."""
        yield self._table() if self._least() <= options.max_width else self._blocks()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Returns the least and the full width."""
        if self._least() > options.max_width:
            return Measurement.get(console, options, self._blocks())
        return Measurement(self._least(), Measurement.get(console, options, self._table()).maximum)

    def _least(self) -> int:
        columns = zip(*self._cells, strict=True) if self._cells else ()
        widths = (max(map(cell_len, cells)) for cells in columns)
        headings = (len(heading(name)) for name in self._names)
        return sum(
            max(heading, min(LEAST_COLUMNS, width)) + 2
            for heading, width in zip(headings, widths, strict=False)
        )

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in self._names:
            table.add_column(heading(name), overflow="fold")
        for row in self._cells:
            table.add_row(*map(Text, row))
        return table

    def _blocks(self) -> Group:
        return Group(*(Padding(facts_view(row), (0, 0, 1, 0)) for row in self._rows))


def plan_view(plan: JsonObject) -> RenderableType:
    """Returns the view of a dry run's plan, with the warnings last and in yellow."""
    facts = {name: value for name, value in plan.items() if name != "warnings"}
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.get("warnings", [])]
    return Group(facts_view(facts), *warnings)
