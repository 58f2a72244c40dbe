"""Extended vocabularies against the published ones, byte for byte."""

import hashlib
from pathlib import Path

import pytest
import sentencepiece

from services.errors import InvalidRequest, UnreadableTokenizer
from services.tokenizers.extend import extend_vocabulary, sample_tokenizations
from tests.reference.tokenizer_files import sentencepiece_file

DATA = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real tokenizers are not on this machine")

BASE = sentencepiece_file(["<unk>", "<s>", "</s>", "a", "b"])
ADDITION = sentencepiece_file(["<unk>", "<s>", "</s>", "b", "国", "中", "a"])


@needs_data
def test_llama_and_the_chinese_pieces_give_the_published_file_of_chinese_llama() -> None:
    base, addition = (DATA / "llama.model").read_bytes(), (DATA / "chinese_sp.model").read_bytes()
    extended = extend_vocabulary(base, addition)
    digest = "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"
    assert hashlib.sha256((DATA / "chinese-llama.model").read_bytes()).hexdigest() == digest
    assert hashlib.sha256(extended.model).hexdigest() == digest
    assert (extended.base, extended.added, extended.present, extended.total) == (32000, 17953, 2047, 49953)


@needs_data
def test_with_a_padding_token_it_is_the_published_file_of_chinese_alpaca() -> None:
    base, addition = (DATA / "llama.model").read_bytes(), (DATA / "chinese_sp.model").read_bytes()
    extended = extend_vocabulary(base, addition, pad_token="[PAD]")
    assert extended.model == (DATA / "chinese-alpaca.model").read_bytes()
    assert hashlib.sha256(extended.model).hexdigest().startswith("2d967e85")
    assert (extended.added, extended.present, extended.total) == (17954, 2047, 49954)


@needs_data
def test_samples_show_fewer_tokens_for_chinese_and_the_same_for_english() -> None:
    before, after = ((DATA / f"{name}.model").read_bytes() for name in ("llama", "chinese-llama"))
    text, english = "人工智能是计算机科学的一个分支。", "Hello world"
    chinese, plain = sample_tokenizations(before, after, [text, english])
    reference = sentencepiece.SentencePieceProcessor(model_proto=after)
    assert chinese["after"] == " ".join(reference.encode(text, out_type=str))
    assert (chinese["tokens_before"], chinese["tokens_after"]) == (17, 8)
    assert plain["before"] == plain["after"] == "▁Hello ▁world"


def test_what_is_there_keeps_its_place_and_what_is_new_comes_in_its_own_order() -> None:
    extended = extend_vocabulary(BASE, ADDITION, pad_token="[PAD]")
    found = sentencepiece.SentencePieceProcessor(model_proto=extended.model)
    pieces = [found.id_to_piece(number) for number in range(found.get_piece_size())]
    assert pieces == ["<unk>", "<s>", "</s>", "a", "b", "国", "中", "[PAD]"]
    assert [found.get_score(number) for number in (4, 5, 7)] == [-4.0, 0.0, 0.0]
    assert not found.is_control(7)
    assert extended.model.startswith(BASE)
    assert (extended.base, extended.added, extended.present) == (5, 3, 5)


def test_the_base_as_its_own_addition_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="all 5 pieces of the addition are among the base's 5"):
        extend_vocabulary(BASE, BASE)


def test_a_padding_token_that_is_there_already_is_refused() -> None:
    for piece in ("<unk>", "国"):
        with pytest.raises(InvalidRequest, match="is a piece of the vocabulary already"):
            extend_vocabulary(BASE, ADDITION, pad_token=piece)


def test_a_truncated_addition_is_refused() -> None:
    with pytest.raises(UnreadableTokenizer, match=r"the addition \(40 bytes\) is no SentencePiece model"):
        extend_vocabulary(BASE, ADDITION[:40])
