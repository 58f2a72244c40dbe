"""Memory of keys and values: a limit, a line, claims that are always met, and beginnings of prompts that make way."""

import random

import pytest
import torch

from services.generate.kv_memory import Holding, KVMemory
from services.generate.prefix_cache import Block

pytestmark = pytest.mark.disable_socket


def admit(memory: KVMemory, *claims: int, held: int = 1, table: object | None = None) -> list[Holding]:
    """Admits a request with sequences of these claims; returns nothing if it must wait."""
    found = [Holding(claim, held, table) for claim in claims]
    return found if memory.admit(memory.next_number(), found) else []


def test_claims_that_fit_together_run_together() -> None:
    memory = KVMemory(100)
    assert admit(memory, 60, 40, held=10)
    assert (memory.held_bytes, memory.waiting) == (20, 0)


def test_a_sequence_runs_next_to_one_whose_claim_leaves_what_it_holds() -> None:
    memory = KVMemory(100)
    [first] = admit(memory, 90, held=10)
    [second] = admit(memory, 90, held=5)
    assert not memory.grow(second, 11)  # the first one could not take its 90
    assert memory.grow(second, 10)
    assert memory.grow(first, 90)
    memory.release(first)
    assert memory.grow(second, 90)


def test_nothing_that_came_later_passes_a_request_that_waits() -> None:
    memory = KVMemory(100)
    [first] = admit(memory, 50, held=50)
    large, small = memory.next_number(), memory.next_number()
    assert not memory.admit(large, [Holding(60, 60)])
    assert not memory.admit(small, [Holding(1, 1)])
    assert memory.waiting == 2
    memory.release(first)
    assert memory.admit(large, [Holding(60, 60)])
    assert memory.admit(small, [Holding(1, 1)])
    assert memory.waiting == 0


def test_a_canceled_request_leaves_the_line() -> None:
    memory = KVMemory(100)
    admit(memory, 50, held=50)
    large, small = memory.next_number(), memory.next_number()
    assert not memory.admit(large, [Holding(60, 60)])
    memory.leave_line(large)
    assert memory.admit(small, [Holding(1, 1)])


def test_rows_of_one_table_are_as_wide_as_the_widest() -> None:
    memory, table = KVMemory(100), object()
    [wide] = admit(memory, 40, held=40, table=table)
    [narrow] = admit(memory, 40, held=10, table=table)
    assert memory.held_bytes == 80
    assert not admit(memory, 40, held=10, table=table)  # three of 40
    memory.leave_line(2)
    assert admit(memory, 20, held=20)  # of another table
    memory.release(wide)
    assert memory.held_bytes == 30
    assert memory.grow(narrow, 40)


def test_beginnings_of_prompts_make_way_for_sequences() -> None:
    memory = KVMemory(100, prefix_bytes=60)
    for key in (b"a", b"b", b"c"):
        memory.prefixes.put(key, Block("model", [torch.zeros(20, dtype=torch.int8)], []))
    [first] = admit(memory, 70, held=55)
    assert (memory.prefixes.size_bytes, memory.prefixes.evictions) == (40, 1)
    assert memory.grow(first, 70)
    assert [key for key in (b"a", b"b", b"c") if memory.prefixes.get(key)] == [b"c"]
    memory.release(first)
    assert memory.prefixes.limit_bytes == 60


@pytest.mark.parametrize("seed", range(20))
def test_any_crowd_ends_in_order_and_within_the_limit(seed: int) -> None:
    draw = random.Random(seed)
    memory, limit = KVMemory(100), 100
    waiting = [(memory.next_number(), draw.randint(1, limit)) for _ in range(30)]
    running: list[Holding] = []
    begun, rounds = [], 0
    while waiting or running:
        rounds += 1
        assert rounds < 10_000
        while waiting:
            number, claim = waiting[0]
            holding = Holding(claim, draw.randint(1, claim))
            if not memory.admit(number, [holding]):
                break
            running.append(holding)
            begun.append(number)
            waiting.pop(0)
        before = running[0].held
        for holding in running.copy():
            if holding.held == holding.claim:
                memory.release(holding)
                running.remove(holding)
            elif not memory.grow(holding, holding.held + 1):
                assert holding is not running[0]
            assert sum(one.held for one in running) == memory.held_bytes <= limit
        assert not running or running[0].held > before or running[0].held < limit
    assert begun == sorted(begun)
