"""The choice of a token against transformers' processors."""

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.generate import (
    GenerationRequest,
    LoadedModel,
)
from services.generate.sampler import PresenceFrequencyProcessor, Sampler, nucleus, uniform_noise
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone


def test_drawn_tokens_have_the_frequencies_of_transformers_processors() -> None:
    torch.manual_seed(1)
    logits = torch.randn(60) * 2
    prompt = [3, 5, 8, 13, 21]
    chain: Any = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(12),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.02),
        ]
    )
    expected = chain(torch.tensor([prompt]), logits[None].clone())[0].softmax(-1)
    sampling = Sampling(
        repetition_penalty=1.2, temperature=0.8, top_k=12, top_p=0.95, min_p=0.02, max_new_tokens=1
    )
    draws = 4000
    counts = torch.zeros(60)
    for seed in range(draws):
        counts[Sampler(sampling, prompt, end_ids=[], seed=seed).choose(logits).token_id] += 1
    assert not counts[expected == 0].any()
    deviations = (counts / draws - expected).abs() / (expected * (1 - expected) / draws).sqrt().clamp(
        min=1e-9
    )
    assert float(deviations[expected > 0].max()) < 4


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 0.9999999])
@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0])
def test_the_nucleus_is_that_of_transformers(top_p: float, spread: float) -> None:
    torch.manual_seed(2)
    scores = torch.randn(3000) * spread
    warper: Any = TopPLogitsWarper(top_p)
    expected = warper(torch.tensor([[1]]), scores[None])[0].isfinite().nonzero()[:, 0]
    found = nucleus(scores, top_p)
    assert found.tolist() == sorted(found.tolist())
    different = set(found.tolist()) ^ set(expected.tolist())
    mass = float(scores.double().softmax(-1)[list(different)].sum())
    assert mass < 1e-5  # tokens at the edge, whose place is rounding


@pytest.mark.parametrize("ties", [0, 1, 5])
def test_tokens_as_likely_as_the_last_of_top_k_stay(ties: int) -> None:
    logits = torch.arange(60.0)
    logits[60 - 12 - ties : 60 - 12] = logits[60 - 12]
    chain: Any = TopKLogitsWarper(12)
    expected = chain(torch.tensor([[1]]), logits[None])[0].isfinite()
    sampling = Sampling(temperature=100, top_k=12, top_p=1, repetition_penalty=1, max_new_tokens=1)
    drawn = {Sampler(sampling, [1], end_ids=[], seed=seed).choose(logits).token_id for seed in range(400)}
    assert drawn == set(expected.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("count", [1, 7, 39, 40])
def test_top_k_cuts_nothing_from_as_few_tokens_as_a_form_allows(count: int) -> None:
    """Against the same draws without top-k, where each token has the same noise."""
    torch.manual_seed(4)
    allowed = torch.zeros(500, dtype=torch.bool)
    allowed[torch.randperm(500)[:count]] = True
    samplers = [
        Sampler(Sampling(top_k=top_k, top_p=1, temperature=1, max_new_tokens=50), [1], end_ids=[], seed=6)
        for top_k in (40, 0)
    ]
    for _ in range(50):
        logits = torch.randn(500)
        first, second = (sampler.choose(logits, allowed).token_id for sampler in samplers)
        assert first == second
        assert allowed[first]


def test_the_noise_of_a_draw_is_splitmix64_as_published() -> None:
    # The first three outputs of the authors' C code for the seed 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = uniform_noise(torch.arange(3), 0).tolist()
    assert found == [((number >> 11) + 0.5) / 2**53 for number in published]


def test_presence_and_frequency_count_the_output_and_not_the_prompt() -> None:
    processor = PresenceFrequencyProcessor(0.5, 0.25, prompt_length=2)
    ids, scores = torch.tensor([[0, 0, 1, 3, 3]]), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert processor(ids, scores).tolist() == [[1.0, 0.25, 1.0, 0.0]]


def test_a_bias_of_100_forces_a_token_and_of_minus_100_forbids_it(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    [forced] = alone(loaded, GenerationRequest(prompts[0], Sampling(logit_bias={99: 100}, max_new_tokens=3)))
    assert forced.token_ids == [99, 99, 99]
    greedy = Sampling(do_sample=False, max_new_tokens=1)
    [[first]] = [output.token_ids for output in alone(loaded, GenerationRequest(prompts[0], greedy))]
    forbidden = Sampling(do_sample=False, max_new_tokens=1, logit_bias={first: -100})
    assert alone(loaded, GenerationRequest(prompts[0], forbidden))[0].token_ids != [first]


def test_logprobs_are_those_of_the_model_itself(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]]
) -> None:
    sampling = Sampling(seed=1, temperature=1.5, max_new_tokens=8, logprobs=3)
    [output] = alone(loaded, GenerationRequest(prompts[0], sampling))
    with torch.inference_mode():
        logits = reference(torch.tensor([[*prompts[0], *output.token_ids]])).logits[0]
    expected = logits[len(prompts[0]) - 1 : -1].log_softmax(-1)
    assert output.logprobs is not None and len(output.logprobs) == 8
    for token, row in zip(output.logprobs, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        assert [entry.token_id for entry in token.top] == row.topk(3).indices.tolist()
        assert token.piece == loaded.tokenizer.piece(token.token_id)
