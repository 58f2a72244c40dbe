"""Beam search against that of transformers."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer

from services.errors import (
    NonFiniteLogits,
)
from services.generate import (
    Engine,
    GenerationRequest,
    LoadedModel,
    OutputFailed,
    TokenGenerated,
)
from services.sampling import Sampling
from services.tokenizers import complete_tokenizer
from tests.contract.generate.engine_driver import alone, drained, outputs_of, run


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


@pytest.mark.parametrize("length", [1, 8, 9, 70])
def test_a_prompt_in_chunks_has_the_beams_of_transformers(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]], length: int
) -> None:
    prompt = (prompts[1] + prompts[3] * 3)[:length]
    request = GenerationRequest(
        prompt, Sampling(num_beams=3, n=3, do_sample=False, repetition_penalty=1, max_new_tokens=12)
    )
    expected = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=0,
    )
    found = run(loaded, [request], chunk=8)[request.id]
    for output, beam in zip(found, expected[:, length:].tolist(), strict=True):
        assert beam[: len(output.token_ids)] == output.token_ids
        assert set(beam[len(output.token_ids) :]) <= {0}


def test_a_long_prompt_of_beams_is_read_a_chunk_at_a_time_between_the_tokens_of_others(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    stream = GenerationRequest(prompts[0], Sampling(seed=1, max_new_tokens=40, logit_bias={2: -100}))
    search = GenerationRequest(
        (prompts[3] * 5)[:100], Sampling(num_beams=3, do_sample=False, max_new_tokens=5, seed=2)
    )
    engine = Engine(loaded, slots=4, chunk=8)
    engine.submit(stream)
    while not engine.active:
        engine.step()
    engine.submit(search)
    read = []
    for _ in range(13):  # 100 tokens in chunks of 8
        before = engine._shared.prefixes.read_tokens
        tokens = [event for event in engine.step() if isinstance(event, TokenGenerated)]
        read.append(engine._shared.prefixes.read_tokens - before)
        assert [event.request_id for event in tokens] == [stream.id]
    assert read == [8] * 12 + [4]
    engine.cancel(stream.id)
    assert outputs_of(drained(engine))[search.id] == alone(loaded, search)


def test_a_search_is_canceled_while_its_prompt_is_read(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(loaded, slots=4, chunk=8)
    request = GenerationRequest((prompts[3] * 5)[:100], Sampling(num_beams=3, n=2, max_new_tokens=5, seed=1))
    engine.submit(request)
    assert engine.step() == []
    engine.cancel(request.id)
    [outputs] = outputs_of(engine.step()).values()
    assert [(output.finish_reason, output.token_ids) for output in outputs] == [("canceled", [])] * 2
    assert (engine.free_slots, engine.has_work) == (4, False)


@pytest.fixture(scope="module")
def theirs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as transformers reads it."""
    copy = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(folder / "tokenizer.model", copy)
    shutil.copy(folder / "config.json", copy)
    complete_tokenizer(copy)
    return AutoTokenizer.from_pretrained(copy)


def cuts_of(text: str) -> list[str]:
    """Pieces of a text as stop strings: short and long, early and late ones."""
    return [
        text[start : start + size]
        for start in range(2, len(text) - 6, 5)
        for size in (2, 5)
        if "\ufffd" not in text[start : start + size] and text[start : start + size].strip()
    ]


def test_a_stop_string_ends_beams_as_those_of_transformers(
    loaded: LoadedModel, folder: Path, reference: Any, prompts: list[list[int]], theirs: Any
) -> None:
    """The search ends a beam there and goes on with others: cutting the beams that it finds without stop strings differs."""
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    differs = 0
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options: dict[str, Any] = {"num_beams": 4, "do_sample": False, "max_new_tokens": 24}
        plain, *_ = alone(loaded, GenerationRequest(prompt, Sampling(repetition_penalty=1, **options)))
        stops = cuts_of(plain.text)
        assert stops
        for stop in stops:
            sampling = Sampling(repetition_penalty=1, stop=(stop,), n=3, **options)
            found = alone(loaded, GenerationRequest(prompt, sampling))
            expected = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=3,
                stop_strings=[stop],
                tokenizer=theirs,
                pad_token_id=0,
                **options,
            )[:, len(prompt) :].tolist()
            for output, beam in zip(found, expected, strict=True):
                assert beam[: len(output.token_ids)] == output.token_ids, (prompt, stop)
                assert set(beam[len(output.token_ids) :]) <= {0, 2}
                text = processor.decode([token for token in output.token_ids if token != 2])
                is_stopped = stop in text
                assert output.text == (text[: text.index(stop)] if is_stopped else text)
                assert output.stop_string == (stop if is_stopped else None)
            differs += found[0].text != plain.text[: plain.text.index(stop)]
    assert differs


