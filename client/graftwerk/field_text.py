"""Names and values of the fields of JSON objects, as people read them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rich.filesize import decimal

from graftwerk.quantities import full_local_time


def heading(name: str) -> str:
    """Returns the name of a field as a heading."""
    return name.removesuffix("_bytes").replace("_", " ")


def plain(name: str, value: Any) -> str:
    """Returns the value of a field: bytes with their unit, times in the zone of this machine, lists joined."""
    if isinstance(value, list):
        separator = "\n" if any(" " in str(item) for item in value) else ", "
        return separator.join(plain(name, item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(key, item)}" for key, item in value.items())
    if isinstance(value, str) and name.endswith("_at"):
        return _local(value)
    return _FORMS.get(type(value), _as_text)(name, value)


_FORMS: Mapping[type, Callable[[str, Any], str]] = {
    bool: lambda _, value: "yes" if value else "no",
    int: lambda name, value: decimal(value) if "bytes" in name else f"{value:,}",
    float: lambda _, value: f"{value:,.6g}",
    type(None): lambda *_: "",
}


def _as_text(_: str, value: object) -> str:
    return str(value)


def _local(value: str) -> str:
    try:
        return full_local_time(datetime.fromisoformat(value))
    except ValueError:
        return value
