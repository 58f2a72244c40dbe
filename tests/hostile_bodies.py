"""Hostile bodies of requests: within the limit of bytes, made to cost as much as possible."""

import json
from typing import Any

from tests.api_client import Json

LIMIT_BYTES = 8 * 2**20

GENERATE: Json = {"kind": "generate", "model": "m", "prompt": "x"}


def repeated(start: bytes, piece: bytes, end: bytes) -> bytes:
    """Returns a body of just the limit."""
    return start + piece * ((LIMIT_BYTES - len(start + end)) // len(piece)) + end


def with_field(name: str, value: Any) -> bytes:
    return json.dumps({**GENERATE, name: value}).encode()


HOSTILE = {
    "lists": repeated(b"[", b"[],", b"0]"),
    "objects": repeated(b"[", b"{},", b"0]"),
    "keys": repeated(b"{", b'"a":0,', b'"a":0}'),
    "different keys": b"{" + b",".join(b'"%06d":0' % number for number in range(700_000)) + b"}",
    "short strings": repeated(b"[", b'"",', b"0]"),
    "numbers": repeated(b"[", b"0,", b"0]"),
    "escapes": repeated(b'["', b"\\\\", b'"]'),
    "deep": repeated(b"", b"[", b""),
    "deeper than allowed": b"[" * 65 + b"]" * 65,
    "one long number": repeated(b"", b"9", b""),
    "one long kind": repeated(b'{"kind":"', b"x", b'"}'),
    "an unfinished string": repeated(b'["', b"x", b""),
    "many unknown fields": json.dumps({**GENERATE, **{f"f{number}": 1 for number in range(19_000)}}).encode(),
    "prompts that are numbers": with_field("prompts", [1] * 999_000),
    "prompts in great number": with_field("prompts", ["ab"] * 999_000),
    "stop texts that are numbers": with_field("sampling", {"stop": [1] * 999_000}),
    "metadata": with_field("metadata", {f"f{number}": 1 for number in range(19_000)}),
    "a source of each form": json.dumps(
        {"kind": "import", "target": "t", "source": {f"f{number}": 1 for number in range(19_000)}}
    ).encode(),
    "half a character among many": repeated(b'["\\ud800",', b'"abcdef",', b"0]"),
}

OPENAI = {
    "messages": {"messages": [1] * 999_000},
    "parts": {"messages": [{"role": "user", "content": [1] * 999_000}]},
    "tool calls": {"messages": [{"role": "user", "content": "x", "tool_calls": [1] * 999_000}]},
    "stop": {"messages": [{"role": "user", "content": "x"}], "stop": [1] * 999_000},
    "unknown": {"messages": [], **{f"f{number}": 1 for number in range(19_000)}},
}
