"""Beginnings of prompts that are read once: the same bits as without, bounded, least recently used."""

import dataclasses

import pytest
import torch

from services.generate import Engine, GenerationRequest, LoadedModel
from services.generate.adapter_stack import AdapterStack
from services.generate.guide import GuideMaker
from services.generate.kv_cache import BatchRunner
from services.generate.kv_memory import KVMemory
from services.generate.prefix_cache import Block, PrefixCache, chain_key
from services.generate.prompt_reader import PromptReader, Reading
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained, outputs_of

CHUNK = 8
GREEDY = Sampling(do_sample=False, max_new_tokens=12, seed=1)
SYSTEM = [3 + (7 * at + at * at) % 390 for at in range(5 * CHUNK + 3)]


@pytest.fixture
def memory() -> KVMemory:
    return KVMemory(10**9)


@pytest.fixture
def prefixes(memory: KVMemory) -> PrefixCache:
    return memory.prefixes


def engine_of(loaded: LoadedModel, memory: KVMemory) -> Engine:
    return Engine(loaded, slots=8, chunk=CHUNK, memory=memory)


def read_whole(loaded: LoadedModel, prefixes: PrefixCache, token_ids: list[int]) -> torch.Tensor:
    reading = Reading(batch=BatchRunner(loaded.model), chunk=CHUNK, prefixes=prefixes, owner="model")
    reader = PromptReader(reading, GenerationRequest(token_ids, GREEDY), [])
    read_to_end(reading, reader)
    return reader.logits


def read_to_end(reading: Reading, reader: PromptReader) -> None:
    while reader.next_tokens:
        token_ids = reader.begin_chunk()
        reader.end_chunk(token_ids, reading.batch.read_chunk(token_ids, reader.cache, kept=1))


@pytest.mark.parametrize("end", [1, CHUNK - 3, CHUNK - 2, CHUNK, 3 * CHUNK])
def test_the_logits_with_a_cached_prefix_are_the_same_bits(
    loaded: LoadedModel, prefixes: PrefixCache, end: int
) -> None:
    question = [5 + 11 * at % 300 for at in range(end)]
    expected = read_whole(loaded, PrefixCache(0), [*SYSTEM, *question])
    read_whole(loaded, prefixes, [*SYSTEM, 399, 398])
    found = read_whole(loaded, prefixes, [*SYSTEM, *question])
    assert prefixes.reused_tokens == 5 * CHUNK
    assert torch.equal(found, expected)


def test_a_prompt_of_whole_chunks_reads_its_last_one_again(
    loaded: LoadedModel, prefixes: PrefixCache
) -> None:
    ids = SYSTEM[: 4 * CHUNK]
    first = read_whole(loaded, prefixes, ids)
    assert torch.equal(read_whole(loaded, prefixes, ids), first)
    assert prefixes.reused_tokens == 3 * CHUNK


def test_later_requests_read_only_the_rest_and_have_the_same_tokens(
    loaded: LoadedModel, memory: KVMemory, tokens_read: list[int]
) -> None:
    requests = [GenerationRequest([*SYSTEM, 20 + number], GREEDY, id=f"{number}") for number in range(3)]
    expected = {request.id: alone(loaded, request) for request in requests}
    engine = engine_of(loaded, memory)
    del tokens_read[:]
    for request in requests:
        engine.submit(request)
        assert outputs_of(drained(engine)) == {request.id: expected[request.id]}
    assert [rows for rows in tokens_read if rows > 1] == [*[CHUNK] * 5, 4, 4, 4]


def test_prompts_that_arrive_together_share_what_one_of_them_has_read(
    loaded: LoadedModel, memory: KVMemory, tokens_read: list[int]
) -> None:
    engine = engine_of(loaded, memory)
    requests = [GenerationRequest([*SYSTEM, 20 + number], GREEDY) for number in range(4)]
    for request in requests:
        engine.submit(request)
    outputs = outputs_of(drained(engine))
    assert sum(rows == CHUNK for rows in tokens_read) == 5
    for request in requests:
        assert outputs[request.id][0].token_ids == alone(loaded, request)[0].token_ids


