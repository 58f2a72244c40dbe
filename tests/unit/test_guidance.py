"""Forms of outputs: what is accepted, and what is refused before a job is queued."""

import json
import re
import time
from typing import Any

import pytest
from pydantic import ValidationError

from services.errors import UnsupportedSchema
from services.grammar import Grammar, check_grammar, is_text_of
from services.kinds.generate import GenerateRequest


def request_of(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"kind": "generate", "model": "m", "prompt": "x", **fields})


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def nested(levels: int) -> dict[str, Any]:
    return {"items": nested(levels - 1)} if levels > 1 else {}


def check(schema: dict[str, Any]) -> None:
    check_grammar(Grammar(schema=json.dumps(schema)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "needs it"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "belongs to the type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "Field required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}, "Extra inputs"),
        ({"response_format": form(True)}, "valid dictionary"),
        ({"response_format": form(nested(65))}, "65 levels; at most 64"),
        ({"response_format": form({"const": "x" * 65_536})}, "65549 characters; at most 65536"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "leave one of them out"),
        ({"guided_regex": ""}, "at least 1"),
        ({"guided_regex": "a" * 10_001}, "at most 10000"),
        ({"guided_regex": "a", "sampling": {"num_beams": 2}}, "num_beams above 1 is not available with guided_regex"),
        ({"response_format": {"type": "json_object"}, "sampling": {"stop": "}"}}, "stop is not available with response"),
        ({"guided_regex": "a", "sampling": {"min_new_tokens": 2}}, "min_new_tokens is not available"),
        ({"guided_regex": "a", "sampling": {"no_repeat_ngram_size": 2}}, "no_repeat_ngram_size is not available"),
    ],
)  # fmt: skip
def test_a_form_that_contradicts_itself_or_the_sampling_is_refused(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        request_of(**fields)


def test_free_text_takes_every_sampling_option() -> None:
    request = request_of(response_format={"type": "text"}, sampling={"num_beams": 2, "stop": "x"})
    assert not request.is_guided
    assert request.is_forwardable


def test_a_form_travels_as_it_was_sent() -> None:
    sent = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"required": ["b", "a"]}, "strict": True},
    }
    request = request_of(response_format=sent)
    assert request.model_dump(mode="json")["response_format"] == sent
    assert GenerateRequest.model_validate(request.model_dump(mode="json")) == request
    assert request.is_forwardable


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, '"uniqueItems"'),
        ({"if": {}, "then": {}}, '"if", "then"'),
        ({"$ref": "https://example.com/schema.json"}, "does not fetch"),
        ({"$ref": "#/$defs/none"}, "/\\$defs/none"),
        ({"type": "string", "pattern": "^(?!a)b"}, "look-around"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum \\(5\\) is greater than maximum \\(3\\)"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "intger"}, "intger"),
        ({"items": [{"type": "integer"}]}, "prefixItems"),
        ({"properties": {"default": {"items": [{}]}}}, "prefixItems"),
        ({"anyOf": [{"exclusiveMinimum": True, "minimum": 3}]}, "boolean as exclusiveMinimum"),
        ({"multipleOf": 999_983}, "multipleOf 999983, with 999983 as common multiple"),
        ({"$defs": {"a": {"multipleOf": 1.00001}}, "$ref": "#/$defs/a"}, "with 100001 as common multiple"),
        ({"x-guidance": {"lenient": True}, "not": {}}, '"not"'),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "array", "contains": {}}, '"contains"'),
    ],
)  # fmt: skip
def test_a_schema_that_would_not_be_enforced_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedSchema) as found:
        check(schema)
    assert re.search(words, f"{found.value.message} {found.value.hint}")
    assert "start:" not in found.value.message, (
        "the message is about the schema, not about the grammar made of it"
    )


@pytest.mark.parametrize("pattern", ["(", "[a", "(?=a)b", r"(a)\1", r"\bword", "a\\", "(" * 5000])
def test_an_expression_that_would_not_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedSchema):
        check_grammar(Grammar(pattern=pattern))


def test_data_in_a_schema_is_not_taken_for_a_schema() -> None:
    check({"properties": {"a": {"type": "object", "default": {"items": [1]}}}, "examples": [{"items": [1]}]})
    check({"enum": [{"items": [1], "exclusiveMinimum": True}]})


BOMBS: dict[str, Any] = {
    "references that double": {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{n}": {"properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}, "y": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(60)}
        | {"a60": {"type": "integer"}},
    },
    "alternatives that multiply": {"allOf": [{"anyOf": [{"minLength": n * 7 + m} for m in range(10)]} for n in range(6)]},
    "a schema within itself": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    "repetitions of repetitions": {"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100})$"},
    "an exponential automaton": {"type": "string", "pattern": "^(a|b)*a(a|b){400}$"},
    "intersections": {"allOf": [{"pattern": f"a.{{{n}}}b.*c.{{{n + 9}}}d"} for n in range(12)]},
    "a long list": {"type": "array", "minItems": 10**9, "maxItems": 10**12},
    "a long text": {"type": "string", "minLength": 10**9},
    "many properties": {"properties": {f"p{n}": {"type": "string"} for n in range(2000)}},
    "large numbers": {"type": "number", "minimum": -1e300, "maximum": 1.7e308},
    "products": {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949, 9941)]},
    "fractions": {"type": "number", "multipleOf": 0.0001, "minimum": 0.12345, "maximum": 99999.123456},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_large_schema_is_compiled_or_refused_in_bounded_time(name: str) -> None:
    began = time.process_time()
    try:
        check(BOMBS[name])
    except UnsupportedSchema as error:
        assert len(error.message) <= 2000
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("text", "has_form"),
    [
        ('{"a": "x  y", "b": [1, 2.5]}', True),
        ('{\n\n   "a":"\\" x",\t"b" : [ ] }  ', True),
        ('{"b": [], "a": "x"}', False),
        ('{"a": "x", "b": ["1"]}', False),
        ('{"a": "x", "b": [1]', False),
        ('{"a": "x", "b": [1]} {}', False),
        ("", False),
    ],
)
def test_a_complete_text_is_compared_with_its_schema(text: str, has_form: bool) -> None:
    schema = {
        "type": "object", "additionalProperties": False, "required": ["a", "b"],
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "number"}}},
    }  # fmt: skip
    assert is_text_of(Grammar(schema=json.dumps(schema)), text) is has_form


def test_a_complete_text_is_compared_with_its_expression() -> None:
    grammar = Grammar(pattern="(ja|nein) *!")
    assert [is_text_of(grammar, text) for text in ("ja !", "nein", "ja !!", "ja   !")] == [
        True,
        False,
        False,
        True,
    ]
