"""Budgets of JSON texts: counted exactly, whichever characters strings hold, and without a loop over the values."""

import json
import random
import time
from typing import Any, NamedTuple

import pytest

from services.files.json_budget import JsonBudget, excess

pytestmark = pytest.mark.disable_socket

CHARACTERS = 'a[]{},:"\\\n 0é'
"""Characters of the strings: each that has a meaning in JSON, and others."""

BODY_BYTES = 8 * 2**20


class Counts(NamedTuple):
    """Counts of a parsed value, by a walk through it."""

    containers: int
    members: int
    items: int
    depth: int


def counted(value: Any) -> Counts:
    """Returns the counts of a parsed value."""
    if not isinstance(value, list | dict):
        return Counts(0, 0, 0, 0)
    children = [counted(child) for child in (value.values() if isinstance(value, dict) else value)]
    members = len(value) if isinstance(value, dict) else 0
    sums = [sum(column) for column in list(zip(*children, strict=True))[:3]] or [0, 0, 0]
    return Counts(
        1 + sums[0],
        members + sums[1],
        max(1, len(value)) - members + sums[2],
        1 + max((child.depth for child in children), default=0),
    )


def budget_of(counts: Counts, **changes: int) -> JsonBudget:
    return JsonBudget(**{**counts._asdict(), **changes})


def random_value(source: random.Random, depth: int = 0) -> Any:
    def text() -> str:
        return "".join(source.choice(CHARACTERS) for _ in range(source.randrange(5)))

    if depth > 5 or source.random() < 0.4:
        return source.choice([text(), text(), text(), 1, -2.5e9, None, True])
    size = source.randrange(4)
    if source.random() < 0.5:
        return [random_value(source, depth + 1) for _ in range(size)]
    return {f"{text()}{number}": random_value(source, depth + 1) for number in range(size)}


def test_a_text_passes_its_own_counts_and_no_less() -> None:
    source = random.Random(7)
    names = {"containers": "lists and objects", "members": "members", "items": "elements"}
    for number in range(3000):
        value = random_value(source)
        text = json.dumps(value, ensure_ascii=number % 2 == 0, indent=number % 3 or None).encode()
        counts = counted(value)
        assert excess(text, budget_of(counts)) is None, text
        for field, name in names.items():
            if getattr(counts, field):
                found = excess(text, budget_of(counts, **{field: getattr(counts, field) - 1})) or ""
                assert name in found or "strings" in found, text
        if counts.depth:
            assert "levels deep" in (excess(text, budget_of(counts, depth=counts.depth - 1)) or ""), text


def test_the_excess_is_named_with_both_numbers() -> None:
    budget = JsonBudget(containers=2, members=9, items=9, depth=9)
    assert excess(b"[[], [], []]", budget) == "has 4 lists and objects, more than 2"


@pytest.mark.parametrize(
    ("start", "piece", "end"),
    [
        (b"[", b"[],", b"0]"),
        (b"[", b"{},", b"0]"),
        (b"{", b'"a":0,', b'"a":0}'),
        (b"[", b'"",', b"0]"),
        (b"[", b'"[[",', b"0]"),
        (b"[", b'"\\\\",', b"0]"),
        (b"[", b'"\\"",', b"0]"),
        (b"[", b"0,", b"0]"),
        (b"", b"[", b""),
        (b"[[", b"[],", b""),
    ],
)
def test_a_long_hostile_text_is_refused_in_little_time(start: bytes, piece: bytes, end: bytes) -> None:
    text = start + piece * ((BODY_BYTES - len(start + end)) // len(piece)) + end
    budget = JsonBudget(containers=100_000, members=100_000, items=1_000_000, depth=64)
    began = time.process_time()
    assert excess(text, budget) is not None
    assert time.process_time() - began < 1, (
        "about 0.05 s on a quiet machine; a loop over the values takes longer"
    )


def test_a_text_that_is_not_json_is_left_to_its_parser() -> None:
    budget = JsonBudget(containers=9, members=9, items=9, depth=9)
    for text in (b"", b"[", b"]]][", b'"', b"\xff\\", b'{"a" "b"}', b'"\\'):
        assert excess(text, budget) is None, text
    assert excess(b"[" * 9, budget) is None
    assert excess(b"[" * 10, JsonBudget(containers=99, members=9, items=99, depth=9)) is not None
