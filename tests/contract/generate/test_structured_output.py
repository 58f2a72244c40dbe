"""Outputs by a JSON schema or a regular expression, against jsonschema and regex."""

import json
import random
from typing import Any

import jsonschema
import pytest
import regex
import torch

from services.errors import UnsupportedSchema
from services.generate import Engine, GenerationRequest, LoadedModel, OutputFailed
from services.grammar import Grammar
from services.kinds.compare import CompareRequest
from services.kinds.generate import GenerateRequest
from services.kinds.shared import JobResult
from services.sampling import Sampling
from tests.contract.generate.engine_driver import CONTEXT, alone, drained, outputs_of, run, run_job
from tests.contract.generate.random_schemas import schema

FREE = Sampling(temperature=1, top_k=0, top_p=1, repetition_penalty=1, max_new_tokens=CONTEXT - 10, seed=0)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def by_schema(schema: dict[str, Any], **sampling: Any) -> GenerationRequest:
    grammar = Grammar(schema=json.dumps(schema))
    return GenerationRequest([1, 40, 41], FREE.model_copy(update=sampling), grammar=grammar)


def by_pattern(pattern: str, **sampling: Any) -> GenerationRequest:
    grammar = Grammar(pattern=pattern)
    return GenerationRequest([1, 40, 41], FREE.model_copy(update=sampling), grammar=grammar)


def test_outputs_of_200_random_schemas_are_admitted_by_jsonschema(loaded: LoadedModel) -> None:
    chance = random.Random(13)
    requests = {
        request.id: (request, schema_)
        for number in range(200)
        for schema_ in [schema(chance)]
        for request in [by_schema(schema_, seed=number, temperature=chance.choice([0, 0.5, 1, 2]))]
    }
    outputs = run(loaded, [request for request, _ in requests.values()])
    ended = {id: output for id, (output,) in outputs.items() if output.finish_reason == "stop"}
    assert len(outputs) == 200
    assert len(ended) > 180, "the schemas are small, so that nearly every output ends within the context"
    for id, output in ended.items():
        jsonschema.Draft202012Validator(
            requests[id][1], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        ).validate(json.loads(output.text))


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-[a-z]{2,5}", "yes|no", " leading", " *x{2}", "a/b", r"\\/c", r"\/", "é+羊?", "(?i)abc", "", "^whole$",
        r"\s{2}end", "(one|two)( (one|two)){0,3}", r"[^\n]{4}", 'quote"d', r"tab\there", "line\nbreak", r"\[x\]\{1\}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_output_matches_its_regular_expression(
    loaded: LoadedModel, pattern: str, temperature: float
) -> None:
    for seed in range(5):
        (output,) = alone(loaded, by_pattern(pattern, seed=seed, temperature=temperature))
        assert output.finish_reason == "stop"
        assert regex.fullmatch(pattern, output.text), output.text


def test_an_unbounded_expression_ends_with_the_end_of_text_or_is_cut(loaded: LoadedModel) -> None:
    outputs = [alone(loaded, by_pattern("[0-9]+", seed=seed, max_new_tokens=40))[0] for seed in range(30)]
    assert all(regex.fullmatch("[0-9]+", output.text) for output in outputs)
    assert {output.finish_reason for output in outputs} == {"stop", "length"}
    assert all((output.token_ids[-1] == 2) == (output.finish_reason == "stop") for output in outputs)
    assert all(2 not in output.token_ids[:-1] for output in outputs), "the end is the last token only"


def test_an_output_without_room_is_cut_and_says_so(loaded: LoadedModel) -> None:
    (output,) = alone(loaded, by_schema(PERSON, max_new_tokens=4))
    assert (output.finish_reason, len(output.token_ids)) == ("length", 4)


def test_the_last_token_that_completes_the_grammar_is_a_stop(loaded: LoadedModel) -> None:
    (whole,) = alone(loaded, by_schema(PERSON))
    (exact,) = alone(loaded, by_schema(PERSON, max_new_tokens=len(whole.token_ids)))
    assert (exact.finish_reason, exact.text) == ("stop", whole.text)


def test_special_tokens_do_not_occur_within_an_output(loaded: LoadedModel) -> None:
    bias = {0: 100.0, 1: 100.0, 2: 100.0}
    outputs = [alone(loaded, by_schema(PERSON, seed=seed, logit_bias=bias))[0] for seed in range(10)]
    assert all(not {0, 1, 2} & set(output.token_ids[:-1]) for output in outputs)
    for output in outputs:
        jsonschema.validate(json.loads(output.text), PERSON)


