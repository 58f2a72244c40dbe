"""Random outputs under a grammar, without a model, for tokenizers of every kind."""

import json
import random
from pathlib import Path

import jsonschema
import pytest
import regex

from services.errors import UnsupportedSchema
from services.generate.guide import GuideMaker
from services.grammar import Grammar
from services.tokenizers import Tokenizer
from tests.contract.every_tokenizer import KINDS, tokenizer_of
from tests.contract.generate.random_schemas import schema

PADDING = 7
"""Rows of the model beyond the tokenizer's last id."""


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return tokenizer_of(request.param, tmp_path)


def random_output(maker: GuideMaker, grammar: Grammar, ends: set[int], chance: random.Random) -> list[int]:
    """Ids that a model without any preference writes, without the end; long texts end where they may."""
    guide = maker.make(grammar)
    assert guide is not None
    ids: list[int] = []
    while len(ids) < 2000:
        allowed = guide.allowed(ends).nonzero()[:, 0].tolist()
        token_id = chance.choice([*(ends & {*allowed}), *chance.sample(allowed, min(3, len(allowed)))])
        if token_id in ends:
            return ids
        ids.append(token_id)
        if guide.take(token_id):
            return ids
    raise AssertionError("no end")


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = tokenizer.stream_decoder()
    return "".join(map(decoder.feed, ids)) + decoder.flush()


def test_random_json_is_admitted_by_its_schema(tokenizer: Tokenizer) -> None:
    chance = random.Random(5)
    rows = tokenizer.vocabulary_size + PADDING
    maker, ends = GuideMaker(tokenizer, rows), {rows - PADDING - 1}
    special = {*tokenizer.special_tokens.values(), *range(rows - PADDING, rows)}
    for _ in range(60):
        admitted = schema(chance)
        ids = random_output(maker, Grammar(schema=json.dumps(admitted)), ends, chance)
        assert not special & {*ids}
        text = streamed(tokenizer, ids)
        jsonschema.Draft202012Validator(admitted).validate(json.loads(text))
        assert text == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "pattern", [" ?x{1,3}", "  [ab]+", r"\s*\d{2}", "羊驼?|é", r"[^a]{3,6}", r"(?s).{2,9}"]
)
def test_random_texts_match_their_expression(tokenizer: Tokenizer, pattern: str) -> None:
    chance = random.Random(6)
    maker = GuideMaker(tokenizer, tokenizer.vocabulary_size)
    for _ in range(25):
        ids = random_output(maker, Grammar(pattern=pattern), {tokenizer.eos_id or 2}, chance)
        text = streamed(tokenizer, ids)
        assert regex.fullmatch(pattern, text), (text, [tokenizer.piece(n) for n in ids])


def test_an_end_is_allowed_only_where_the_grammar_is_complete(tokenizer: Tokenizer) -> None:
    ends = {tokenizer.vocabulary_size - 1, tokenizer.vocabulary_size - 2}
    guide = GuideMaker(tokenizer, tokenizer.vocabulary_size).make(Grammar(pattern="ab?"))
    (a,) = [n for n, piece in enumerate(tokenizer.token_bytes()) if piece == b"a"][:1]
    assert guide is not None
    assert not guide.allowed(ends)[[*ends]].any()
    assert not guide.take(a)
    assert guide.allowed(ends)[[*ends]].all()


def test_a_vocabulary_that_cannot_write_a_text_is_an_error(tokenizer: Tokenizer) -> None:
    class Letters(Tokenizer):
        def token_bytes(self) -> list[bytes]:
            return [b"a", b"b"]

    letters = Letters(tokenizer._codec, tokenizer._special)
    guide = GuideMaker(letters, 4).make(Grammar(pattern="[ab]c"))
    assert guide is not None
    guide.take(0)
    with pytest.raises(UnsupportedSchema, match="no token of the model's vocabulary"):
        guide.allowed([3])
