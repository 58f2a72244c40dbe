"""The pieces of tokenizers' files: hand-made, trained and damaged ones."""

import hashlib
import random
import struct
from pathlib import Path

import pytest

from services.architectures.vocabulary import read_vocabulary
from services.errors import UnreadableTokenizer
from tests.miniature import MINIATURE
from tests.reference.tokenizer_files import piece_names, sentencepiece_file, tiktoken_file
from tests.tokenizer_sets import PUBLISHED, TokenizerSet


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- right --------------------------------------------------------------------------------------------


def test_pieces_are_read_in_the_order_of_their_ids(tmp_path: Path) -> None:
    content = sentencepiece_file(["<unk>", "<s>", "</s>", "▁the", "羊驼", "x" * 300])
    vocabulary = read_vocabulary(written(tmp_path / "tokenizer.model", content))
    assert vocabulary.kind == "sentencepiece"
    assert vocabulary.pieces == (b"<unk>", b"<s>", b"</s>", "▁the".encode(), "羊驼".encode(), b"x" * 300)
    assert vocabulary.size == 6
    assert vocabulary.sha256 == hashlib.sha256(content).hexdigest()


def test_a_tiktoken_file_is_told_apart_by_its_content(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(written(tmp_path / "tokenizer.model", tiktoken_file(300)))
    assert (vocabulary.kind, len(vocabulary.pieces), vocabulary.size) == ("tiktoken", 300, 556)
    assert (vocabulary.pieces[65], vocabulary.pieces[256]) == (b"A", b"run0")


def test_a_longer_vocabulary_continues_a_shorter_one_and_not_the_other_way(tmp_path: Path) -> None:
    short = read_vocabulary(written(tmp_path / "a", sentencepiece_file(piece_names(101))))
    long = read_vocabulary(written(tmp_path / "b", sentencepiece_file(piece_names(113))))
    other_pieces = piece_names(113)
    other_pieces[57] = "other"
    other = read_vocabulary(written(tmp_path / "c", sentencepiece_file(other_pieces)))

    assert long.continues(short)
    assert short.continues(short)
    assert not short.continues(long)
    assert not other.continues(short)
    assert (other.first_difference(long), long.first_difference(short)) == (57, 101)


def test_files_of_different_kinds_never_continue_each_other(tmp_path: Path) -> None:
    one = read_vocabulary(written(tmp_path / "a", tiktoken_file(3)))
    pieces = ["\0", "\x01", "\x02", "more"]
    other = read_vocabulary(written(tmp_path / "b", sentencepiece_file(pieces)))
    assert other.pieces[:3] == one.pieces
    assert not other.continues(one)


def test_the_miniatures_tokenizer_has_608_pieces() -> None:
    assert read_vocabulary(MINIATURE / "llama" / "tokenizer.model").size == 608


DIGESTS = {
    "llama": (32000, "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"),
    "chinese-llama": (49953, "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"),
    "chinese-alpaca": (49954, "2d967e855b1213a439df6c8ce2791f869c84b4f3b6cfacf22b86440b8192a2f8"),
}


@pytest.mark.published
@pytest.mark.parametrize("name", DIGESTS)
def test_published_tokenizers_have_their_sizes_and_digests(name: str) -> None:
    vocabulary = read_vocabulary(PUBLISHED.file(name))
    assert (vocabulary.size, vocabulary.sha256) == DIGESTS[name]


@pytest.mark.parametrize("name", ["llama", "chinese-llama", "chinese-alpaca"])
def test_llamas_tokenizers_begin_with_special_tokens_and_bytes(name: str, tokenizers: TokenizerSet) -> None:
    vocabulary = read_vocabulary(tokenizers.file(name))
    assert vocabulary.pieces[:3] == (b"<unk>", b"<s>", b"</s>")
    assert vocabulary.pieces[3:259] == tuple(f"<0x{byte:02X}>".encode() for byte in range(256))


def test_the_vocabularies_continue_each_other_in_the_order_of_their_adapters(
    tokenizers: TokenizerSet,
) -> None:
    llama, chinese, alpaca = (read_vocabulary(tokenizers.file(name)) for name in DIGESTS)
    assert (llama.size, chinese.size, alpaca.size) == (
        tokenizers.base, tokenizers.chinese, tokenizers.chinese + 1,
    )  # fmt: skip
    assert chinese.continues(llama)
    assert alpaca.continues(chinese)
    assert not chinese.continues(alpaca)
    assert alpaca.pieces[-1] == b"[PAD]"
    assert not read_vocabulary(tokenizers.file("chinese_sp")).continues(llama)


def test_llama_3s_file_is_tiktokens(tokenizers: TokenizerSet) -> None:
    vocabulary = read_vocabulary(tokenizers.file("llama3"))
    ranks = tokenizers.ranks
    assert (vocabulary.kind, len(vocabulary.pieces), vocabulary.size) == ("tiktoken", ranks, ranks + 256)


# ---- damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\x05\x0a\x09ab", b"\x0b\x00",
        b"\x0a\x02\x18\x01", b"\x09\x00", b"not a tokenizer", b"\xff" * 100, b"\x12\x00",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:9e556afd\nsize 499723\n", b"<!DOCTYPE html>\n<html>",
        b'{"version": "1.0", "model": {"type": "BPE"}}',
    ],
)  # fmt: skip
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnreadableTokenizer, match=r"tokenizer\.model"):
        read_vocabulary(written(tmp_path / "tokenizer.model", content))


def test_a_tiktoken_file_with_a_hole_is_refused_with_the_line(tmp_path: Path) -> None:
    lines = tiktoken_file(20).splitlines(keepends=True)
    with pytest.raises(UnreadableTokenizer, match="line 8 has rank 8 instead of 7"):
        read_vocabulary(written(tmp_path / "tokenizer.model", b"".join(lines[:7] + lines[8:])))


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate(33 * 2**20)
    with pytest.raises(UnreadableTokenizer, match="34603008 bytes; at most 33554432 are read"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    "content", [sentencepiece_file(piece_names(20)), tiktoken_file(20)], ids=["sp", "tiktoken"]
)
def test_a_damaged_file_is_refused_or_read_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    random_ = random.Random(4)
    spoiled = [content[:length] for length in range(len(content))]
    for _ in range(200):
        data = bytearray(content)
        for _ in range(random_.choice((1, 1, 3))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        spoiled.append(bytes(data))
    for data in spoiled:
        path.write_bytes(data)
        try:
            vocabulary = read_vocabulary(path)
        except UnreadableTokenizer:
            continue
        assert sum(map(len, vocabulary.pieces)) <= len(data)


def test_a_rank_of_many_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableTokenizer):
        read_vocabulary(written(tmp_path / "tokenizer.model", b"QQ== " + b"9" * 5000 + b"\n"))


def test_fields_that_are_not_pieces_are_passed_over(tmp_path: Path) -> None:
    """Trainer and normalizer settings follow the pieces in every published file."""
    other = b"\x12\x03abc" + b"\x18\x07" + b"\x21" + struct.pack("<d", 1.0) + b"\x2d" + struct.pack("<f", 1.0)
    content = other + sentencepiece_file(["<unk>", "a"]) + other
    assert read_vocabulary(written(tmp_path / "tokenizer.model", content)).pieces == (b"<unk>", b"a")
