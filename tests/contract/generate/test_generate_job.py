"""Generate jobs by the real scheduler on a tiny model."""

from itertools import pairwise
from typing import Any

import pytest

from services.errors import (
    PromptTooLong,
)
from services.generate import (
    GenerationRequest,
    LoadedModel,
    build_prompt,
)
from services.kinds.generate import GenerateRequest, GenerateResult
from services.kinds.shared import NO_TOKEN_LIMIT, Usage
from services.progress import Progress
from services.sampling import Sampling
from services.templates import PromptParts
from tests.contract.generate.conftest import PROMPTS
from tests.contract.generate.engine_driver import CONTEXT, alone, run_job


def request_of(loaded: LoadedModel, prompts: list[str], **sampling: Any) -> GenerateRequest:
    body = {"kind": "generate", "model": loaded.folder.name, "prompts": prompts, "sampling": sampling}
    return GenerateRequest.model_validate(body | {"return_token_ids": True})


def test_a_job_generates_all_prompts_and_keeps_errors_apart(loaded: LoadedModel) -> None:
    texts = [*PROMPTS[:3], "word " * 200]
    seen: list[Progress] = []
    request = request_of(loaded, texts, seed=1, n=2, max_new_tokens=10)
    result = run_job(loaded, request, slots=4, report=seen.append)
    assert isinstance(result, GenerateResult)
    sampling = Sampling(seed=1, n=2, max_new_tokens=10)
    for number, text in enumerate(texts[:3]):
        prompt = build_prompt(loaded.tokenizer, PromptParts(prompt=text))
        expected = alone(loaded, GenerationRequest(prompt.token_ids, sampling))
        found = result.outputs[2 * number : 2 * number + 2]
        assert [(output.token_ids, output.text, output.seed, output.error) for output in found] == [
            (completion.token_ids, completion.text, completion.seed, None) for completion in expected
        ]
        assert [output.usage for output in found] == [
            Usage(
                prompt_tokens=len(prompt.token_ids),
                completion_tokens=len(completion.token_ids),
                total_tokens=len(prompt.token_ids) + len(completion.token_ids),
            )
            for completion in expected
        ]
    (failed,) = result.outputs[6:]
    assert failed.error is not None
    assert failed.error.code == PromptTooLong.code
    tokens = sum(len(output.token_ids or []) for output in result.outputs)
    assert result.tokens_per_second == pytest.approx(tokens / result.seconds, rel=0.05)
    assert seen[-1] == Progress("generating", tokens, tokens, "tokens")
    assert all(earlier.done <= later.done for earlier, later in pairwise(seen))


def test_a_chat_without_a_limit_has_no_known_total_before_its_prompt_is_built(loaded: LoadedModel) -> None:
    request = request_of(loaded, [PROMPTS[0]] * 2, max_new_tokens=NO_TOKEN_LIMIT, logit_bias={"2": -100})
    request = request.model_copy(update={"fit_context": True})
    seen: list[Progress] = []
    result = run_job(loaded, request, slots=1, report=seen.append)
    assert isinstance(result, GenerateResult)
    assert seen[0].total == 0
    assert {output.usage.total_tokens for output in result.outputs if output.usage} == {CONTEXT}
    assert seen[-1].done == seen[-1].total


def test_outputs_with_log_probabilities_have_those_of_the_engine(loaded: LoadedModel) -> None:
    request = request_of(loaded, [PROMPTS[0]], seed=1, max_new_tokens=3, logprobs=2)
    result = run_job(loaded, request)
    assert isinstance(result, GenerateResult)
    sampling = Sampling(seed=1, max_new_tokens=3, logprobs=2)
    prompt = loaded.tokenizer.encode(PROMPTS[0])
    [expected] = alone(loaded, GenerationRequest(prompt, sampling))
    assert expected.logprobs is not None
    (output,) = result.model_dump(exclude_unset=True)["outputs"]
    assert output["logprobs"] == [
        {
            "token": token.piece,
            "token_id": token.token_id,
            "logprob": token.logprob,
            "top": [
                {"token": other.piece, "token_id": other.token_id, "logprob": other.logprob}
                | ({"special": True} if other.token_id in (1, 2) else {})
                for other in token.top
            ],
        }
        for token in expected.logprobs
    ]