def test_guided_rows_change_no_token_of_the_others(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    free = [
        GenerationRequest(ids, FREE.model_copy(update={"seed": 3, "max_new_tokens": 30})) for ids in prompts
    ]
    greedy = [GenerationRequest(ids, Sampling(temperature=0, max_new_tokens=30)) for ids in prompts]
    expected = {request.id: alone(loaded, request)[0].token_ids for request in (*free, *greedy)}
    guided = [by_schema(PERSON, seed=number) for number in range(6)]
    alone_ = {request.id: alone(loaded, request)[0].token_ids for request in guided}
    mixed = [request for row in zip(free, guided, greedy, strict=False) for request in row]
    outputs = run(loaded, mixed, slots=5)
    assert {id: output.token_ids for id, (output,) in outputs.items() if id in expected} == {
        request.id: expected[request.id] for request in mixed if request.id in expected
    }
    assert {id: output.token_ids for id, (output,) in outputs.items() if id in alone_} == {
        request.id: alone_[request.id] for request in mixed if request.id in alone_
    }


def test_a_greedy_output_takes_the_likeliest_token_that_fits(loaded: LoadedModel, reference: Any) -> None:
    (output,) = alone(loaded, by_pattern("[a-z]{3}[0-9]{3}", temperature=0, logprobs=0))
    allowed = [
        {
            n
            for n in range(420)
            if regex.fullmatch("[a-z]{3}[0-9]{3}", written + piece(loaded, n), partial=True)
            and piece(loaded, n)
        }
        for at in range(len(output.token_ids))
        for written in ["".join(piece(loaded, n) for n in output.token_ids[:at])]
    ]
    ids = [1, 40, 41]
    for at, token_id in enumerate(output.token_ids):
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[0, -1]
        # the first token may begin with the space that SentencePiece drops
        spaced = {
            n for n in range(420) if at == 0 and loaded.tokenizer.piece(n)[:1] == "▁" and fits(loaded, n)
        }
        fitting = sorted(allowed[at] | spaced)
        assert token_id == max(fitting, key=lambda n: float(logits[n]))
        ids.append(token_id)
    assert output.logprobs is not None
    assert output.logprobs[0].logprob is not None


def piece(loaded: LoadedModel, token_id: int) -> str:
    """Text of an ASCII piece, "" of special ones and of bytes."""
    text = loaded.tokenizer.piece(token_id).replace("▁", " ")
    byte = regex.fullmatch(r"<0x([0-7][0-9A-F])>", text)
    return chr(int(byte[1], 16)) if byte else "" if text.startswith("<") else text


def fits(loaded: LoadedModel, token_id: int) -> bool:
    return regex.fullmatch("[a-z]{3}[0-9]{3}", piece(loaded, token_id)[1:], partial=True) is not None


def test_a_grammar_that_fails_ends_its_output_alone(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    plain = GenerationRequest([1, 40, 41], FREE.model_copy(update={"max_new_tokens": 8}))
    engine.submit(plain)
    with pytest.raises(UnsupportedSchema, match='"not"'):
        engine.submit(by_schema({"not": {}}))
    assert outputs_of(drained(engine))[plain.id][0].token_ids == alone(loaded, plain)[0].token_ids


def test_a_form_that_grows_too_large_fails_its_output_alone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.grammar.LEXER_STATES", 300)
    engine = Engine(loaded)
    large = by_pattern("([ab]|[a-z ]{2}|[b-z]{3}){90}", max_new_tokens=140)
    plain = GenerationRequest([1, 40, 41], FREE.model_copy(update={"max_new_tokens": 8}))
    engine.submit(large)
    engine.submit(plain)
    events = drained(engine)
    failed = [event for event in events if isinstance(event, OutputFailed)]
    assert [(event.request_id, type(event.error)) for event in failed] == [(large.id, UnsupportedSchema)]
    assert str(failed[0].error).endswith("too many states: 300 >= 300.")
    others = [event for event in events if event.request_id == plain.id]
    assert outputs_of(others)[plain.id][0].token_ids == alone(loaded, plain)[0].token_ids


# ---- jobs ---------------------------------------------------------------------------------------------


def job(loaded: LoadedModel, **fields: Any) -> JobResult:
    body = {
        "kind": "generate",
        "model": loaded.folder.name,
        "prompts": ["One", "Two"],
        "sampling": {"seed": 1},
    }
    return run_job(loaded, GenerateRequest.model_validate(body | fields))


def test_a_job_returns_json_for_each_prompt(loaded: LoadedModel) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    result: Any = job(loaded, response_format=form, sampling={"max_new_tokens": 60, "n": 2, "seed": 4})
    assert len(result.outputs) == 4
    for output in result.outputs:
        assert output.finish_reason == "stop"
        jsonschema.validate(json.loads(output.text), PERSON)


def test_a_template_whose_stop_string_the_form_admits_does_not_cut_it(loaded: LoadedModel) -> None:
    result: Any = job(
        loaded,
        guided_regex="### Instruction:[ab]{2}",
        template="alpaca",
        sampling={"max_new_tokens": 36, "seed": 2},
    )
    assert all(regex.fullmatch("### Instruction:[ab]{2}", output.text) for output in result.outputs)


def test_a_comparison_has_the_form_in_every_variant(loaded: LoadedModel) -> None:
    request = CompareRequest.model_validate(
        {
            "kind": "compare",
            "variants": [{"model": "a"}, {"model": "b"}],
            "prompt": "x",
            "guided_regex": "[ab]",
            "sampling": {"max_new_tokens": 3},
        }
    )
    assert [request.request_for(variant, seed=1).guided_regex for variant in request.variants] == [
        "[ab]",
        "[ab]",
    ]
