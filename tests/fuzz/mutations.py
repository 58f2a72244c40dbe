"""Strategies of hypothesis: bytes and JSON values that differ from sound ones in a few places, and ones made from nothing."""

import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.sampled_from([2**31, 2**63, -(2**63), 10**400]),
    st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=8),
    st.sampled_from(["", "\ud800", "a.b", "llama", "LORA", "lora_A", "F16", "\x00", "(a+)+b", "../x", "model.safetensors", "0" * 600]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.sampled_from(
    [0, 1, 2, 7, 8, 9, 127, 128, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
)


@st.composite
def mutated_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    """Bytes with one to five changes: a byte, a number, a part left out, repeated or moved, or the end cut off."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["set", "number", "drop", "repeat", "insert", "cut"])):
            case "set":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":
                form = draw(st.sampled_from(["<B", "<H", "<I", "<Q"]))
                data[at : at + struct.calcsize(form)] = struct.pack(
                    form, draw(NUMBERS) % 256 ** struct.calcsize(form)
                )
            case "drop":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def mutated_json(draw: st.DrawFn, seed: Any) -> bytes:
    """JSON with one to three values replaced, left out or added, at any depth."""
    value = json.loads(json.dumps(seed))
    for _ in range(draw(st.integers(1, 3))):
        value = _with_change(draw, value)
    return json.dumps(value).encode()


def _with_change(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(["inside", "inside", "replace", "drop", "add"])):
        case "inside":
            value[key] = _with_change(draw, value[key])
        case "replace":
            value[key] = draw(VALUES)
        case "drop":
            del value[key]
        case "add" if isinstance(value, dict):
            value[draw(st.text(max_size=8) | st.sampled_from(keys).map(lambda name: f"{name}x"))] = draw(
                VALUES
            )
        case _:
            value.append(draw(VALUES))
    return value


def pieces_of(*fragments: bytes) -> st.SearchStrategy[bytes]:
    """Bytes made of fragments of a format, in any order."""
    return st.lists(st.sampled_from(fragments) | st.binary(max_size=3), max_size=40).map(b"".join)


def either(
    *strategies: st.SearchStrategy[bytes], form: Callable[[bytes], bytes] = bytes
) -> st.SearchStrategy[bytes]:
    """Bytes of one of the strategies, in the form of a file."""
    return st.one_of(*strategies).map(form)
