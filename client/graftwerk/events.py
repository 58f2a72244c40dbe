"""Server-sent events, read line by line (WHATWG HTML, "Interpreting an event stream")."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """One event: its id (for `Last-Event-ID`), its name and its data."""

    id: str
    name: str
    data: str


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events in the lines of a stream; comments (keep-alives) and an unfinished last event give nothing."""
    last_id, name, data = "", "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Event(last_id, name, "\n".join(data))
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id":
                last_id = value
            case "event":
                name = value
            case "data":
                data.append(value)
