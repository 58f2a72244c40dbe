"""The engine against transformers' own `generate`, alone and in a crowd, on a tiny LLaMA that is able to fail."""

import dataclasses
import io
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.errors import (
    IncompleteCheckpoint,
    InvalidRequest,
    JobCanceled,
    NonFiniteLogits,
    PromptTooLong,
    UnsupportedFormat,
    UnsupportedOption,
    VocabularyMismatch,
    WrongModelKind,
)
from services.generate import (
    AnswerFailed,
    AnswerFinished,
    BuiltPrompt,
    Completion,
    Engine,
    Event,
    GenerationRequest,
    LoadedModel,
    TokenGenerated,
    build_prompt,
    embed,
    generate,
    load_model,
)
from services.generate.sampler import PresenceFrequencyProcessor, Sampler, uniform_noise
from services.progress import Progress
from services.sampling import Sampling
from services.templates import Message
from tests.corpus import mixed_lines

VOCABULARY = 420
CONTEXT = 160
PROMPTS = (
    "Hello world, how are you?",
    "请用中文写一首关于春天的诗。",
    "def merge(base, lora):",
    "The quick brown fox jumps over the lazy dog and runs far away into the deep dark forest of words",
    "😀 emoji and code {}",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: random weights, and a SentencePiece model like LLaMA's with byte fallback."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in mixed_lines(3000) if line.isascii() and line.strip()]),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    torch.manual_seed(0)
    config: Any = LlamaConfig
    model = LlamaForCausalLM(
        config(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
            # Wide enough that the likeliest tokens differ by more than rounding.
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder)


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The same model, loaded by transformers alone."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="session")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.tokenizer.encode(text) for text in PROMPTS]


def run(
    loaded: LoadedModel, requests: list[GenerationRequest], slots: int = 16
) -> dict[str, list[Completion]]:
    """All requests in one engine."""
    engine = Engine(loaded, slots=slots)
    for request in requests:
        engine.submit(request)
    return outputs_of(drained(engine))


def drained(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def outputs_of(events: list[Event]) -> dict[str, list[Completion]]:
    outputs: dict[str, list[Completion]] = {}
    for event in events:
        assert not isinstance(event, AnswerFailed), event.error
        if isinstance(event, AnswerFinished):
            outputs.setdefault(event.request_id, []).append(event.output)
    return {key: sorted(found, key=lambda output: output.index) for key, found in outputs.items()}


def alone(loaded: LoadedModel, request: GenerationRequest) -> list[Completion]:
    return run(loaded, [request])[request.id]


# ---- greedy: transformers is the reference ------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.0},
        {"repetition_penalty": 1.1},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 3, "min_new_tokens": 12},
    ],
)
def test_greedy_tokens_in_a_crowd_are_those_of_transformers_one_by_one(
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


@pytest.mark.parametrize("answers", [1, 3])
def test_a_beam_search_is_that_of_transformers(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]], answers: int
) -> None:
    sampling = Sampling(num_beams=4, n=answers, do_sample=False, max_new_tokens=15)
    request = GenerationRequest(prompts[1], sampling)
    expected = reference.generate(
        torch.tensor([prompts[1]]),
        attention_mask=torch.ones(1, len(prompts[1]), dtype=torch.long),
        num_beams=4,
        num_return_sequences=answers,
        do_sample=False,
        max_new_tokens=15,
        repetition_penalty=1.1,
        pad_token_id=0,
    )
    beams = [beam[len(prompts[1]) :].tolist() for beam in expected]
    outputs = alone(loaded, request)
    assert len(outputs) == answers
    for output, beam in zip(outputs, beams, strict=True):
        assert beam[: len(output.token_ids)] == output.token_ids
        assert set(beam[len(output.token_ids) :]) <= {0}


