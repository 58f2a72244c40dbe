"""Prompts that are read in chunks while other sequences run."""

from typing import Any

import pytest
import torch

from services.errors import NonFiniteLogits
from services.generate import Engine, Event, GenerationRequest, LoadedModel, OutputFailed, TokenGenerated
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained, outputs_of

CHUNK = 8


def long_prompt(tokens: int) -> list[int]:
    return [3 + (7 * at + at * at) % 400 for at in range(tokens)]


def tokens_of(events: list[Event], request_id: str) -> int:
    return sum(isinstance(event, TokenGenerated) and event.request_id == request_id for event in events)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 3])
def test_a_prompt_in_chunks_has_the_tokens_of_transformers_alone_and_in_a_crowd(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]], length: int
) -> None:
    ids = long_prompt(length)
    expected = reference.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        do_sample=False,
        max_new_tokens=20,
        pad_token_id=0,
    )[0, length:].tolist()
    greedy = Sampling(do_sample=False, repetition_penalty=1, max_new_tokens=20)
    engine = Engine(loaded, slots=8, chunk=CHUNK)
    crowd = [GenerationRequest(prompt, Sampling(seed=1, max_new_tokens=30)) for prompt in prompts]
    for request in crowd:
        engine.submit(request)
    events = [*engine.step(), *engine.step()]
    wanted = [GenerationRequest(ids, greedy, id=name) for name in ("first", "second")]
    for request in wanted:
        engine.submit(request)
    outputs = outputs_of([*events, *drained(engine)])
    assert [outputs[request.id][0].token_ids for request in wanted] == [expected, expected]
    for request in crowd:
        assert outputs[request.id] == alone(loaded, request)


