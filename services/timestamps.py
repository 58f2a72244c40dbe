"""Text form of times: ISO 8601 in UTC, with `Z`."""

from datetime import UTC, datetime


def utc_text(moment: datetime, *, timespec: str = "auto") -> str:
    """Returns a moment as text; `timespec` is that of `datetime.isoformat`."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
