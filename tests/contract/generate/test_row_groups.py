"""Rows of a KV cache in groups: their memory, their moves, and tokens that do not depend on them."""

from typing import Any

import pytest
import torch

from services.generate import Engine, GenerationRequest, LoadedModel, kv_cache
from services.generate.kv_cache import KVCache, columns_for
from services.generate.prompt_cache import PromptCache
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained, outputs_of

LAYERS, HEADS, SIZE = 2, 3, 4


def prompt_of(tokens: int, fill: float = 1.0) -> PromptCache:
    cache = PromptCache(tokens)
    for layer in range(LAYERS):
        states = torch.full((1, HEADS, tokens, SIZE), fill)
        cache.update(states, states, layer)
    cache.length = tokens
    return cache


def bytes_of(cache: KVCache) -> int:
    return sum(tensor.nbytes for group in cache._groups for tensor in (*group.keys, *group.values))


def step(cache: KVCache, fill: float = 1.0) -> Any:
    """Appends a token to each row; returns what the last layer gets as keys."""
    cache.begin_step(torch.device("cpu"))
    states = torch.full((len(cache.lengths), HEADS, 1, SIZE), fill)
    for layer in range(LAYERS):
        keys, _ = cache.update(states, states, layer)
    cache.end_step()
    return keys


@pytest.mark.parametrize(
    ("tokens", "columns"), [(1, 64), (64, 64), (65, 128), (128, 128), (129, 256), (4001, 4096)]
)
def test_columns_are_powers_of_two_of_blocks(tokens: int, columns: int) -> None:
    assert columns_for(tokens) == columns


def test_a_long_row_does_not_widen_the_short_ones() -> None:
    cache = KVCache(grouped=True)
    for tokens in (10, 20, 4000, 30):
        cache.join(prompt_of(tokens))
    token = LAYERS * 2 * HEADS * SIZE * 4  # keys and values, float32
    assert bytes_of(cache) == token * (4096 + 3 * 64)
    cache.leave(2)
    assert (cache.lengths, bytes_of(cache)) == ([10, 20, 30], token * 3 * 64)


def test_a_full_row_moves_with_its_content_and_keeps_its_number() -> None:
    cache = KVCache(grouped=True)
    for number, tokens in enumerate((63, 5, 100)):
        cache.join(prompt_of(tokens, fill=number + 1.0))
    for _ in range(3):
        found = step(cache, fill=9.0)
    assert cache.lengths == [66, 8, 103]
    by_row = {
        row: next(group.states([row], cache.lengths[row])[0]) for group in cache._groups for row in group.rows
    }
    for row, (tokens, fill) in enumerate(((63, 1.0), (5, 2.0), (100, 3.0))):
        assert by_row[row][0, 0, :, 0].tolist() == [fill] * tokens + [9.0] * 3
    assert [group.columns for group in cache._groups] == [64, 128]
    assert sorted(len(states) for states in found.states) == [1, 2]


def test_rows_that_are_full_at_once_move_together() -> None:
    cache = KVCache(grouped=True)
    for number, tokens in enumerate((63, 64, 63, 80)):
        cache.join(prompt_of(tokens, fill=number + 1.0))
    for _ in range(3):
        step(cache, fill=9.0)
    assert [(group.columns, sorted(group.rows)) for group in cache._groups] == [(128, [0, 1, 2, 3])]
    cache.leave(1)
    assert cache.lengths == [66, 83, 66]
    (group,) = cache._groups
    for row, (tokens, fill) in enumerate(((63, 1.0), (80, 4.0), (63, 3.0))):
        states = next(group.states([row], cache.lengths[row])[0])
        assert states[0, 0, :, 0].tolist() == [fill] * tokens + [9.0] * 3


def test_nan_of_a_row_that_has_left_does_not_stay() -> None:
    cache = KVCache(grouped=True)
    for fill in (1.0, float("nan")):
        cache.join(prompt_of(20, fill))
    cache.leave(1)
    cache.join(prompt_of(3))
    assert bool(step(cache).isfinite().all())


def test_a_model_with_one_group_has_one_tensor_for_all_rows() -> None:
    cache = KVCache(grouped=False)
    for tokens in (10, 100):
        cache.join(prompt_of(tokens))
    for _ in range(30):
        found = step(cache)
    assert found.shape == (2, HEADS, 136, SIZE)


@pytest.mark.parametrize("slots", [2, 7])
def test_requests_in_several_groups_have_the_same_tokens_as_alone(
    loaded: LoadedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    requests = [
        GenerationRequest(
            (prompts[number % 5] * (1 + number % 3))[:110], Sampling(seed=number, max_new_tokens=40)
        )
        for number in range(9)
    ]
    expected = {request.id: alone(loaded, request) for request in requests}
    monkeypatch.setattr(kv_cache, "BLOCK", 8)
    engine, events = Engine(loaded, slots=slots), []
    for request in requests:
        engine.submit(request)
        events += [*engine.step(), *engine.step()]
    assert outputs_of([*events, *drained(engine)]) == expected