def test_running_sequences_get_a_token_between_any_two_chunks(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(loaded, slots=8, chunk=CHUNK)
    runs = [
        GenerationRequest(prompt[:CHUNK], Sampling(seed=1, max_new_tokens=60, logit_bias={2: -100}))
        for prompt in prompts[:3]
    ]
    for request in runs:
        engine.submit(request)
    while engine.active < len(runs):
        engine.step()
    late = GenerationRequest(long_prompt(10 * CHUNK), Sampling(seed=2, max_new_tokens=5))
    engine.submit(late)
    rounds = 0
    while not tokens_of(events := engine.step(), late.id):
        rounds += 1
        assert [tokens_of(events, request.id) for request in runs] == [1, 1, 1]
    assert rounds == 9


def test_a_short_prompt_does_not_wait_for_a_long_one(loaded: LoadedModel) -> None:
    engine = Engine(loaded, slots=4, chunk=CHUNK)
    engine.submit(GenerationRequest(long_prompt(10 * CHUNK), Sampling(seed=1, max_new_tokens=5), id="long"))
    engine.submit(GenerationRequest(long_prompt(3), Sampling(seed=1, max_new_tokens=5), id="short"))
    assert tokens_of(engine.step(), "short") == 2  # the prompt's, and one more with the others
    assert [len(outputs) for outputs in outputs_of(drained(engine)).values()] == [1, 1]


def test_short_prompts_that_arrive_together_run_together(loaded: LoadedModel) -> None:
    engine = Engine(loaded, slots=16, chunk=CHUNK)
    for number in range(16):
        engine.submit(GenerationRequest(long_prompt(2), Sampling(seed=number, max_new_tokens=9)))
    engine.step()
    assert engine.active == 16


def test_a_prompt_that_is_being_read_takes_its_slots(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(loaded, slots=3, chunk=CHUNK)
    engine.submit(GenerationRequest(long_prompt(5 * CHUNK), Sampling(seed=1, n=2, max_new_tokens=3)))
    engine.step()
    assert (engine.active, engine.free_slots, engine.has_work) == (0, 1, True)
    drained(engine)
    assert (engine.active, engine.free_slots, engine.has_work) == (0, 3, False)


def test_a_request_canceled_between_two_chunks_ends_without_a_token(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(loaded, slots=4, chunk=CHUNK)
    stays = GenerationRequest(prompts[0], Sampling(seed=1, max_new_tokens=30), id="stays")
    goes = GenerationRequest(long_prompt(10 * CHUNK), Sampling(seed=2, max_new_tokens=5, n=2), id="goes")
    engine.submit(stays)
    engine.submit(goes)
    events = [*engine.step(), *engine.step()]
    engine.cancel("goes")
    events += engine.step()
    assert engine.free_slots == 3
    outputs = outputs_of([*events, *drained(engine)])
    assert [(output.finish_reason, output.token_ids) for output in outputs["goes"]] == [("canceled", [])] * 2
    assert outputs["stays"] == alone(loaded, stays)


def test_nan_in_a_later_chunk_of_a_scored_prompt_fails_that_request_alone(
    loaded: LoadedModel, spoiled: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(spoiled, chunk=CHUNK)
    sampling = Sampling(seed=1, max_new_tokens=9, logit_bias={400: -100})
    ids = [40] * (3 * CHUNK)
    ids[2 * CHUNK + 1] = 400
    bad = engine.submit(GenerationRequest(ids, sampling, prompt_logprobs=0))
    good = GenerationRequest(prompts[0], sampling)
    engine.submit(good)
    events = drained(engine)
    [failed] = [event for event in events if isinstance(event, OutputFailed)]
    assert failed.request_id == bad
    assert isinstance(failed.error, NonFiniteLogits)
    assert f"at tokens {2 * CHUNK + 1} to {3 * CHUNK} of the prompt" in failed.error.message
    finished = outputs_of([event for event in events if not isinstance(event, OutputFailed)])
    assert finished[good.id][0].token_ids == alone(loaded, good)[0].token_ids


def test_short_prompts_are_read_in_one_pass_each_as_by_transformers(
    loaded: LoadedModel, reference: Any, tokens_read: list[int]
) -> None:
    prompts = [long_prompt(length) for length in (9, 5, 1, 12)]
    engine = Engine(loaded, slots=8)
    greedy = Sampling(do_sample=False, repetition_penalty=1, max_new_tokens=10, logprobs=5)
    requests = [GenerationRequest(prompt, greedy) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    outputs = outputs_of(drained(engine))
    assert tokens_read[1:3] == [27, 1]
    for prompt, request in zip(prompts, requests, strict=True):
        ids = torch.tensor([prompt])
        found = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, pad_token_id=0
        )
        (output,) = outputs[request.id]
        assert output.token_ids == found[0, len(prompt) :].tolist()
        with torch.no_grad():
            scores = reference(ids).logits[0, -1].log_softmax(-1)
        first = output.token_ids[0]
        assert output.logprobs[0].logprob == pytest.approx(float(scores[first]), abs=1e-4)


@pytest.mark.parametrize(
    ("lengths", "passes"), [((40, 8), [48]), ((40, 9), [40, 9]), ((30, 30, 10), [30, 40]), ((60, 4), [60, 4])]
)
def test_prompts_are_read_together_up_to_a_limit(
    loaded: LoadedModel, tokens_read: list[int], lengths: tuple[int, ...], passes: list[int]
) -> None:
    engine = Engine(loaded, slots=8)
    for length in lengths:
        engine.submit(GenerationRequest(long_prompt(length), Sampling(max_new_tokens=2)))
    engine.step()
    assert tokens_read[1 : len(passes) + 1] == passes


def test_a_scored_prompt_is_read_alone(loaded: LoadedModel, tokens_read: list[int]) -> None:
    engine = Engine(loaded, slots=8)
    for top in (None, 0, None, None):
        engine.submit(GenerationRequest(long_prompt(6), Sampling(max_new_tokens=2), prompt_logprobs=top))
    engine.step()
    assert tokens_read[1:4] == [6, 6, 12]
