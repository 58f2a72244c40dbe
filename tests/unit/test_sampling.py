"""The sampling settings: defaults, bounds, contradictions."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from services.sampling import Sampling


def test_the_defaults_are_those_of_the_well_known_inference_script() -> None:
    assert json.loads(Sampling().model_dump_json()) == {
        "temperature": 0.2,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": None,
        "typical_p": None,
        "repetition_penalty": 1.1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "no_repeat_ngram_size": 0,
        "logit_bias": {},
        "max_new_tokens": 400,
        "min_new_tokens": 0,
        "num_beams": 1,
        "do_sample": True,
        "stop": [],
        "seed": None,
        "n": 1,
        "logprobs": None,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 1.01},
        {"min_p": -0.5},
        {"typical_p": 0},
        {"repetition_penalty": 0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -2.5},
        {"no_repeat_ngram_size": -1},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"-5": 1}},
        {"logit_bias": {"five": 1}},
        {"max_new_tokens": -1},
        {"num_beams": 0},
        {"stop": [""]},
        {"stop": ["x"] * 17},
        {"n": 0},
        {"n": 17},
        {"logprobs": 21},
        {"top_q": 1},
    ],
)
def test_values_out_of_bounds_and_unknown_names_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_a_minimum_above_the_maximum_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError, match=r"min_new_tokens \(9\) is larger than max_new_tokens \(8\)"):
        Sampling(min_new_tokens=9, max_new_tokens=8)


def test_a_beam_search_gives_no_more_answers_than_beams_and_no_logprobs() -> None:
    with pytest.raises(ValidationError, match="2 beams cannot return n = 3"):
        Sampling(num_beams=2, n=3)
    with pytest.raises(ValidationError, match="logprobs"):
        Sampling(num_beams=2, logprobs=0)
    assert Sampling(num_beams=3, n=3).n == 3


def test_several_greedy_answers_are_allowed_as_with_openai() -> None:
    assert Sampling(temperature=0, n=2).greedy
    assert Sampling(do_sample=False, n=2).greedy
    assert not Sampling().greedy


def test_one_stop_text_is_as_good_as_a_list_and_null_is_none() -> None:
    assert Sampling(stop="###").stop == ("###",)
    assert Sampling.model_validate({"stop": ["a", "b"]}).stop == ("a", "b")
    assert Sampling.model_validate({"stop": None}).stop == ()


def test_the_token_ids_of_a_bias_survive_json_whose_keys_are_strings() -> None:
    sampling = Sampling(logit_bias={7: -100.0}, max_new_tokens=0)
    assert Sampling.model_validate_json(sampling.model_dump_json()) == sampling


def test_settings_are_frozen_and_every_one_is_described() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sampling().temperature = 1  # type: ignore[misc]
    assert [name for name, field in Sampling.model_fields.items() if not field.description] == []
