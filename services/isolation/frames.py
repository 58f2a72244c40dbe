"""Frames between the two processes: the length in 8 bytes, big-endian, then JSON in UTF-8."""

import json
from typing import Any

LENGTH_BYTES = 8


def to_frame(value: Any) -> bytes:
    """Returns a JSON value as a frame. Lone surrogates are kept."""
    content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def from_content(content: bytes | bytearray) -> Any:
    """Returns the JSON value of a frame's content. Raises ValueError."""
    return json.loads(content.decode("utf-8", "surrogatepass"))
