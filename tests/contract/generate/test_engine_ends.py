"""The ends of sequences: refused, failed, canceled, of no or of all tokens."""

import math

import pytest
import torch

from services.errors import (
    InvalidRequest,
    NonFiniteLogits,
    PromptTooLong,
    VocabularyMismatch,
)
from services.generate import (
    Engine,
    GenerationRequest,
    LoadedModel,
    OutputFailed,
)
from services.generate.sequence import is_finite
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained, outputs_of


def test_a_request_with_nan_logits_fails_alone(
    loaded: LoadedModel, spoiled: LoadedModel, prompts: list[list[int]]
) -> None:
    healthy = GenerationRequest(prompts[0], Sampling(seed=1, max_new_tokens=30, logit_bias={400: -100}))
    # Shorter than the failing one, so that its row grows over the column with that one's NaN.
    later = GenerationRequest(prompts[1][:5], Sampling(seed=2, max_new_tokens=5, logit_bias={400: -100}))
    # Generates the token while it decodes, so that its row of the cache has NaN when it leaves.
    sick = GenerationRequest(prompts[2], Sampling(logit_bias={400: 100}, max_new_tokens=9))
    at_once = GenerationRequest([*prompts[3], 400], Sampling(max_new_tokens=9))
    engine = Engine(spoiled, slots=2)
    for request in (healthy, sick, at_once, later):
        engine.submit(request)
    events = drained(engine)
    failed = [event for event in events if isinstance(event, OutputFailed)]
    assert [event.request_id for event in failed] == [sick.id, at_once.id]
    assert all(isinstance(event.error, NonFiniteLogits) for event in failed)
    assert "420 of 420 scores of token 2" in failed[0].error.message
    finished = outputs_of([event for event in events if not isinstance(event, OutputFailed)])
    for request in (healthy, later):
        assert finished[request.id][0].token_ids == alone(loaded, request)[0].token_ids


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(value: float) -> None:
    logits = torch.full((1000,), 3e38)
    assert is_finite(logits)  # although the sum is not
    logits[7] = value
    assert not is_finite(logits)
    assert not is_finite(torch.tensor([math.inf, -math.inf, 1.0]))


def test_a_canceled_request_ends_with_its_tokens_so_far_and_the_others_continue(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    stays = GenerationRequest(prompts[0], Sampling(seed=1, max_new_tokens=30), id="stays")
    goes = GenerationRequest(prompts[1], Sampling(seed=2, max_new_tokens=30, n=2), id="goes")
    waits = GenerationRequest(prompts[2], Sampling(seed=3, max_new_tokens=30), id="waits")
    engine = Engine(loaded, slots=3)
    for request in (stays, goes, waits):
        engine.submit(request)
    events = [event for _ in range(5) for event in engine.step()]
    engine.cancel("goes")
    engine.cancel("waits")
    engine.cancel("unknown")
    events += engine.step()
    assert engine.active == 1
    outputs = outputs_of([*events, *drained(engine)])
    assert [(output.finish_reason, len(output.token_ids)) for output in outputs["goes"]] == [
        ("canceled", 6)
    ] * 2
    assert [(output.finish_reason, output.token_ids) for output in outputs["waits"]] == [("canceled", [])]
    assert outputs["stays"] == alone(loaded, stays)


def test_a_prompt_that_does_not_fit_is_refused_with_all_numbers(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    engine = Engine(loaded)
    long = [1, *[300] * 99]
    with pytest.raises(PromptTooLong, match=r"100 tokens and 61 new ones are requested; .* is 160") as caught:
        engine.submit(GenerationRequest(long, Sampling(max_new_tokens=61)))
    assert caught.value.hint == "Lower max_new_tokens to 60 at most."
    engine.submit(GenerationRequest(long, Sampling(max_new_tokens=60, logit_bias={2: -100})))
    [[output]] = outputs_of(drained(engine)).values()
    assert len(output.token_ids) == 60


def test_no_new_tokens_only_counts_the_prompt(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    for beams in (1, 2):
        [output] = alone(loaded, GenerationRequest(prompts[0], Sampling(max_new_tokens=0, num_beams=beams)))
        assert (output.token_ids, output.text, output.finish_reason) == ([], "", "length")
        assert output.prompt_tokens == len(prompts[0])


def test_an_empty_prompt_begins_a_text(loaded: LoadedModel) -> None:
    sampling = Sampling(seed=1, max_new_tokens=5)
    assert (
        alone(loaded, GenerationRequest([], sampling))[0].token_ids
        == alone(loaded, GenerationRequest([1], sampling))[0].token_ids
    )


def test_tokens_that_the_model_does_not_have_are_refused(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    with pytest.raises(VocabularyMismatch, match="token 420 and the model has 420 rows"):
        engine.submit(GenerationRequest([1, 420], Sampling(max_new_tokens=5)))
    with pytest.raises(InvalidRequest, match="logit_bias"):
        engine.submit(GenerationRequest([1], Sampling(max_new_tokens=5, logit_bias={420: 1})))
