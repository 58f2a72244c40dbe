"""Beam search against that of transformers."""

from typing import Any

import pytest
import torch

from services.errors import (
    NonFiniteLogits,
)
from services.generate import (
    Engine,
    GenerationRequest,
    LoadedModel,
    OutputFailed,
)
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_beam_search_is_that_of_transformers(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]], outputs: int
) -> None:
    sampling = Sampling(num_beams=4, n=outputs, do_sample=False, max_new_tokens=15)
    request = GenerationRequest(prompts[1], sampling)
    expected = reference.generate(
        torch.tensor([prompts[1]]),
        attention_mask=torch.ones(1, len(prompts[1]), dtype=torch.long),
        num_beams=4,
        num_return_sequences=outputs,
        do_sample=False,
        max_new_tokens=15,
        repetition_penalty=1.1,
        pad_token_id=0,
    )
    beams = [beam[len(prompts[1]) :].tolist() for beam in expected]
    found = alone(loaded, request)
    assert len(found) == outputs
    for output, beam in zip(found, beams, strict=True):
        assert beam[: len(output.token_ids)] == output.token_ids
        assert set(beam[len(output.token_ids) :]) <= {0}


def test_a_sampled_beam_search_repeats_with_its_seed_and_keeps_the_global_generator(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    request = GenerationRequest(prompts[0], Sampling(num_beams=3, temperature=2.0, max_new_tokens=10, seed=5))
    state = torch.get_rng_state()
    assert alone(loaded, request)[0].token_ids == alone(loaded, request)[0].token_ids
    assert torch.equal(torch.get_rng_state(), state)


def test_nan_in_a_beam_search_is_an_error(spoiled: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(spoiled)
    engine.submit(
        GenerationRequest([*prompts[0], 400], Sampling(num_beams=2, do_sample=False, max_new_tokens=5))
    )
    [event] = drained(engine)
    assert isinstance(event, OutputFailed) and isinstance(event.error, NonFiniteLogits)
