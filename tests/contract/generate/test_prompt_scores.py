"""Scores of a prompt's own tokens, against transformers' forward pass over the whole prompt."""

import math
from typing import Any

import pytest
import torch

from services.errors import NonFiniteLogits
from services.generate import Engine, GenerationRequest, LoadedModel, OutputFailed
from services.generate.prompt_reader import CHUNK_TOKENS
from services.kinds.generate import GenerateRequest
from services.sampling import Sampling
from tests.contract.generate.engine_driver import alone, drained, run_job

CHUNK = CHUNK_TOKENS["cpu"]
GREEDY = Sampling(temperature=0, max_new_tokens=3)


@torch.inference_mode()
def reference_scores(reference: Any, ids: list[int]) -> list[float]:
    """Log-probability of each token but the first, from one forward pass in float32."""
    logits = reference(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logits[at, token_id]) for at, token_id in enumerate(ids[1:])]


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_the_scores_are_those_of_one_forward_pass(loaded: LoadedModel, reference: Any, length: int) -> None:
    ids = [1 + (7 * at) % 90 for at in range(length)]
    (output,) = alone(loaded, GenerationRequest(ids, GREEDY, prompt_logprobs=2))
    assert output.prompt_logprobs is not None
    assert [item.token_id for item in output.prompt_logprobs] == ids
    assert (output.prompt_logprobs[0].logprob, output.prompt_logprobs[0].top) == (None, ())
    scores = [item.logprob for item in output.prompt_logprobs[1:]]
    assert scores == pytest.approx(reference_scores(reference, ids), abs=1e-4)
    assert all(len(item.top) == 2 for item in output.prompt_logprobs[1:])


def test_the_most_likely_token_is_the_one_that_greedy_sampling_takes(loaded: LoadedModel) -> None:
    ids = [1, 40, 41]
    (continued,) = alone(loaded, GenerationRequest(ids, GREEDY))
    whole = [*ids, *continued.token_ids]
    (scored,) = alone(loaded, GenerationRequest(whole, GREEDY, prompt_logprobs=1))
    assert scored.prompt_logprobs is not None
    written = scored.prompt_logprobs[len(ids) :]
    assert [item.top[0].token_id for item in written] == continued.token_ids


def test_scoring_changes_no_generated_token(loaded: LoadedModel) -> None:
    ids = [1, 40, 41, 42]
    (plain,) = alone(loaded, GenerationRequest(ids, GREEDY))
    (scored,) = alone(loaded, GenerationRequest(ids, GREEDY, prompt_logprobs=0))
    assert scored.token_ids == plain.token_ids


def test_a_prompt_can_be_scored_without_new_tokens(loaded: LoadedModel) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=0)
    (output,) = alone(loaded, GenerationRequest([1, 40, 41], sampling, prompt_logprobs=0))
    assert output.token_ids == []
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 3


def test_all_outputs_of_a_request_carry_the_scores(loaded: LoadedModel) -> None:
    outputs = alone(loaded, GenerationRequest([1, 40], Sampling(max_new_tokens=2, n=3), prompt_logprobs=0))
    assert [len(output.prompt_logprobs or []) for output in outputs] == [2, 2, 2]


def test_nan_in_a_scored_prompt_fails_that_request_alone(spoiled: LoadedModel) -> None:
    engine = Engine(spoiled)
    bad = engine.submit(GenerationRequest([1, 40, 400], GREEDY, prompt_logprobs=0))
    events = drained(engine)
    failed = [event for event in events if isinstance(event, OutputFailed)]
    assert [event.request_id for event in failed] == [bad]
    assert isinstance(failed[0].error, NonFiniteLogits)


# ---- jobs ---------------------------------------------------------------------------------------------


def job(loaded: LoadedModel, **fields: Any) -> Any:
    request = GenerateRequest.model_validate(
        {
            "kind": "generate",
            "model": loaded.folder.name,
            "sampling": {"temperature": 0, "max_new_tokens": 2},
            **fields,
        }
    )
    return run_job(loaded, request)


def test_token_ids_are_read_as_they_are(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer.encode("hello world")
    text = job(loaded, prompt="hello world", return_token_ids=True).outputs[0]
    given = job(loaded, prompt_token_ids=ids, return_token_ids=True).outputs[0]
    assert (given.prompt_token_ids, given.token_ids, given.text) == (ids, text.token_ids, text.text)
    assert given.prompt == loaded.tokenizer.decode(ids)


def test_ids_beyond_the_vocabulary_are_refused_one_by_one(loaded: LoadedModel) -> None:
    outputs = job(loaded, prompt_token_ids=[[1, 40], [1, loaded.rows]]).outputs
    assert outputs[0].error is None
    assert outputs[1].error.code == "invalid_request"
    assert f"{loaded.rows} at position 1" in outputs[1].error.message


def test_a_job_returns_the_scores_of_its_prompts(loaded: LoadedModel, reference: Any) -> None:
    output = job(loaded, prompt_token_ids=[1, 40, 41], score_prompt=True).outputs[0]
    assert output.prompt_logprobs[0].logprob is None
    expected = reference_scores(reference, [1, 40, 41])
    assert [item.logprob for item in output.prompt_logprobs[1:]] == pytest.approx(expected, abs=1e-4)
    assert all(math.exp(score) < 1 for score in expected)


@pytest.mark.parametrize("field", ["template", "system", "input"])
def test_text_around_token_ids_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="writes text around a prompt"):
        GenerateRequest.model_validate(
            {"kind": "generate", "model": "tiny", "prompt_token_ids": [1], field: "alpaca"}
        )
