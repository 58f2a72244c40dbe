"""Framing of server-sent events (WHATWG HTML, section 9.2)."""

from collections.abc import Iterable

from flask import Response


def comment(text: str) -> str:
    """Returns a frame that clients skip."""
    return f": {text}\n\n"


KEEPALIVE = comment("keep-alive")
"""Frame sent while there is no event: writing to the socket is the only way to notice a closed connection."""


def frame(data: str, *, event: str | None = None, id: str | None = None) -> str:
    """Returns one event; `data` must be a single line, as JSON is."""
    fields = {"id": id, "event": event, "data": data}
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None) + "\n"


def event_stream(frames: Iterable[str]) -> Response:
    """Returns a streaming response that proxies do not buffer or cache."""
    response = Response(frames, mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response
