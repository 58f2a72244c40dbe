"""Bytes of tokens: together they are the text, for tokenizers of every kind."""

from pathlib import Path

import pytest

from services.tokenizers import Tokenizer
from tests.contract.every_tokenizer import KINDS, tokenizer_of
from tests.corpus import mixed_lines

LINES = [line for line in mixed_lines(1500) if line]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return tokenizer_of(request.param, tmp_path)


def test_the_bytes_of_a_texts_tokens_are_the_text(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.token_bytes()
    first = set(tokenizer.without_first_space(pieces))
    for line in LINES:
        ids = tokenizer.encode(line, add_bos=False)
        joined = b"".join(pieces[token_id] for token_id in ids)
        assert joined.removeprefix(b" " if ids[0] in first else b"").decode() == tokenizer.decode(ids)


def test_each_token_adds_its_bytes_to_a_text(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.token_bytes()
    before = tokenizer.encode("x", add_bos=False)
    text = tokenizer.decode(before)
    whole = [number for number, piece in enumerate(pieces) if piece and piece.isascii()]
    assert len(whole) > 100
    assert [n for n in whole if tokenizer.decode([*before, n]) != text + pieces[n].decode()] == []


def test_every_byte_can_be_written(tokenizer: Tokenizer) -> None:
    assert {piece for piece in tokenizer.token_bytes() if len(piece) == 1} == {bytes([n]) for n in range(256)}


def test_special_tokens_have_no_bytes(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.token_bytes()
    assert [n for n in tokenizer.special_tokens.values() if n < len(pieces) and pieces[n]] == []


def test_the_first_space_is_lost_with_sentencepiece_only(
    tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    pieces = tokenizer.token_bytes()
    lost = tokenizer.without_first_space(pieces)
    name = request.node.callspec.params["tokenizer"]
    assert bool(lost) is not name.startswith(("llama3", "byte-level"))
    assert all(not tokenizer.decode([n]).startswith(" ") for n in lost if not pieces[n].startswith(b"  "))