def test_a_sampled_beam_search_repeats_with_its_seed_and_leaves_the_processs_generator_alone(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    request = GenerationRequest(prompts[0], Sampling(num_beams=3, temperature=2.0, max_new_tokens=10, seed=5))
    state = torch.get_rng_state()
    assert alone(loaded, request)[0].token_ids == alone(loaded, request)[0].token_ids
    assert torch.equal(torch.get_rng_state(), state)


# ---- alone and in a crowd -----------------------------------------------------------------------------


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
def test_sixteen_mixed_requests_give_the_same_tokens_alone_and_in_a_crowd(
    loaded: LoadedModel, prompts: list[list[int]], slots: int
) -> None:
    requests = mixed_requests(prompts)
    crowd = run(loaded, requests, slots)
    for request in requests:
        expected = [output.token_ids for output in alone(loaded, request)]
        assert [output.token_ids for output in crowd[request.id]] == expected


def test_requests_that_join_and_leave_at_any_token_give_the_same_tokens(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    requests = mixed_requests(prompts)
    engine, events = Engine(loaded, slots=16), []
    for request in requests:
        engine.submit(request)
        events += [*engine.step(), *engine.step()]
    crowd = outputs_of([*events, *drained(engine)])
    assert crowd == {request.id: alone(loaded, request) for request in requests}


def test_slots_bound_what_runs_and_the_rest_waits(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(loaded, slots=3)
    assert (engine.free_slots, engine.has_work) == (3, False)
    engine.submit(GenerationRequest(prompts[0], Sampling(n=5, max_new_tokens=4, temperature=2.0, seed=1)))
    assert (engine.free_slots, engine.active, engine.has_work) == (0, 0, True)
    engine.step()
    assert engine.active == 3
    assert sorted(output.index for output in outputs_of(drained(engine)).popitem()[1]) == [0, 1, 2, 3, 4]
    assert (engine.free_slots, engine.active, engine.has_work) == (3, 0, False)


def test_seeds_decide_and_every_answer_of_a_request_has_its_own(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    def tokens(seed: int | None) -> list[list[int]]:
        sampling = Sampling(seed=seed, n=3, temperature=1.5, max_new_tokens=20)
        return [output.token_ids for output in alone(loaded, GenerationRequest(prompts[0], sampling))]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)
    assert len({tuple(answer) for answer in tokens(7)}) == 3


def test_the_reported_seed_of_any_answer_reproduces_it(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(n=3, temperature=1.5, max_new_tokens=20)
    for output in alone(loaded, GenerationRequest(prompts[0], sampling)):
        again = Sampling(seed=output.seed, temperature=1.5, max_new_tokens=20)
        assert alone(loaded, GenerationRequest(prompts[0], again))[0].token_ids == output.token_ids


# ---- text, streaming, stop ----------------------------------------------------------------------------


def test_streamed_texts_add_up_to_the_final_text_which_is_sentencepieces(
    loaded: LoadedModel, folder: Path, prompts: list[list[int]]
) -> None:
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    engine = Engine(loaded, slots=4)
    for seed, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(prompt, Sampling(seed=seed, temperature=1.5, max_new_tokens=60)))
    events = drained(engine)
    for request_id, [output] in outputs_of(events).items():
        deltas = [
            event for event in events if isinstance(event, TokenGenerated) and event.request_id == request_id
        ]
        assert [event.token_id for event in deltas] == output.token_ids
        assert "".join(event.text for event in deltas) == output.text
        assert output.text == processor.decode([token for token in output.token_ids if token != 2])


def test_a_stop_text_across_token_borders_ends_the_answer_before_it(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    free = Sampling(do_sample=False, max_new_tokens=40)
    [whole] = alone(loaded, GenerationRequest(prompts[0], free))
    borders = len(loaded.tokenizer.decode(whole.token_ids[:9]))
    stop = whole.text[borders - 2 : borders + 2]
    assert len(stop) == 4
    before = whole.text[: whole.text.index(stop)]

    engine = Engine(loaded)
    engine.submit(GenerationRequest(prompts[0], free, stop=["never comes", stop]))
    events = drained(engine)
    [[output]] = outputs_of(events).values()
    assert (output.text, output.finish_reason) == (before, "stop")
    assert output.token_ids == whole.token_ids[: len(output.token_ids)]
    assert stop in loaded.tokenizer.decode(output.token_ids)
    assert "".join(event.text for event in events if isinstance(event, TokenGenerated)) == before


def test_a_half_stop_text_is_given_out_when_nothing_follows(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    free = Sampling(do_sample=False, max_new_tokens=12)
    [whole] = alone(loaded, GenerationRequest(prompts[0], free))
    [output] = alone(loaded, GenerationRequest(prompts[0], free, stop=[whole.text[-3:] + "!?"]))
    assert (output.text, output.finish_reason) == (whole.text, "length")


def test_the_end_token_counts_and_is_never_text(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(logit_bias={2: 100}, max_new_tokens=20, min_new_tokens=4, do_sample=False)
    [output] = alone(loaded, GenerationRequest(prompts[0], sampling))
    assert output.token_ids[4:] == [2]
    assert output.text == loaded.tokenizer.decode(output.token_ids[:4])
    assert output.finish_reason == "stop"
    assert output.usage == {
        "prompt_tokens": len(prompts[0]),
        "completion_tokens": 5,
        "total_tokens": len(prompts[0]) + 5,
    }


def test_a_templates_end_token_ends_an_answer_too(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    sampling = Sampling(logit_bias={77: 100}, max_new_tokens=20, do_sample=False)
    [output] = alone(loaded, GenerationRequest(prompts[0], sampling, stop_token_ids=frozenset({77})))
    assert (output.token_ids, output.text, output.finish_reason) == ([77], "", "stop")


# ---- the choice of a token ----------------------------------------------------------------------------


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


def test_the_noise_of_a_draw_is_splitmix64_as_published() -> None:
    # The first three outputs of the authors' C code for the seed 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = uniform_noise(torch.arange(3), 0).tolist()
    assert found == [((number >> 11) + 0.5) / 2**53 for number in published]


def test_presence_and_frequency_count_the_answer_and_not_the_prompt() -> None:
    processor = PresenceFrequencyProcessor(0.5, 0.25, prompt_length=2)
    ids, scores = torch.tensor([[0, 0, 1, 3, 3]]), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert processor(ids, scores).tolist() == [[1.0, 0.25, 1.0, 0.0]]


def test_a_bias_of_a_hundred_decides_and_of_minus_a_hundred_forbids(
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


# ---- ends that are no success -------------------------------------------------------------------------


@pytest.fixture
def spoiled(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The same model with NaN in the embedding of token 400: only what reads that token is spoiled."""
    other = load_model(folder)
    embeddings: Any = other.model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight[400] = math.nan
    return other


def test_a_request_whose_scores_are_nan_fails_alone(
    loaded: LoadedModel, spoiled: LoadedModel, prompts: list[list[int]]
) -> None:
    healthy = GenerationRequest(prompts[0], Sampling(seed=1, max_new_tokens=30, logit_bias={400: -100}))
    # Shorter than the sick one, so that its row reaches over the column where that left NaN.
    later = GenerationRequest(prompts[1][:5], Sampling(seed=2, max_new_tokens=5, logit_bias={400: -100}))
    # Comes upon the token while it decodes, so that its row of the cache holds NaN when it leaves.
    sick = GenerationRequest(prompts[2], Sampling(logit_bias={400: 100}, max_new_tokens=9))
    at_once = GenerationRequest([*prompts[3], 400], Sampling(max_new_tokens=9))
    engine = Engine(spoiled, slots=2)
    for request in (healthy, sick, at_once, later):
        engine.submit(request)
    events = drained(engine)
    failed = [event for event in events if isinstance(event, AnswerFailed)]
    assert [event.request_id for event in failed] == [sick.id, at_once.id]
    assert all(isinstance(event.error, NonFiniteLogits) for event in failed)
    assert "420 of 420 scores of token 2" in failed[0].error.message
    finished = outputs_of([event for event in events if not isinstance(event, AnswerFailed)])
    for request in (healthy, later):
        assert finished[request.id][0].token_ids == alone(loaded, request)[0].token_ids


def test_nan_in_a_beam_search_is_an_error_too(spoiled: LoadedModel, prompts: list[list[int]]) -> None:
    engine = Engine(spoiled)
    engine.submit(
        GenerationRequest([*prompts[0], 400], Sampling(num_beams=2, do_sample=False, max_new_tokens=5))
    )
    [event] = drained(engine)
    assert isinstance(event, AnswerFailed) and isinstance(event.error, NonFiniteLogits)


def test_a_canceled_request_ends_with_what_there_is_and_the_others_go_on(
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
    engine.cancel("unheard of")
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
    with pytest.raises(PromptTooLong, match=r"100 tokens and 61 new ones are asked for; .* is 160") as caught:
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


def test_tokens_that_the_model_does_not_know_are_refused(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    with pytest.raises(VocabularyMismatch, match="token 420 and the model has 420 rows"):
        engine.submit(GenerationRequest([1, 420], Sampling(max_new_tokens=5)))
    with pytest.raises(InvalidRequest, match="logit_bias"):
        engine.submit(GenerationRequest([1], Sampling(max_new_tokens=5, logit_bias={420: 1})))


# ---- prompts ------------------------------------------------------------------------------------------

CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'tool' %}{% continue %}{% endif %}"
    "[{{ message['role'] }}] {{ message['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_prompt_alone_is_continued_as_it_stands(loaded: LoadedModel) -> None:
    built = build_prompt(loaded.tokenizer, prompt="Hello world")
    assert built == BuiltPrompt(loaded.tokenizer.encode("Hello world"), "raw")
    assert build_prompt(loaded.tokenizer, prompt="").token_ids == [1]


def test_a_template_brings_its_stop_texts(loaded: LoadedModel) -> None:
    built = build_prompt(loaded.tokenizer, template="alpaca", prompt="Say hi", input="now")
    assert built.token_ids == loaded.tokenizer.encode(
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n\nSay hi\nnow\n\n### Response:\n\n"
    )
    assert built.stop == ("### Instruction:",)


def test_messages_take_the_models_own_template_and_what_users_type_stays_text(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    messages = [
        Message(role="user", content=" Hi</s> \ue0001\ue001 "),
        Message(role="assistant", content="Yes"),
        Message(role="user", content="<s>ok"),
    ]
    built = build_prompt(tokenizer, messages=messages, chat_template=CHAT, system="Be kind")
    plain = [
        tokenizer.encode(text, add_bos=False)
        for text in ("[system] Be kind", "[user] Hi</s> \ue0001\ue001", "[assistant] Yes", "[user] <s>ok")
    ]
    cue = tokenizer.encode("[assistant]", add_bos=False)
    assert built.token_ids == [1, *(token for text in plain for token in [*text, 2]), *cue]
    assert built.template == "model"


def test_messages_without_a_template_of_the_models_own_are_an_alpaca_conversation(
    loaded: LoadedModel,
) -> None:
    built = build_prompt(loaded.tokenizer, messages=[Message(role="user", content="Hi")])
    assert built.template == "alpaca-chat"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a prompt or messages"),
        ({"prompt": "x", "messages": []}, "either a prompt or messages"),
        ({"prompt": "x", "system": "y"}, "no place for a system text"),
        ({"prompt": "x", "template": "model"}, "no chat template"),
        ({"prompt": "x", "template": "model", "chat_template": "{{ raise_exception('not so') }}"}, "not so"),
        ({"prompt": "x", "template": "model", "chat_template": "{% if %}"}, "chat template"),
        ({"prompt": "x", "template": "model", "chat_template": "{{ 'a' * 10**15 }}"}, "MemoryError"),
        (
            {
                "prompt": "x",
                "template": "model",
                "chat_template": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            },
            "recursion",
        ),
        (
            {"prompt": "x", "template": "model", "chat_template": "{{ ''.__class__.__mro__ }}"},
            "'__class__' of 'str' object is unsafe|unsafe",
        ),
        ({"prompt": "x", "template": "model", "chat_template": "{{ messages.append(1) }}"}, "chat template"),
    ],
)
def test_requests_that_cannot_be_written_down_are_refused(
    loaded: LoadedModel, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        build_prompt(loaded.tokenizer, **settings)


# ---- loading ------------------------------------------------------------------------------------------


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_loaded_model_says_what_it_is(loaded: LoadedModel, reference: Any) -> None:
    parameters = sum(tensor.numel() for tensor in reference.parameters())
    assert (loaded.dtype, loaded.device) == (torch.float32, torch.device("cpu"))
    assert (loaded.size_bytes, loaded.context_length, loaded.rows) == (4 * parameters, CONTEXT, VOCABULARY)


def test_a_missing_tensor_is_an_error_and_no_random_number(folder: Path, tmp_path: Path) -> None:
    target = copy_of(folder, tmp_path / "lame")
    tensors = load_file(target / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteCheckpoint, match=r"1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(target)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(folder: Path, tmp_path: Path) -> None:
    target = copy_of(folder, tmp_path / "short")
    tensors = load_file(target / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:400].clone()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    with pytest.raises(VocabularyMismatch, match="420 tokens and the model 400 rows"):
        load_model(target)


def test_ntk_scaling_changes_the_rotary_base_and_stretches_the_context(folder: Path, reference: Any) -> None:
    scaled = load_model(folder, rope_alpha=4.0)
    # head_dim is 6: 10000 * 4 ** (6 / 4) = 80000.
    frequencies: Any = scaled.model.model.rotary_emb.inv_freq
    assert frequencies.tolist() == pytest.approx([1.0, 80000 ** (-1 / 3), 80000 ** (-2 / 3)], rel=1e-5)
    assert scaled.context_length == 4 * CONTEXT
    assert reference.model.rotary_emb.inv_freq.tolist() != frequencies.tolist()


def test_other_dtypes_generate_too(folder: Path, prompts: list[list[int]]) -> None:
    for dtype, expected in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        narrow = load_model(folder, dtype=dtype)  # type: ignore[arg-type]
        assert narrow.dtype == expected
        requests = [GenerationRequest(prompt, Sampling(seed=1, max_new_tokens=12)) for prompt in prompts]
        outputs = run(narrow, requests)
        assert all(
            len(found[0].token_ids) == 12 or found[0].finish_reason == "stop" for found in outputs.values()
        )


def test_a_models_own_defaults_for_sampling_do_not_leak_in(
    folder: Path, loaded: LoadedModel, prompts: list[list[int]], tmp_path: Path
) -> None:
    target = copy_of(folder, tmp_path / "opinionated")
    (target / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 9.0, "num_beams": 3, "repetition_penalty": 5.0, "eos_token_id": 2}'
    )
    for beams in (1, 2):
        sampling = Sampling(do_sample=False, max_new_tokens=12, num_beams=beams)
        request = GenerationRequest(prompts[0], sampling)
        assert alone(load_model(target), request)[0].token_ids == alone(loaded, request)[0].token_ids


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (["consolidated.00.pth", "params.json"], WrongModelKind, "original checkpoint"),
        (["adapter_config.json"], WrongModelKind, "is an adapter"),
        (["notes.txt"], WrongModelKind, "no config.json"),
    ],
)
def test_a_folder_of_another_kind_is_refused_with_what_it_is(
    tmp_path: Path, files: list[str], error: type[Exception], message: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(error, match=message):
        load_model(tmp_path)


def test_a_model_that_brings_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    target = copy_of(folder, tmp_path / "coded")
    (target / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (target / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UnsupportedFormat, match="no model that transformers knows"):
        load_model(target)


def test_options_that_this_machine_lacks_are_refused_in_a_sentence(folder: Path) -> None:
    with pytest.raises(UnsupportedOption, match="'tpu'"):
        load_model(folder, device="tpu")
    with pytest.raises(UnsupportedOption, match="cuda:99"):
        load_model(folder, device="cuda:99")


def test_importing_the_room_touches_neither_cuda_nor_a_tensor() -> None:
    code = (
        "import torch\n"
        "def no(*a, **k): raise AssertionError('a tensor at import')\n"
        "for name in ('tensor', 'zeros', 'empty', 'arange', 'ones', 'full'): setattr(torch, name, no)\n"
        "torch.cuda.is_available = torch.cuda.device_count = no\n"
        "import transformers.generation.logits_process\n"
        "import services.generate, services.tokenizers\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)


# ---- all at once --------------------------------------------------------------------------------------


def test_generate_answers_all_prompts_and_keeps_errors_apart(loaded: LoadedModel) -> None:
    texts = [*PROMPTS[:3], "word " * 200]
    built = [build_prompt(loaded.tokenizer, prompt=text) for text in texts]
    seen: list[Progress] = []
    sampling = Sampling(seed=1, n=2, max_new_tokens=10)
    result = generate(loaded, built, sampling, slots=4, report=seen.append)
    for prompt, found in zip(built[:3], result.results, strict=False):
        expected = alone(loaded, GenerationRequest(prompt.token_ids, sampling))
        assert (found.outputs, found.error) == (expected, None)
    assert isinstance(result.results[3].error, PromptTooLong)
    assert result.tokens == sum(len(output.token_ids) for found in result.results for output in found.outputs)
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert seen[-1] == Progress("generating", result.tokens, result.tokens, "tokens")
    assert all(earlier.done <= later.done for earlier, later in pairwise(seen))


def test_generate_stops_at_the_step_at_which_it_is_canceled(loaded: LoadedModel) -> None:
    calls = iter(range(10))

    def check() -> None:
        if next(calls) == 3:
            raise JobCanceled("Canceled.")

    seen: list[Progress] = []
    built = [build_prompt(loaded.tokenizer, prompt=PROMPTS[0])]
    with pytest.raises(JobCanceled):
        generate(loaded, built, Sampling(max_new_tokens=50), report=seen.append, check_canceled=check)
    assert [progress.done for progress in seen] == [2, 3, 4]


def test_embeddings_are_the_normalised_mean_of_the_last_states(
    loaded: LoadedModel, reference: Any, prompts: list[list[int]]
) -> None:
    vectors = embed(loaded, prompts[:2])
    for vector, prompt in zip(vectors, prompts, strict=False):
        with torch.inference_mode():
            states = reference.model(torch.tensor([prompt])).last_hidden_state[0]
        expected = states.mean(0) / states.mean(0).norm()
        assert vector == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(PromptTooLong):
        embed(loaded, [[1] * (CONTEXT + 1)])


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
