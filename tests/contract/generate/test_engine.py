"""The engine against transformers' own `generate`, alone and in a batch."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from services.generate import (
    Engine,
    GenerationRequest,
    LoadedModel,
)
from services.sampling import Sampling
from tests.contract.generate.engine_driver import (
    alone,
    drained,
    outputs_of,
    run,
)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.0},
        {"repetition_penalty": 1.1},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 3, "min_new_tokens": 12},
    ],
)
def test_greedy_tokens_in_a_batch_are_those_of_transformers_one_by_one(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    sampling = Sampling(do_sample=False, max_new_tokens=40, **settings)
    requests = [GenerationRequest(prompt, sampling) for prompt in prompts]
    outputs = run(loaded, requests, slots=3)
    for request, prompt in zip(requests, prompts, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=0,
            **settings,
        )
        assert outputs[request.id][0].token_ids == expected[0, len(prompt) :].tolist()


def test_temperature_zero_is_greedy(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    cold = alone(loaded, GenerationRequest(prompts[0], Sampling(temperature=0, max_new_tokens=20)))
    greedy = alone(loaded, GenerationRequest(prompts[0], Sampling(do_sample=False, max_new_tokens=20)))
    assert cold[0].token_ids == greedy[0].token_ids


def mixed_requests(prompts: list[list[int]]) -> list[GenerationRequest]:
    settings = [
        Sampling(seed=1, max_new_tokens=40),
        Sampling(seed=2, max_new_tokens=7, temperature=1.5, top_k=0, top_p=1),
        Sampling(seed=0, do_sample=False, max_new_tokens=60),
        Sampling(seed=3, max_new_tokens=33, temperature=0.9, top_p=0.5, min_p=0.01, n=2),
        Sampling(seed=4, max_new_tokens=21, temperature=1, typical_p=0.8, presence_penalty=0.5),
        Sampling(seed=5, max_new_tokens=50, temperature=1.2, frequency_penalty=0.7, no_repeat_ngram_size=2),
        Sampling(seed=6, max_new_tokens=1),
    ]
    return [
        GenerationRequest(prompts[number % len(prompts)], settings[number % len(settings)], id=f"r{number}")
        for number in range(16)
    ]


@pytest.mark.parametrize("slots", [1, 5, 16])
def test_sixteen_mixed_requests_have_the_same_tokens_alone_and_in_a_batch(
    loaded: LoadedModel, prompts: list[list[int]], slots: int
) -> None:
    requests = mixed_requests(prompts)
    batch = run(loaded, requests, slots)
    for request in requests:
        expected = [output.token_ids for output in alone(loaded, request)]
        assert [output.token_ids for output in batch[request.id]] == expected


def test_requests_that_join_and_leave_at_any_token_have_the_same_tokens(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    requests = mixed_requests(prompts)
    engine, events = Engine(loaded, slots=16), []
    for request in requests:
        engine.submit(request)
        events += [*engine.step(), *engine.step()]
    batch = outputs_of([*events, *drained(engine)])
    assert batch == {request.id: alone(loaded, request) for request in requests}


def test_slots_limit_the_running_sequences_and_the_rest_waits(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(loaded, slots=3)
    assert (engine.free_slots, engine.has_work) == (3, False)
    engine.submit(GenerationRequest(prompts[0], Sampling(n=5, max_new_tokens=4, temperature=2.0, seed=1)))
    assert (engine.free_slots, engine.active, engine.has_work) == (0, 0, True)
    engine.step()
    assert engine.active == 3
    assert sorted(output.index for output in outputs_of(drained(engine)).popitem()[1]) == [0, 1, 2, 3, 4]
    assert (engine.free_slots, engine.active, engine.has_work) == (3, 0, False)


def test_every_output_of_a_request_has_its_own_seed(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    def tokens(seed: int | None) -> list[list[int]]:
        sampling = Sampling(seed=seed, n=3, temperature=1.5, max_new_tokens=20)
        return [output.token_ids for output in alone(loaded, GenerationRequest(prompts[0], sampling))]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)
    assert len({tuple(output) for output in tokens(7)}) == 3


def test_the_reported_seed_of_any_output_reproduces_it(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(n=3, temperature=1.5, max_new_tokens=20)
    for output in alone(loaded, GenerationRequest(prompts[0], sampling)):
        again = Sampling(seed=output.seed, temperature=1.5, max_new_tokens=20)
        assert alone(loaded, GenerationRequest(prompts[0], again))[0].token_ids == output.token_ids


# peft 0.21 reads a property that transformers 5.23 calls by another name.
def test_a_model_wrapped_in_an_adapter_generates_as_peft_does(
    folder: Path, loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    base: Any = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped: Any = get_peft_model(base, config).eval()
    engine_of = dataclasses.replace(loaded, model=wrapped)
    sampling = Sampling(do_sample=False, max_new_tokens=20)
    requests = [GenerationRequest(prompt, sampling) for prompt in prompts]
    outputs = run(engine_of, requests)
    for request, prompt in zip(requests, prompts, strict=True):
        expected = wrapped.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            repetition_penalty=1.1,
            pad_token_id=0,
        )
        assert outputs[request.id][0].token_ids == expected[0, len(prompt) :].tolist()
        assert outputs[request.id] != alone(loaded, request)