def test_another_model_and_other_adapters_have_blocks_of_their_own(
    loaded: LoadedModel, spoiled: LoadedModel, prefixes: PrefixCache
) -> None:
    guides = GuideMaker(loaded.tokenizer, loaded.rows)
    stacks = [
        AdapterStack(identity=name, tokenizer=loaded.tokenizer, guides=guides, rows=loaded.rows)
        for name in "ab"
    ]
    reading = Reading(batch=BatchRunner(loaded.model), chunk=CHUNK, prefixes=prefixes, owner="one")
    readings = [reading, dataclasses.replace(reading, owner="two")]
    for reads in readings:
        for stack in (None, *stacks):
            reader = PromptReader(reads, GenerationRequest(SYSTEM, GREEDY, adapters=stack), [])
            reader.request = dataclasses.replace(reader.request, adapters=None)  # read by the base alone
            read_to_end(reads, reader)
    assert (prefixes.reused_tokens, prefixes.read_tokens) == (0, 6 * len(SYSTEM))
    size = prefixes.size_bytes
    prefixes.forget("one")
    assert prefixes.size_bytes == size // 2


def test_a_scored_prompt_has_all_its_scores_and_leaves_its_blocks(
    loaded: LoadedModel, memory: KVMemory, prefixes: PrefixCache
) -> None:
    scored = GenerationRequest(SYSTEM, GREEDY, prompt_logprobs=1)
    expected = alone(loaded, scored)
    for _ in range(2):
        engine = engine_of(loaded, memory)
        engine.submit(scored)
        [found] = outputs_of(drained(engine)).values()
        assert found[0].token_ids == expected[0].token_ids
        assert len(found[0].prompt_logprobs or []) == len(SYSTEM)
    assert prefixes.reused_tokens == 0
    engine.submit(GenerationRequest(SYSTEM, GREEDY))
    drained(engine)
    assert prefixes.reused_tokens == 5 * CHUNK


def test_an_engine_frees_its_blocks(loaded: LoadedModel, memory: KVMemory, prefixes: PrefixCache) -> None:
    engine = engine_of(loaded, memory)
    engine.submit(GenerationRequest(SYSTEM, GREEDY))
    drained(engine)
    assert (
        prefixes.size_bytes == 5 * CHUNK * 3 * 2 * 4 * 6 * 4
    )  # layers, keys and values, heads, head_dim, float32
    engine.close()
    assert prefixes.size_bytes == 0


def block(size_bytes: int) -> Block:
    half = torch.zeros(size_bytes // 2, dtype=torch.int8)
    return Block("model", [half], [half])


def test_the_least_recently_used_block_is_dropped_and_a_chain_from_its_end() -> None:
    prefixes = PrefixCache(30)
    first, second = chain_key(b"", [1]), chain_key(chain_key(b"", [1]), [2])
    other, later = chain_key(b"", [3]), chain_key(b"", [4])
    for key in (first, second, other):
        prefixes.put(key, block(10))
    prefixes.touch([first, second])
    prefixes.put(later, block(10))
    assert (prefixes.get(other), prefixes.size_bytes) == (None, 30)
    prefixes.put(other, block(10))
    assert [key for key in (first, second, later) if prefixes.get(key) is None] == [second]
    prefixes.put(b"large", block(40))
    assert (prefixes.get(b"large"), prefixes.size_bytes) == (None, 30)


def test_a_key_depends_on_everything_before_the_block() -> None:
    assert chain_key(b"", [1, 2]) != chain_key(b"", [2, 1])
    assert chain_key(chain_key(b"a", [1]), [2]) != chain_key(chain_key(b"b", [1]), [2])
