"""Text form of times: ISO 8601 in UTC, with `Z`."""

from datetime import UTC, datetime


def utc_now() -> str:
    """Returns the present moment as text, to the millisecond."""
    return utc_text(datetime.now(UTC), timespec="milliseconds")


def utc_text(moment: datetime, *, timespec: str = "auto") -> str:
    """Returns a moment as text; `timespec` is that of `datetime.isoformat`."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
