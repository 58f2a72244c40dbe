"""Our tokenizers compared with SentencePiece, tiktoken and transformers themselves."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from services.errors import InvalidRequest, InvalidText, UnreadableTokenizer
from services.templates import BOS, EOS, Segment, Text, render
from services.tokenizers import Tokenizer, load_tokenizer
from services.tokenizers.tiktoken import split_long_runs
from tests.corpus import mixed_lines
from tests.reference.tiktoken_encoding import llama3_encoding
from tests.tokenizer_sets import TokenizerSet

SENTENCEPIECE = ("llama", "chinese-llama", "chinese-alpaca")
LINES = mixed_lines()


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True) -> list[str]:
    decoder = tokenizer.stream_decoder(skip_special)
    return [*(decoder.feed(token_id) for token_id in ids), decoder.flush()]


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def pair(request: pytest.FixtureRequest, tokenizers: TokenizerSet) -> tuple[Tokenizer, Any]:
    file = tokenizers.file(request.param)
    return load_tokenizer(file), sentencepiece.SentencePieceProcessor(model_file=str(file))


@pytest.fixture(scope="module")
def llama_3(tokenizers: TokenizerSet) -> tuple[Tokenizer, tiktoken.Encoding]:
    first, file = tokenizers.ranks, tokenizers.file("llama3")
    named = {"<|begin_of_text|>": first, "<|end_of_text|>": first + 1, "<|start_header_id|>": first + 6}
    named |= {"<|end_header_id|>": first + 7, "<|eot_id|>": first + 9}
    return load_tokenizer(file), llama3_encoding(file, named)


# ---- SentencePiece ------------------------------------------------------------------------------------


def test_every_mixed_line_is_encoded_as_sentencepiece_does(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, reference = pair
    assert len(LINES) >= 1000
    assert [line for line in LINES if tokenizer.encode(line) != [1, *reference.encode(line)]] == []


def test_every_mixed_line_is_decoded_as_sentencepiece_does(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, reference = pair
    encoded = [reference.encode(line) for line in LINES]
    assert [ids for ids in encoded if tokenizer.decode([1, *ids, 2]) != reference.decode(ids)] == []


def test_streaming_any_tokens_gives_what_sentencepiece_makes_of_all_of_them(
    pair: tuple[Tokenizer, Any], tokenizers: TokenizerSet
) -> None:
    tokenizer, reference = pair
    random_, space = random.Random(7), tokenizers.space
    # Random tokens are seldom valid text; a third of them are single bytes.
    wild = [
        [
            random_.choice((random_.randrange(reference.get_piece_size()), random_.randrange(3, 259), space))
            for _ in range(20)
        ]
        for _ in range(600)
    ]
    for ids in [*wild, *(reference.encode(line) for line in LINES)]:
        assert "".join(streamed(tokenizer, ids)) == reference.decode(ids)
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_a_character_of_several_byte_tokens_comes_out_whole(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, reference = pair
    ids = reference.encode("A😀B")
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == "A😀B"
    assert [piece for piece in pieces if piece] == ["A", "😀", "B"]


def test_an_output_has_no_invented_space_and_keeps_its_own(
    pair: tuple[Tokenizer, Any], tokenizers: TokenizerSet
) -> None:
    tokenizer, _ = pair
    hello, world, space = tokenizers.hello, tokenizers.world, tokenizers.space
    assert streamed(tokenizer, [hello, world]) == ["Hello", " world", ""]
    assert streamed(tokenizer, [space, hello]) == ["", " Hello", ""]
    assert streamed(tokenizer, [1, 13, hello, 2]) == ["", "\n", " Hello", "", ""]


def test_text_that_looks_like_a_special_token_becomes_one_only_when_asked(
    pair: tuple[Tokenizer, Any],
) -> None:
    tokenizer, reference = pair
    text = "Hi</s>there"
    assert tokenizer.encode(text) == [1, *reference.encode(text)]
    parsed = [1, *reference.encode("Hi"), 2, *reference.encode("there")]
    assert tokenizer.encode(text, parse_special=True) == parsed
    assert tokenizer.encode_segments([Text("H"), Text("i"), EOS, Text("there")]) == parsed
    assert tokenizer.decode(parsed) == reference.decode(parsed)
    assert tokenizer.decode(parsed, skip_special=False) == "<s>Hi</s>there"
    assert "".join(streamed(tokenizer, parsed, skip_special=False)) == "<s>Hi</s>there"


def test_the_beginning_of_text_comes_once_or_not_at_all(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, reference = pair
    hi = reference.encode("Hi")
    assert tokenizer.encode("Hi", add_bos=False) == hi
    assert tokenizer.encode_segments([BOS, Text("Hi")]) == [1, *hi]
    assert tokenizer.encode("") == [1]


def test_a_conversation_is_encoded_turn_by_turn_as_metas_code_does(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, reference = pair
    first, later = "[INST] Hi [/INST] Hello", "[INST] 再见 [/INST]"
    segments: list[Segment] = [Text(first), EOS, BOS, Text(later)]
    assert tokenizer.encode_segments(segments) == [
        1,
        *reference.encode(first),
        2,
        1,
        *reference.encode(later),
    ]


def test_roles_and_sizes_are_those_of_the_file(pair: tuple[Tokenizer, Any], tokenizers: TokenizerSet) -> None:
    tokenizer, reference = pair
    assert tokenizer.vocabulary_size == reference.get_piece_size()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids, tokenizer.add_bos) == (
        1,
        2,
        frozenset({2}),
        True,
    )
    assert (tokenizer.piece(tokenizers.hello), tokenizer.piece(2), tokenizer.piece(10**6)) == (
        "▁Hello",
        "</s>",
        "",
    )


def test_tokens_beyond_the_vocabulary_have_no_text(
    pair: tuple[Tokenizer, Any], tokenizers: TokenizerSet
) -> None:
    tokenizer, _ = pair
    ids = [tokenizers.hello, 60000, tokenizers.world]
    assert tokenizer.decode(ids) == "Hello world"
    assert streamed(tokenizer, ids) == ["Hello", "", " world", ""]


def test_the_padding_token_of_a_chinese_alpaca_folder_is_hidden_and_never_typed(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    shutil.copy(tokenizers.file("chinese-alpaca"), tmp_path / "tokenizer.model")
    (tmp_path / "special_tokens_map.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}'
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_id == tokenizers.chinese
    assert tokenizer.decode([tokenizers.hello, tokenizers.chinese]) == "Hello"
    assert tokenizers.chinese not in tokenizer.encode("[PAD]")
    assert tokenizer.encode("[PAD]", parse_special=True) == [1, tokenizers.chinese]


def test_a_folders_config_names_added_tokens_ends_and_the_beginning_rule(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    first, hello, world = tokenizers.base, tokenizers.hello, tokenizers.world
    shutil.copy(tokenizers.file("llama"), tmp_path / "tokenizer.model")
    added = {
        str(first): {"content": "<|im_end|>", "special": True},
        str(first + 1): {"content": "<|im_start|>", "special": True},
        str(first + 2): {"content": "<image>", "special": False},
    }
    config = {"added_tokens_decoder": added, "eos_token": {"content": "<|im_end|>"}, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [2, {first}]}}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.eos_ids) == (
        first + 3,
        first,
        frozenset({2, first}),
    )
    assert tokenizer.encode("Hello") == [hello]
    assert tokenizer.decode([hello, first + 2, world, first]) == "Hello<image>world"
    prompt = tokenizer.encode_segments(render("chatml", instruction="Hello"))
    assert [token_id for token_id in prompt if token_id >= first] == [first + 1, first, first + 1]


def test_a_template_of_another_family_is_text_or_refused(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, reference = pair
    chatml = tokenizer.encode_segments(render("chatml", instruction="Hi"))
    assert chatml == [1, *reference.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")]
    with pytest.raises(InvalidRequest, match=r"<\|start_header_id\|>"):
        tokenizer.encode_segments(render("llama-3", instruction="Hi"))


def test_half_a_character_is_refused_before_sentencepiece_sees_it(pair: tuple[Tokenizer, Any]) -> None:
    with pytest.raises(InvalidText, match="position 1"):
        pair[0].encode("a\ud83d")


# ---- tiktoken -----------------------------------------------------------------------------------------


def test_every_mixed_line_is_encoded_as_tiktoken_does(
    llama_3: tuple[Tokenizer, tiktoken.Encoding], tokenizers: TokenizerSet
) -> None:
    tokenizer, reference = llama_3
    assert [
        line
        for line in LINES
        if tokenizer.encode(line) != [tokenizers.ranks, *reference.encode_ordinary(line)]
    ] == []


def test_special_tokens_of_llama_3_are_parsed_as_tiktoken_does(
    llama_3: tuple[Tokenizer, tiktoken.Encoding],
) -> None:
    tokenizer, reference = llama_3
    text = "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
    expected = reference.encode(text, allowed_special="all")
    assert tokenizer.encode(text, parse_special=True, add_bos=False) == expected
    assert (
        tokenizer.encode_segments(render("llama-3", instruction="你好"), add_bos=False)[: len(expected)]
        == expected
    )


def test_streaming_any_tokens_gives_what_tiktoken_makes_of_all_of_them(
    llama_3: tuple[Tokenizer, tiktoken.Encoding], tokenizers: TokenizerSet
) -> None:
    tokenizer, reference = llama_3
    random_, ranks = random.Random(7), tokenizers.ranks
    wild = [
        [random_.choice((random_.randrange(ranks), random_.randrange(256))) for _ in range(20)]
        for _ in range(600)
    ]
    for ids in [*wild, *(reference.encode_ordinary(line) for line in LINES)]:
        assert "".join(streamed(tokenizer, ids)) == reference.decode(ids)
        assert tokenizer.decode([ranks, *ids, ranks + 9]) == reference.decode(ids)


def test_the_special_tokens_of_3_and_3_1_differ_where_meta_changed_them(
    tmp_path: Path, tokenizers: TokenizerSet
) -> None:
    first = tokenizers.ranks
    shutil.copy(tokenizers.file("llama3"), tmp_path / "tokenizer.model")
    old = load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}')
    new = load_tokenizer(tmp_path)
    for tokenizer in (old, new):
        assert tokenizer.vocabulary_size == first + 256
        assert len(tokenizer.special_tokens) == 256
        assert tokenizer.special_tokens["<|begin_of_text|>"] == first
        assert tokenizer.special_tokens["<|start_header_id|>"] == first + 6
        assert tokenizer.special_tokens["<|eot_id|>"] == first + 9
    changed = [first + offset for offset in (4, 8, 10, 255)]
    assert [old.piece(token_id) for token_id in changed] == [
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_4|>",
        "<|reserved_special_token_5|>",
        "<|reserved_special_token_250|>",
    ]
    assert [new.piece(token_id) for token_id in changed] == [
        "<|finetune_right_pad_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_247|>",
    ]
    assert (sorted(old.eos_ids), sorted(new.eos_ids)) == (
        [first + 1, first + 9],
        [first + 1, first + 8, first + 9],
    )


def test_a_million_spaces_do_not_end_the_process(llama_3: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    tokenizer, _ = llama_3
    assert tokenizer.decode(tokenizer.encode(" " * 1_000_000)) == " " * 1_000_000


def test_long_runs_are_cut_where_metas_tokenizer_cuts_them() -> None:
    text = "a" * 60_000 + " " * 25_000 + "b" * 25_001
    assert [len(part) for part in split_long_runs(text)] == [25_000, 25_000, 10_000 + 25_000 + 25_000, 1]
    assert [len(part) for part in split_long_runs("a b" * 200_000)] == [400_000, 200_000]
    assert list(split_long_runs("")) == []


# ---- folders with tokenizer.json alone ----------------------------------------------------------------


@pytest.fixture(scope="module")
def json_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer, trained here."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|pad|>", special=True)])
    folder = tmp_path_factory.mktemp("json")
    made: Any = PreTrainedTokenizerFast
    fast = made(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.save_pretrained(folder)
    return folder


def test_a_folder_with_tokenizer_json_alone_is_read_through_transformers(json_folder: Path) -> None:
    tokenizer, reference = load_tokenizer(json_folder), PreTrainedTokenizerFast.from_pretrained(json_folder)
    plain = [line for line in LINES if "<|end|>" not in line]
    assert [line for line in plain if tokenizer.encode(line) != reference.encode(line)] == []
    assert (tokenizer.bos_id, tokenizer.add_bos) == (None, False)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (reference.eos_token_id, reference.pad_token_id)
    assert tokenizer.vocabulary_size == len(reference)


def test_typed_special_tokens_stay_text_with_tokenizer_json_too(json_folder: Path) -> None:
    tokenizer = load_tokenizer(json_folder)
    assert tokenizer.eos_id not in tokenizer.encode("a<|end|>b")
    assert tokenizer.decode(tokenizer.encode("a<|end|>b")) == "a<|end|>b"
    assert tokenizer.encode("a<|end|>b", parse_special=True)[1] == tokenizer.eos_id


def test_streaming_with_tokenizer_json_equals_decoding(json_folder: Path) -> None:
    tokenizer, reference = load_tokenizer(json_folder), PreTrainedTokenizerFast.from_pretrained(json_folder)
    random_ = random.Random(7)
    wild = [[random_.randrange(tokenizer.vocabulary_size) for _ in range(20)] for _ in range(200)]
    for ids in [*wild, *(tokenizer.encode(line) for line in LINES[:200])]:
        expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(streamed(tokenizer, ids)) == expected
        assert tokenizer.decode(ids) == expected


# ---- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.model nor tokenizer.json"),
        ({"tokenizer.model": b""}, r"tokenizer.model \(0 bytes\)"),
        ({"tokenizer.model": b"version https://git-lfs.github.com/spec/v1\n"}, "not a SentencePiece model"),
        ({"tokenizer.model": b"IQ== 0\nIg== x\n"}, "Line 2"),
        ({"tokenizer.model": b"IQ== 0\nIg== 2\n"}, "ranks do not run from 0 to 1"),
        ({"tokenizer.model": b"IQ== 0\n", "tokenizer_config.json": b"{"}, "tokenizer_config.json"),
        ({"tokenizer.model": b"IQ== 0\n", "config.json": b"[]"}, "config.json holds a list"),
        ({"tokenizer.json": b"{}"}, "cannot be loaded"),
    ],
)
def test_a_missing_or_damaged_tokenizer_is_refused_by_name(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableTokenizer, match=message):
        load_tokenizer(tmp_path)