def test_stop_tokens_end_beams_as_ends_of_transformers(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]]
) -> None:
    options: dict[str, Any] = {"num_beams": 3, "do_sample": False, "max_new_tokens": 20}
    [plain] = alone(loaded, GenerationRequest(prompts[1], Sampling(repetition_penalty=1, **options)))
    ids = torch.tensor([prompts[1]])
    for token in plain.token_ids[3:12]:
        sampling = Sampling(repetition_penalty=1, n=3, **options)
        found = alone(loaded, GenerationRequest(prompts[1], sampling, stop_token_ids=frozenset({token})))
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=3,
            eos_token_id=[2, token],
            pad_token_id=0,
            **options,
        )[:, ids.shape[1] :].tolist()
        for output, beam in zip(found, expected, strict=True):
            assert beam[: len(output.token_ids)] == output.token_ids
            assert set(beam[len(output.token_ids) :]) <= {0, 2}
            assert output.finish_reason == ("stop" if output.token_ids[-1] in {2, token} else "length")


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


def searches() -> list[Sampling]:
    return [
        Sampling(num_beams=4, n=2, do_sample=False, max_new_tokens=15, seed=4),
        Sampling(num_beams=3, temperature=2.0, max_new_tokens=12, seed=5),
        Sampling(num_beams=2, temperature=1.5, max_new_tokens=9, seed=6),
    ]


def test_others_get_a_token_in_each_step_of_a_search_and_all_have_what_they_have_alone(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    streams = [
        GenerationRequest(prompt, Sampling(seed=seed, max_new_tokens=60, logit_bias={2: -100}))
        for seed, prompt in enumerate(prompts[:3])
    ]
    beams = [
        GenerationRequest(prompt, sampling) for prompt, sampling in zip(prompts, searches(), strict=False)
    ]
    expected = {request.id: alone(loaded, request) for request in (*streams, *beams)}
    engine = Engine(loaded, slots=8)
    for request in streams:
        engine.submit(request)
    events = engine.step()
    while engine.active < len(streams):
        events += engine.step()
    for request in beams:
        engine.submit(request)
    rounds = 0
    while len(finished := outputs_of(events)) < len(beams):
        rounds += 1
        found = engine.step()
        tokens = [event.request_id for event in found if isinstance(event, TokenGenerated)]
        assert [tokens.count(request.id) for request in streams] == [1, 1, 1]
        events += found
    assert finished.keys() == {request.id for request in beams}
    assert rounds >= 9
    assert outputs_of([*events, *drained(engine)]) == expected


def test_a_canceled_search_ends_with_the_next_step(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(loaded, slots=4)
    request = GenerationRequest(prompts[0], Sampling(num_beams=3, n=2, do_sample=False, max_new_tokens=40))
    engine.submit(request)
    assert [*engine.step(), *engine.step()] == []
    assert engine.free_slots == 2
    engine.cancel(request.id)
    [outputs] = outputs_of(engine.step()).values()
    assert [(output.finish_reason, output.token_ids) for output in outputs] == [("canceled", [])] * 2
    assert (engine.free_slots, engine.has_work) == (4, False)


def test_a_search_without_a_job_ends_its_thread(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(loaded, slots=4)
    engine.submit(GenerationRequest(prompts[0], Sampling(num_beams=3, max_new_tokens=40, seed=1)))
    engine.step()  # reads the prompt
    engine.step()
    before = {thread.name for thread in threading.enumerate()}
    engine.drop_all()
    for thread in threading.enumerate():
        if thread.name == "beam search":
            thread.join(10)
    after = {thread.name for thread in threading.enumerate()}
    assert before - after == {"beam search"}
    assert (engine.free_slots, engine.has_work) == (4, False)
