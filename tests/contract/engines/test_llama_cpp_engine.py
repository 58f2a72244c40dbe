"""The llama.cpp engine on models that were converted here, against the reference engine on the Hugging Face model."""

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from services.convert import ConvertOptions, convert
from services.errors import InvalidRequest, NotReady, PromptTooLong, UnsupportedOption
from services.generate import (
    GenerationRequest,
    LoadedModel,
    OutputFinished,
    TokenGenerated,
    load_model,
)
from services.grammar import grammar_of
from services.merge import merge
from services.sampling import Sampling
from services.tokenizers import complete_tokenizer
from tests.contract.engines.llama_cpp_driver import Driver, start
from tests.contract.engines.processes import all_end, descendants
from tests.contract.generate.engine_driver import alone
from tests.miniature import ADAPTERS, MINIATURE, unpack_adapters
from tests.reference.families import save_tiny

GREEDY = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=24)
PROMPTS = (
    "Once upon a time",
    "The river was",
    "从前有一个",
    "今天天气",
)


def sampled(**options: Any) -> Sampling:
    return Sampling.model_validate({**GREEDY.model_dump(), **options})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The miniature with its Chinese adapters, as a Hugging Face model in float32."""
    root = tmp_path_factory.mktemp("miniature")
    for name in ("base", "merged"):
        (root / name).mkdir()
    convert(MINIATURE / "llama", root / "base")
    adapters = zip(ADAPTERS, unpack_adapters(root), strict=True)
    merge(root / "base", [(name, folder, 1.0) for name, folder in adapters], root / "merged")
    complete_tokenizer(root / "merged")
    return load_model(root / "merged")


@pytest.fixture(scope="module")
def driver(reference: LoadedModel) -> Iterator[Driver]:
    """The same as a GGUF file in float32, in llama.cpp."""
    folder = reference.folder.parent / "gguf"
    folder.mkdir()
    convert(reference.folder, folder, ConvertOptions(output_format="gguf", dtype="F32"))
    driver = start(folder)
    driver.wait_until_ready()
    yield driver
    driver.engine.close()


def request_of(
    loaded: LoadedModel, prompt: str, sampling: Sampling = GREEDY, **options: Any
) -> GenerationRequest:
    return GenerationRequest(loaded.tokenizer.encode(prompt), sampling, **options)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_and_texts_are_the_reference_engines(
    driver: Driver, reference: LoadedModel, prompt: str, penalty: float
) -> None:
    request = request_of(reference, prompt, sampled(repetition_penalty=penalty, max_new_tokens=48))
    [expected] = alone(reference, request)
    [[found]] = driver.run(request)

    assert found.token_ids == expected.token_ids
    assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
    assert found.prompt_tokens == len(request.prompt_token_ids)


def test_log_probabilities_are_the_models_own(driver: Driver, reference: LoadedModel) -> None:
    sampling = sampled(logprobs=3, repetition_penalty=1.3)
    for prompt in PROMPTS:
        request = request_of(reference, prompt, sampling)
        [expected] = alone(reference, request)
        [[found]] = driver.run(request)

        assert found.logprobs is not None and expected.logprobs is not None
        assert [item.token_id for item in found.logprobs] == found.token_ids == expected.token_ids
        for one, other in zip(found.logprobs, expected.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=0.02)
            assert one.piece == other.piece
            assert [top.logprob for top in one.top] == pytest.approx(
                [top.logprob for top in other.top], abs=0.02
            )


def test_a_bias_and_cut_offs_mean_what_they_mean_here(driver: Driver, reference: LoadedModel) -> None:
    prompt = PROMPTS[0]
    [plain] = alone(reference, request_of(reference, prompt))
    banned = {str(plain.token_ids[0]): -100.0, str(plain.token_ids[2]): -100.0}
    request = request_of(reference, prompt, sampled(logit_bias=banned))
    [expected] = alone(reference, request)
    [[found]] = driver.run(request)
    assert found.token_ids == expected.token_ids != plain.token_ids

    for name, value in (("top_k", 1), ("top_p", 1e-6), ("min_p", 1.0)):
        options = {"temperature": 5.0, "do_sample": True, "top_k": 0, "top_p": 1.0, "seed": 4, name: value}
        [[found]] = driver.run(request_of(reference, prompt, sampled(**options)))
        assert found.token_ids == plain.token_ids, name


def test_draws_have_the_probabilities_that_the_settings_say(driver: Driver, reference: LoadedModel) -> None:
    settings = {"temperature": 1.7, "top_k": 4, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2}
    sampling = sampled(**settings, max_new_tokens=1, n=16)
    prompt = reference.tokenizer.encode(PROMPTS[1])
    with torch.no_grad():
        logits = reference.model(torch.tensor([prompt])).logits[0, -1].float()
    expected = distribution(logits, prompt, settings)
    counts: dict[int, int] = {}
    for seed in range(25):
        [outputs] = driver.run(GenerationRequest(prompt, sampling.model_copy(update={"seed": seed})))
        for output in outputs:
            counts[output.token_ids[0]] = counts.get(output.token_ids[0], 0) + 1

    assert set(counts) <= set(expected)
    total = sum(counts.values())
    for token_id, probability in expected.items():
        deviation = (probability * (1 - probability) / total) ** 0.5
        assert abs(counts.get(token_id, 0) / total - probability) < 4.5 * deviation + 1e-3


def distribution(logits: torch.Tensor, prompt: list[int], settings: dict[str, Any]) -> dict[int, float]:
    """The probabilities by the definitions of the settings, written out."""
    scores = {token_id: float(value) for token_id, value in enumerate(logits)}
    for token_id in set(prompt):
        value = scores[token_id]
        scores[token_id] = (
            value * settings["repetition_penalty"] if value < 0 else value / settings["repetition_penalty"]
        )
    kept = sorted(scores, key=lambda token_id: -scores[token_id])[: settings["top_k"]]
    weights = (
        torch.tensor([scores[token_id] / settings["temperature"] for token_id in kept]).softmax(0).tolist()
    )
    before = [sum(weights[:place]) for place in range(len(kept))]
    kept = [
        token_id for token_id, sum_before in zip(kept, before, strict=True) if sum_before < settings["top_p"]
    ]
    weights = [weight for weight in weights[: len(kept)] if weight >= settings["min_p"] * weights[0]]
    return {token_id: weight / sum(weights) for token_id, weight in zip(kept, weights, strict=False)}


def test_the_same_seed_gives_the_same_tokens_alone(driver: Driver, reference: LoadedModel) -> None:
    sampling = sampled(temperature=3.0, top_k=0, seed=7, n=2)
    [first] = driver.run(request_of(reference, PROMPTS[0], sampling))
    [again] = driver.run(request_of(reference, PROMPTS[0], sampling))
    [other] = driver.run(request_of(reference, PROMPTS[0], sampled(temperature=3.0, top_k=0, seed=2**63 - 8)))

    assert [output.token_ids for output in first] == [output.token_ids for output in again]
    assert first[0].token_ids != first[1].token_ids
    assert other[0].token_ids != first[0].token_ids
    assert first[0].seed == 7 != first[1].seed


def test_stop_strings_end_an_output_before_them(driver: Driver, reference: LoadedModel) -> None:
    [[plain]] = driver.run(request_of(reference, PROMPTS[0]))
    stop = plain.text[2:4]
    request = request_of(reference, PROMPTS[0], sampled(stop=[stop]))
    [[found]] = driver.run(request)

    assert found.text == plain.text[: plain.text.index(stop)]
    assert found.finish_reason == "stop"
    assert driver.run(request_of(reference, PROMPTS[0], stop=[stop]))[0][0].text == found.text


@pytest.mark.parametrize("logprobs", [None, 2])
def test_each_stop_string_ends_an_output_where_it_ends_the_reference_engines(
    driver: Driver, reference: LoadedModel, logprobs: int | None
) -> None:
    """Within and across tokens, also where a character has several; with log-probabilities they come in another way."""
    endings = set()
    for prompt in PROMPTS:
        [plain] = alone(reference, request_of(reference, prompt))
        cuts = [plain.text[start : start + size] for start in (1, 4, 9) for size in (1, 2, 6)]
        for stop in [cut for cut in cuts if cut]:
            request = request_of(reference, prompt, sampled(stop=["never there", stop], logprobs=logprobs))
            [expected] = alone(reference, request)
            [[found]] = driver.run(request)
            assert found.token_ids == expected.token_ids, (prompt, stop)
            assert (found.text, found.stop_string) == (plain.text[: plain.text.index(stop)], stop)
            assert found.finish_reason == "stop"
            endings.add(reference.tokenizer.decode(found.token_ids).endswith(stop))
    assert endings == {True, False}  # at the end of a token, and within one


def test_each_stop_token_ends_an_output(driver: Driver, reference: LoadedModel) -> None:
    for prompt in PROMPTS:
        [plain] = alone(reference, request_of(reference, prompt))
        for ending in set(plain.token_ids):
            [[found]] = driver.run(request_of(reference, prompt, stop_token_ids=frozenset([ending])))
            assert found.token_ids == plain.token_ids[: plain.token_ids.index(ending) + 1]
            assert found.text == reference.tokenizer.decode(found.token_ids[:-1])
            assert (found.finish_reason, found.stop_string) == ("stop", None)


def test_tokens_that_end_a_turn_end_an_output(driver: Driver, reference: LoadedModel) -> None:
    [[plain]] = driver.run(request_of(reference, PROMPTS[0]))
    ending = plain.token_ids[2]
    [[found]] = driver.run(request_of(reference, PROMPTS[0], stop_token_ids=frozenset([ending])))

    assert found.token_ids == plain.token_ids[: plain.token_ids.index(ending) + 1]
    assert found.finish_reason == "stop"


def test_the_models_own_end_ends_an_output(driver: Driver, reference: LoadedModel) -> None:
    end = next(iter(reference.tokenizer.eos_ids))
    [[found]] = driver.run(request_of(reference, PROMPTS[0], sampled(logit_bias={str(end): 100.0})))
    assert (found.token_ids, found.text, found.finish_reason) == ([end], "", "stop")


def test_an_output_may_fill_the_context_and_no_more(driver: Driver, reference: LoadedModel) -> None:
    prompt = [5] * 200
    [[found]] = driver.run(GenerationRequest(prompt, sampled(max_new_tokens=56, logit_bias={"2": -100.0})))
    assert len(found.token_ids) == 56
    with pytest.raises(PromptTooLong, match="the model's context is 256"):
        driver.engine.submit(GenerationRequest(prompt, sampled(max_new_tokens=57)))


def test_cancelling_frees_the_slots(driver: Driver, reference: LoadedModel) -> None:
    endless = sampled(max_new_tokens=200, n=4, logit_bias={"2": -100.0})
    request_id = driver.engine.submit(request_of(reference, PROMPTS[0], endless))
    assert driver.engine.free_slots == 0
    while not any(isinstance(event, TokenGenerated) for event in driver.events()):
        pass
    driver.engine.cancel(request_id)
    finished = [event for event in driver.events() if isinstance(event, OutputFinished)]

    assert [event.output.finish_reason for event in finished] == ["canceled"] * 4
    assert driver.engine.free_slots == 4
    began = time.monotonic()
    driver.run(request_of(reference, PROMPTS[1], sampled(max_new_tokens=2)))
    assert time.monotonic() - began < 20  # 800 tokens would take longer


def test_forms_are_refused_where_llama_cpp_reads_tokens_without_their_spaces(
    driver: Driver, reference: LoadedModel
) -> None:
    with pytest.raises(UnsupportedOption, match="SentencePiece"):
        driver.engine.submit(request_of(reference, PROMPTS[0], grammar=grammar_of(None, "[ab]{3}")))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1.0}, "repetition_penalty": 1.1}, "logit_bias"),
    ],
)
def test_what_llama_cpp_does_otherwise_is_refused_by_name(
    driver: Driver, reference: LoadedModel, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(UnsupportedOption, match=name) as caught:
        driver.engine.submit(request_of(reference, PROMPTS[0], sampled(**options)))
    assert "huggingface" in caught.value.hint


def test_prompts_are_not_scored(driver: Driver, reference: LoadedModel) -> None:
    with pytest.raises(UnsupportedOption, match="log-probabilities of the prompt"):
        driver.engine.submit(request_of(reference, PROMPTS[0], prompt_logprobs=0))


def test_an_output_without_tokens_is_empty(driver: Driver, reference: LoadedModel) -> None:
    [[found]] = driver.run(request_of(reference, PROMPTS[0], sampled(max_new_tokens=0)))
    assert (found.text, found.token_ids, found.finish_reason) == ("", [], "length")


def test_a_bias_beyond_the_vocabulary_is_refused(driver: Driver, reference: LoadedModel) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        driver.engine.submit(request_of(reference, PROMPTS[0], sampled(logit_bias={"999999": 1.0})))


def test_a_crowd_gets_what_each_gets_alone(driver: Driver, reference: LoadedModel) -> None:
    requests = [request_of(reference, prompt, sampled(max_new_tokens=32)) for prompt in PROMPTS * 3]
    expected = [alone(reference, request)[0].token_ids for request in requests]
    assert [outputs[0].token_ids for outputs in driver.run(*requests)] == expected


def test_a_killed_process_fails_its_requests_with_a_sentence(driver: Driver, reference: LoadedModel) -> None:
    other = start(driver.engine.loaded.folder)
    try:
        other.wait_until_ready()
        other.engine.submit(
            request_of(reference, PROMPTS[0], sampled(max_new_tokens=200, logit_bias={"2": -100.0}))
        )
        other.events()
        os.kill(descendants(other.server.pid)[0], signal.SIGKILL)
        with pytest.raises(NotReady, match=r"llama\.cpp with gguf was ended by signal 9"):
            for _ in range(100):
                other.events()
    finally:
        other.engine.close()
    assert all_end([other.server.pid])


def test_a_model_that_is_not_loaded_in_time_is_an_error(driver: Driver) -> None:
    other = start(driver.engine.loaded.folder, start_seconds=0)
    try:
        with pytest.raises(NotReady, match=r"llama\.cpp was not ready with gguf after 0 s"):
            while True:
                other.engine.step()
                time.sleep(0.05)
    finally:
        other.engine.close()


def test_a_process_that_is_stopped_while_it_loads_is_lost(driver: Driver) -> None:
    other = start(driver.engine.loaded.folder)
    other.engine.close()
    assert (other.engine.is_lost, other.engine.free_slots) == (True, 0)
    with pytest.raises(NotReady, match=r"llama\.cpp with gguf "):
        other.engine.step()


# ---- tokens within characters ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bytes_reference(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random model whose tokens are mostly parts of characters."""
    folder = tmp_path_factory.mktemp("bytes") / "hf"
    save_tiny("qwen3", folder, dtype=torch.float32)
    return load_model(folder)


