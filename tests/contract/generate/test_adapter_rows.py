"""Rows with different adapters in one batch, against transformers with the changed weights."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from services.errors import VocabularyMismatch
from services.generate import Engine, GenerationRequest, LoadedModel, load_model
from services.generate.adapter_stack import AdapterStack, Factors, LoadedAdapter
from services.generate.guide import GuideMaker
from services.sampling import Sampling
from tests.contract.generate.engine_driver import VOCABULARY, drained, outputs_of, run

GREEDY = Sampling(do_sample=False, repetition_penalty=1.0, max_new_tokens=24)
MORE = 7
"""Rows that the adapters with own embeddings add to the vocabulary."""


@pytest.fixture
def base(folder: Path) -> LoadedModel:
    """A model of its own for each test: the engine changes its modules."""
    return load_model(folder)


def adapter(reference: Any, name: str, *, rank: int, paths: Sequence[str]) -> LoadedAdapter:
    factors = {}
    for path in paths:
        out, inputs = reference.get_submodule(path).weight.shape
        factors[path] = Factors(torch.randn(rank, inputs) * 0.3, torch.randn(rank, out) * 0.3)
    return LoadedAdapter(name, factors)


def paths(layers: Sequence[int], *modules: str) -> list[str]:
    return [f"model.layers.{layer}.{module}" for layer in layers for module in modules]


def stack(loaded: LoadedModel, *adapters: tuple[LoadedAdapter, float], **tensors: Any) -> AdapterStack:
    head = tensors.get("head")
    rows = loaded.rows if head is None else head.shape[0]
    guides = GuideMaker(loaded.tokenizer, rows)
    return AdapterStack(
        identity=str(id(adapters)), tokenizer=loaded.tokenizer, guides=guides, rows=rows, adapters=adapters,
        **tensors,
    )  # fmt: skip


@pytest.fixture
def stacks(base: LoadedModel, reference: Any) -> list[AdapterStack | None]:
    """Eight stacks: other ranks, modules and scales, two adapters in one, one adapter at two scales, grown vocabularies."""
    torch.manual_seed(5)
    attention = ("self_attn.q_proj", "self_attn.v_proj")
    first = adapter(reference, "first", rank=4, paths=paths(range(3), *attention))
    second = adapter(reference, "second", rank=9, paths=paths((0, 2), "mlp.down_proj", "self_attn.q_proj"))
    third = adapter(reference, "third", rank=1, paths=[*paths((1,), "mlp.gate_proj"), "lm_head"])
    wide = torch.randn(VOCABULARY + MORE, 48)
    return [
        None,
        stack(base, (first, 1.0)),
        stack(base, (first, -0.4)),
        stack(base, (second, 1.0)),
        stack(base, (first, 0.5), (second, 2.0)),
        stack(base, (third, 1.5)),
        stack(base, (second, 1.0), embeddings=wide, head=torch.randn(VOCABULARY + MORE, 48)),
        stack(base, (third, 1.0), embeddings=wide, head=wide),
    ]


def expected_tokens(
    reference: Any, applied: AdapterStack | None, prompt: list[int], **options: Any
) -> list[int]:
    """The tokens of transformers with the weights changed in float64 and rounded once."""
    model = copy.deepcopy(reference)
    if applied is not None:
        if applied.embeddings is not None:
            model.resize_token_embeddings(applied.rows)
            model.get_input_embeddings().weight.data = applied.embeddings
            model.get_output_embeddings().weight.data = applied.head
        for item, scale in applied.adapters:
            for path, factors in item.factors.items():
                if path != "lm_head" or applied.head is None:
                    weight = model.get_submodule(path).weight
                    weight.data = (
                        weight.double() + scale * (factors.b.double().T @ factors.a.double())
                    ).float()
    model.generation_config = GenerationConfig()
    found = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=24, eos_token_id=2, pad_token_id=0, **options,
    )  # fmt: skip
    return found[0, len(prompt) :].tolist()


def test_sixteen_requests_over_eight_stacks_have_the_tokens_of_the_changed_weights(
    base: LoadedModel, reference: Any, prompts: list[list[int]], stacks: list[AdapterStack | None]
) -> None:
    chosen = [(prompts[number % len(prompts)], stacks[number % 8]) for number in range(16)]
    requests = [GenerationRequest(prompt, GREEDY, adapters=applied) for prompt, applied in chosen]
    outputs = run(base, requests)
    found = [outputs[request.id][0].token_ids for request in requests]
    assert found == [expected_tokens(reference, applied, prompt) for prompt, applied in chosen]
    assert len({tuple(tokens) for tokens in found}) > 10


def test_rows_that_join_and_leave_keep_their_adapters(
    base: LoadedModel, reference: Any, prompts: list[list[int]], stacks: list[AdapterStack | None]
) -> None:
    engine = Engine(base, slots=5)
    requests = [
        GenerationRequest(
            prompts[number % len(prompts)],
            GREEDY.model_copy(update={"max_new_tokens": 3 + 5 * (number % 4)}),
            adapters=stacks[(3 * number) % 8],
        )
        for number in range(16)
    ]
    events = []
    for request in requests:
        engine.submit(request)
        events += engine.step()
    outputs = outputs_of([*events, *drained(engine)])
    for request in requests:
        whole = expected_tokens(reference, request.adapters, list(request.prompt_token_ids))
        assert outputs[request.id][0].token_ids == whole[: request.sampling.max_new_tokens]


def test_adapters_that_are_freed_leave_the_base_and_the_others_as_they_were(
    base: LoadedModel, reference: Any, prompts: list[list[int]], stacks: list[AdapterStack | None]
) -> None:
    engine = Engine(base, slots=16)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    one, other = stacks[1], stacks[3]
    assert one is not None and other is not None
    for applied in ([None, one, other], [None, other]):
        requests = [GenerationRequest(prompts[1], GREEDY, adapters=choice) for choice in applied]
        for request in requests:
            engine.submit(request)
        outputs = outputs_of(drained(engine))
        for request in requests:
            expected = expected_tokens(reference, request.adapters, prompts[1])
            assert outputs[request.id][0].token_ids == expected
        engine.free([one.adapters[0][0]])
        kept = other.adapters[0][0]
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept.tensors) == kept.size_bytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("number", [4, 6])
def test_prompt_scores_and_beams_are_those_of_the_changed_weights(
    base: LoadedModel,
    reference: Any,
    prompts: list[list[int]],
    stacks: list[AdapterStack | None],
    number: int,
) -> None:
    applied, prompt = stacks[number], prompts[0]
    beams = GREEDY.model_copy(update={"num_beams": 3})
    searched = GenerationRequest(prompt, beams, adapters=applied)
    scored = GenerationRequest(prompt, GREEDY, adapters=applied, prompt_logprobs=0)
    plain = GenerationRequest(prompt, GREEDY.model_copy(update={"logprobs": 0}), adapters=applied)
    outputs = run(base, [searched, scored, plain])
    expected = expected_tokens(reference, applied, prompt, num_beams=3)
    assert outputs[searched.id][0].token_ids == expected
    scores = outputs[scored.id][0].prompt_logprobs
    assert scores is not None and len(scores) == len(prompt)
    whole = GenerationRequest(
        [*prompt, *outputs[plain.id][0].token_ids[:5]], GREEDY, adapters=applied, prompt_logprobs=0
    )
    again = run(base, [whole])[whole.id][0].prompt_logprobs
    generated = outputs[plain.id][0].logprobs
    assert again is not None and generated is not None
    for one, other in zip(again[len(prompt) :], generated[:5], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_tokens_of_the_grown_vocabulary_are_read_and_others_are_refused(
    base: LoadedModel, reference: Any, stacks: list[AdapterStack | None]
) -> None:
    prompt = [1, 300, VOCABULARY + MORE - 1, 17, VOCABULARY]
    grown = [GenerationRequest(prompt, GREEDY, adapters=stacks[number]) for number in (6, 7)]
    small = GenerationRequest([1, 300], GREEDY, adapters=stacks[1])
    outputs = run(base, [*grown, small])
    for request in (*grown, small):
        expected = expected_tokens(reference, request.adapters, list(request.prompt_token_ids))
        assert outputs[request.id][0].token_ids == expected
    with pytest.raises(
        VocabularyMismatch, match=f"{VOCABULARY + MORE - 1} and the model has {VOCABULARY} rows"
    ):
        Engine(base).submit(GenerationRequest(prompt, GREEDY, adapters=stacks[1]))
