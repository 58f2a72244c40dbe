"""Sequences in a limited memory for keys and values: those that do not fit wait, and all have the tokens that they have alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import InsufficientMemory
from services.generate import (
    Engine,
    Event,
    GenerationRequest,
    LoadedModel,
    MemoryShortage,
    TokenGenerated,
    kv_cache,
    prompt_cache,
)
from services.generate.kv_cache import BatchRunner
from services.generate.kv_memory import KVMemory
from services.generate.row_groups import attention_name
from services.jobs.status import WaitingFor
from services.kinds.generate import GenerateRequest
from services.models.store import ModelStore
from services.preflight import preflight
from services.sampling import Sampling
from tests.contract.generate.engine_driver import Driver, alone, drained, outputs_of, run_job
from tests.job_context import FakeExecution, job_context

TOKEN = 3 * 2 * 4 * 6 * 4  # layers, keys and values, heads, head_dim, float32
BLOCK = 8


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "BLOCK", BLOCK)
    monkeypatch.setattr(prompt_cache, "BLOCK", BLOCK)


def bytes_in_rows(engine: Engine) -> int:
    groups = engine._batch._cache._groups
    return sum(tensor.nbytes for group in groups for tensor in (*group.keys, *group.values))


def bytes_of_prompts(engine: Engine) -> int:
    return sum(
        tensor.nbytes
        for reader in engine._reading._readers
        for tensor in (*reader.cache.keys, *reader.cache.values)
    )


def crowd(prompts: list[list[int]], new_tokens: int = 40) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            (prompts[number % 5] * 3)[: 9 + 7 * number],
            Sampling(seed=number, max_new_tokens=new_tokens, n=1 + number % 2, logit_bias={2: -100}),
        )
        for number in range(6)
    ]


def test_a_token_takes_the_bytes_of_its_keys_and_values(loaded: LoadedModel) -> None:
    assert BatchRunner(loaded.model).token_bytes == TOKEN


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("tokens", [112, 300, 10_000])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_crowd_in_any_memory_has_the_same_tokens_within_the_limit(
    loaded: LoadedModel, prompts: list[list[int]], tokens: int, grouped: bool
) -> None:
    requests = crowd(prompts)
    expected = {request.id: alone(loaded, request) for request in requests}
    memory = KVMemory(tokens * TOKEN)
    engine, events = Engine(loaded, slots=8, chunk=BLOCK, memory=memory), []
    engine._batch._cache.is_grouped = grouped
    engine._memory._table = None if grouped else engine
    for request in requests:
        engine.submit(request)
    begun: list[str] = []
    while engine.has_work:
        events += engine.step()
        assert bytes_in_rows(engine) + bytes_of_prompts(engine) <= memory.held_bytes
        assert memory.held_bytes + memory.prefixes.size_bytes <= memory.limit_bytes
    assert outputs_of(events) == expected
    for event in events:
        if isinstance(event, TokenGenerated) and event.request_id not in begun:
            begun.append(event.request_id)
    assert (memory.held_bytes, memory.waiting) == (0, 0)
    assert sorted(begun) == sorted(expected)


@pytest.mark.usefixtures("small_blocks")
def test_a_row_without_memory_waits_and_goes_on_with_the_same_tokens(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    requests = [
        GenerationRequest(prompts[0][:5], Sampling(seed=seed, max_new_tokens=59, logit_bias={2: -100}))
        for seed in (1, 2)
    ]
    expected = {request.id: alone(loaded, request) for request in requests}
    engine = Engine(
        loaded, memory=KVMemory((64 + 40) * TOKEN)
    )  # each claims 64 columns, and has 32 next to another
    for request in requests:
        engine.submit(request)
    events: list[Event] = []
    counts = []
    while engine.has_work:
        found = engine.step()
        events += found
        counts.append([sum(_is_token(event, request) for event in found) for request in requests])
    assert [1, 0] in counts[5:]
    assert all(first for first, _ in counts[: counts.index([0, 1])])
    assert outputs_of(events) == expected


def _is_token(event: Event, request: GenerationRequest) -> bool:
    return isinstance(event, TokenGenerated) and event.request_id == request.id


def test_a_request_that_never_fits_is_refused_with_both_sizes(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(loaded, memory=KVMemory(100 * TOKEN))
    assert engine.most_tokens == 64
    with pytest.raises(InsufficientMemory) as caught:
        engine.submit(GenerationRequest(prompts[0][:10], Sampling(max_new_tokens=60)))
    assert "A prompt of 10 tokens and 60 new ones need" in caught.value.message
    assert f"{128 * TOKEN} bytes" in caught.value.message
    assert f"may use {100 * TOKEN}." in caught.value.message
    assert not engine.has_work
    beams = Sampling(num_beams=4, do_sample=False, max_new_tokens=20)
    with pytest.raises(InsufficientMemory, match=f"{4 * 30 * TOKEN} bytes"):
        engine.submit(GenerationRequest(prompts[0][:10], beams))
    request = GenerationRequest(prompts[0][:10], Sampling(seed=1, max_new_tokens=50))
    engine.submit(request)
    assert outputs_of(drained(engine))[request.id] == alone(loaded, request)


def test_requests_that_wait_name_what_they_need_and_what_is_held(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(loaded, memory=KVMemory(130 * TOKEN))
    requests = [
        GenerationRequest(prompts[0][:10], Sampling(seed=seed, max_new_tokens=50, logit_bias={2: -100}))
        for seed in range(4)
    ]
    first, second, third, fourth = [engine.submit(request) for request in requests]
    assert engine.memory_shortage([third]) is None  # not tried yet
    engine.step()
    expected = MemoryShortage(needed_bytes=64 * TOKEN, held_bytes=128 * TOKEN, limit_bytes=130 * TOKEN)
    assert engine.memory_shortage([third]) == engine.memory_shortage([fourth, third]) == expected
    assert engine.memory_shortage([first]) is engine.memory_shortage([second, third]) is None
    engine.cancel(first)
    engine.step()
    engine.step()
    assert engine.memory_shortage([third]) is None
    assert engine.memory_shortage([fourth]) == expected
    drained(engine)
    assert engine.memory_shortage([fourth]) is None


def test_rows_that_wait_for_columns_count_as_waiting(
    loaded: LoadedModel, prompts: list[list[int]], small_blocks: None
) -> None:
    engine = Engine(loaded, memory=KVMemory(104 * TOKEN))
    first, second = [
        engine.submit(
            GenerationRequest(prompts[0][:5], Sampling(seed=seed, max_new_tokens=59, logit_bias={2: -100}))
        )
        for seed in (1, 2)
    ]
    waited = 0
    while engine.has_work:
        events = engine.step()
        tokens = [event.request_id for event in events if isinstance(event, TokenGenerated)]
        if len(tokens) == 1 and not outputs_of(events):
            assert (engine.memory_shortage([second]) is not None) == (tokens == [first])
            assert engine.memory_shortage([first]) is engine.memory_shortage(
                [first, second]
            ) is None or tokens == [second]
            waited += tokens == [first]
        elif len(tokens) == 2:
            assert engine.memory_shortage([second]) is None
    assert waited > 10


def test_a_job_whose_outputs_all_wait_says_so(loaded: LoadedModel) -> None:
    stages: list[str] = []
    choice = GenerateRequest(
        kind="generate",
        model=loaded.folder.name,
        prompt_token_ids=[5, 6, 7],
        sampling=Sampling(seed=3, max_new_tokens=50, logit_bias={2: -100}),
    )
    driver = Driver(loaded, choice, memory=KVMemory(70 * TOKEN))
    first = driver.add(choice)
    context = job_context(driver.volume, run="9", report=lambda progress: stages.append(progress.stage))
    second = driver.add(choice, context)
    execution = context.execution
    assert isinstance(execution, FakeExecution)
    driver.run_until(lambda: bool(stages))
    assert execution.waits_for == WaitingFor(
        what="memory",
        message=f"An output needs {64 * TOKEN} bytes for keys and values; running ones hold {64 * TOKEN} of {70 * TOKEN}.",
    )
    driver.run_until(lambda: first.result is not None)
    assert set(stages[:-1]) == {"waiting for memory"}
    driver.run_until(lambda: second.result is not None)
    assert stages[-1] == "generating"
    assert execution.waits_for is None


def test_two_engines_share_the_memory_and_the_line(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    memory = KVMemory(130 * TOKEN)
    first, second = Engine(loaded, memory=memory), Engine(loaded, memory=memory)
    requests = [
        GenerationRequest(prompts[0][:10], Sampling(seed=seed, max_new_tokens=50, logit_bias={2: -100}))
        for seed in range(3)
    ]
    events: list[Event] = []
    for engine, request in zip((first, second, first), requests, strict=True):
        engine.submit(request)
        events += engine.step()
    assert (first.active, second.active, memory.waiting) == (1, 1, 1)
    while first.has_work or second.has_work:
        events += [*first.step(), *second.step()]
        assert first.active + second.active <= 2
    assert outputs_of(events) == {request.id: alone(loaded, request) for request in requests}


def test_sequences_without_jobs_give_their_memory_back(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    memory = KVMemory(130 * TOKEN)
    engine = Engine(loaded, slots=4, chunk=BLOCK, memory=memory)
    for seed in range(3):
        engine.submit(GenerationRequest(prompts[3][:12], Sampling(seed=seed, max_new_tokens=40)))
    engine.step()
    assert memory.held_bytes
    engine.drop_all()
    assert (memory.held_bytes, memory.waiting, engine.has_work, len(engine._batch)) == (0, 0, False, 0)


def test_an_output_without_a_limit_ends_where_half_of_the_memory_does(loaded: LoadedModel) -> None:
    sampling = Sampling(seed=3, max_new_tokens=1_000_000, logit_bias={2: -100})
    request = GenerateRequest(
        kind="generate",
        model=loaded.folder.name,
        prompt_token_ids=[5, 6, 7],
        sampling=sampling,
        fit_context=True,
    )
    result: Any = run_job(loaded, request, memory=KVMemory(128 * TOKEN))
    assert result.outputs[0].usage.completion_tokens == 64 - 3
    assert result.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 20}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 12}),
        ("phi3", {"pad_token_id": 0}),
        ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
        ("gemma3_text", {"head_dim": 8, "sliding_window": 8}),
        ("smollm3", {"pad_token_id": 0}),
        ("starcoder2", {}),
    ],
)
def test_the_plan_has_what_the_models_of_each_family_keep(
    tmp_path: Path, folder: Path, model_type: str, changes: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(
        model_type, vocab_size=420, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        **changes,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if model_type == "gemma2" else attention_name(model_type)
    )
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    sampling = {"max_new_tokens": 9}
    request = GenerateRequest.model_validate(
        {"kind": "generate", "model": "m", "prompt_token_ids": [4, 5], "sampling": sampling}
    )
    token_bytes = BatchRunner(model.eval()).token_bytes
    plan = preflight(request, ModelStore(tmp_path), ())
    assert plan.kv_cache_bytes == 11 * token_bytes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert plan.peak_memory_bytes == 350 * 2**20 + 4 * parameters + 11 * token_bytes
    assert read_checkpoint(tmp_path / "m").config.model_type == model_type
    assert torch.get_default_dtype() == torch.float32