@pytest.fixture(scope="module")
def bytes_driver(bytes_reference: LoadedModel) -> Iterator[Driver]:
    folder = bytes_reference.folder.parent / "gguf"
    folder.mkdir()
    convert(bytes_reference.folder, folder, ConvertOptions(output_format="gguf", dtype="F32"))
    driver = start(folder)
    driver.wait_until_ready()
    yield driver
    driver.engine.close()


@pytest.mark.parametrize("logprobs", [None, 2])
def test_tokens_within_characters_are_not_lost(
    bytes_driver: Driver, bytes_reference: LoadedModel, logprobs: int | None
) -> None:
    tokenizer = bytes_reference.tokenizer
    for text in ("你好，世界😀😀", "naïve 你", "abc"):
        prompt = tokenizer.encode(text)
        request = GenerationRequest(prompt, sampled(max_new_tokens=40, logprobs=logprobs))
        [expected] = alone(bytes_reference, request)
        [[found]] = bytes_driver.run(request)
        assert found.token_ids == expected.token_ids
        assert found.text == expected.text
        if logprobs is not None:
            assert found.logprobs is not None and expected.logprobs is not None
            values = [[item.logprob for item in output.logprobs or ()] for output in (found, expected)]
            assert values[0] == pytest.approx(values[1], abs=0.02)


def test_forms_are_enforced(bytes_driver: Driver, bytes_reference: LoadedModel) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "maximum": 99, "minimum": 0},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    sampling = sampled(max_new_tokens=90)
    for seed in range(3):
        drawn = sampling.model_copy(update={"temperature": 1.5, "do_sample": True, "seed": seed})
        [[found]] = bytes_driver.run(
            request_of(bytes_reference, "abc", drawn, grammar=grammar_of(json.dumps(schema), None))
        )
        value = json.loads(found.text)
        assert set(value) == {"name", "age"} and 0 <= value["age"] <= 99 and found.finish_reason == "stop"
    [[found]] = bytes_driver.run(
        request_of(bytes_reference, "abc", sampling, grammar=grammar_of(None, "[ab]{3}-[0-9]{2}"))
    )
    assert found.text[:3].strip("ab") == "" and found.text[3] == "-" and found.text[4:].isdigit()
