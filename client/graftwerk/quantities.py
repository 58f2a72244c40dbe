"""Durations, times and counts in the form that people read."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units: `0.04 s`, `4.1 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.{1 if seconds >= 0.095 else 2}f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def local_time(time: datetime, now: datetime | None = None) -> str:
    """Returns a time in the zone of this machine, with the zone: `10:01 UTC` today, else `2026-01-02 03:04 UTC`."""
    local, today = time.astimezone(), (now or datetime.now().astimezone()).astimezone().date()
    return f"{local:%H:%M %Z}" if local.date() == today else f"{local:%Y-%m-%d %H:%M %Z}"


def full_local_time(time: datetime) -> str:
    """Returns a time in the zone of this machine with date, seconds and zone."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def magnitude(count: int) -> str:
    """Returns a count of parameters as models are named by it: `6.7B`, `135M`, `572k`."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f}{letter}"
    return str(count)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Returns a count with its noun: `1 file`, `1,234 rows`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def adapter_label(adapter: str | Mapping[str, Any]) -> str:
    """Returns an adapter of a request as the commands take it: `zh`, or `zh@0.5` with another scale than 1."""
    if isinstance(adapter, str):
        return adapter
    name, scale = adapter.get("name", "?"), adapter.get("scale")
    return str(name) if scale in (None, 1) else f"{name}@{scale:g}"
