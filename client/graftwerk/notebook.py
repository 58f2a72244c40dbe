"""HTML of jobs, results and models in notebooks: small tables without colors, so that light and dark themes both fit."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graftwerk.field_text import heading, plain

MAX_ROWS = 20
"""Entries of a list that are shown."""

MAX_DEPTH = 3
"""Levels of objects that are shown as tables; deeper ones are text."""

_LEFT = ' style="text-align: left; vertical-align: top; white-space: pre-wrap"'


def html_of(title: str, fields: Mapping[str, Any], depth: int = 0) -> str:
    """Returns a table of the fields that have a value, below a title; every text is escaped."""
    rows = "".join(
        f"<tr><th{_LEFT}>{escape(heading(name))}</th><td{_LEFT}>{_value_html(name, value, depth)}</td></tr>"
        for name, value in fields.items()
        if value not in (None, [], {}, "")
    )
    caption = f"<p><b>{escape(title)}</b></p>" if title else ""
    return f"{caption}<table><tbody>{rows}</tbody></table>"


def _value_html(name: str, value: Any, depth: int) -> str:
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        return html_of("", value, depth + 1)
    if _is_rows(value) and depth < MAX_DEPTH:
        return _rows_html(value)
    return escape(_text(name, value))


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _rows_html(rows: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if value not in (None, [], {}, "")
    )
    head = "".join(f"<th{_LEFT}>{escape(heading(name))}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td{_LEFT}>{escape(_text(name, row.get(name)))}</td>' for name in names)}</tr>"
        for row in rows[:MAX_ROWS]
    )
    rest = f"<p>… and {len(rows) - MAX_ROWS:,} more</p>" if len(rows) > MAX_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _text(name: str, value: Any) -> str:
    """Returns the text of a value; long lists are cut."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(str(key), item)}" for key, item in value.items())
    if not isinstance(value, list):
        return plain(name, value)
    items = [_text(name, item) for item in value[:MAX_ROWS]]
    separator = "\n" if any(" " in item for item in items) else ", "
    rest = [f"… and {len(value) - MAX_ROWS:,} more"] if len(value) > MAX_ROWS else []
    return separator.join([*items, *rest])
