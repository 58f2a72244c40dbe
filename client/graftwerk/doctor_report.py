"""Report of `graftwerk doctor`: a line per check as it is made, or JSON."""

import json

import typer
from rich.table import Table
from rich.text import Text

from graftwerk.display import open_console
from graftwerk.doctor import Check, Status, examine

EXIT_FAILED = 1
COLORS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def run_doctor(url: str, api_key: str | None, *, as_json: bool) -> None:
    """Prints the checks of a service.

    Raises:
        typer.Exit: one has failed.
    """
    console, checks = open_console(), []
    for check in examine(url, api_key):
        checks.append(check)
        if not as_json:
            console.print(line_of(check))
    has_failed = any(check.status == "failed" for check in checks)
    if as_json:
        found = {"url": url, "ok": not has_failed, "checks": [check.as_json() for check in checks]}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    if has_failed:
        raise typer.Exit(EXIT_FAILED)


def line_of(check: Check) -> Table:
    """Returns a check in columns of fixed widths, its remedy below what was found."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=7, no_wrap=True)
    table.add_column(width=15, no_wrap=True)
    table.add_column(overflow="fold")
    found = Text(check.detail)
    if check.hint:
        found.append(f"\n{check.hint}", style="dim")
    table.add_row(Text(check.status, style=COLORS[check.status]), check.name, found)
    return table
