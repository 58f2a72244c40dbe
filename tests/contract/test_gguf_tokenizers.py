"""Tokenizers rebuilt from GGUF: on a thousand mixed lines they give the tokens of the tokenizers that went in."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from services.architectures.gguf_vocabulary import ARRAYS, GgufVocabulary, read_gguf_vocabulary
from services.architectures.pre_tokenizers import PRE_TOKENIZERS
from services.files.gguf_files import read_gguf_model
from services.tokenizers import complete_tokenizer, load_tokenizer
from services.tokenizers.gguf_tokenizer import write_gguf_tokenizer
from tests.corpus import mixed_lines
from tests.reference.gguf_models import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    AddTokenizer,
    byte_level_tokens,
    sentencepiece_tokens,
)
from tests.reference.tiktoken_encoding import llama3_encoding
from tests.tokenizer_sets import TOKENIZER_SETS, TokenizerSet

LINES = mixed_lines(1000)


def vocabulary_of(folder: Path, add: AddTokenizer) -> GgufVocabulary:
    """The tokenizer of a file without tensors."""
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf_vocabulary(read_gguf_model(folder, ARRAYS))


def rebuilt(tmp_path: Path, add: AddTokenizer) -> Path:
    """A folder with the rebuilt files, completed as in a job."""
    vocabulary = vocabulary_of(tmp_path / "gguf", add)
    folder = tmp_path / "rebuilt"
    folder.mkdir()
    write_gguf_tokenizer(vocabulary, folder)
    complete_tokenizer(folder)
    return folder


# ---- SentencePiece ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizers_", TOKENIZER_SETS)
@pytest.mark.parametrize("name", ["llama", "chinese-alpaca"])
def test_a_sentencepiece_model_comes_back(tmp_path: Path, tokenizers_: TokenizerSet, name: str) -> None:
    path = tokenizers_.file(name)
    original = SentencePieceProcessor(model_file=str(path))
    size = original.vocab_size()
    folder = rebuilt(tmp_path, sentencepiece_tokens(path, rows=size + 6))

    found = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert found.vocab_size() == size, "padding is not part of the tokenizer"
    assert [found.id_to_piece(n) for n in range(size)] == [original.id_to_piece(n) for n in range(size)]
    assert found.encode(LINES) == original.encode(LINES)
    assert (found.bos_id(), found.eos_id(), found.unk_id()) == (1, 2, 0)
    ids = [n for line in LINES[:50] for n in original.encode(line)]
    assert found.decode(ids) == original.decode(ids)
    assert load_tokenizer(folder).encode("Hello") == [1, *original.encode("Hello")]


def test_tokens_that_were_added_are_split_off_first(tmp_path: Path, llama_file: Path) -> None:
    original = SentencePieceProcessor(model_file=str(llama_file))
    size = original.vocab_size()
    added = [("<|user|>", CONTROL), ("<think>", USER_DEFINED)]
    template = "{{ bos_token }}{{ messages[0]['content'] }}"
    more = {"chat_template": template, "padding_token_id": size, "eos_token_id": size, "add_bos_token": False}
    folder = rebuilt(tmp_path, sentencepiece_tokens(llama_file, added=added, more=more))

    tokenizer = load_tokenizer(folder)
    parts = [original.encode(text) for text in ("Hello", "world")]
    expected = [*parts[0], size, *parts[1], size + 1]
    assert tokenizer.encode("Hello<|user|>world<think>", parse_special=True) == expected
    assert tokenizer.hidden_ids >= {size, 1, 2} and size + 1 not in tokenizer.hidden_ids
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.add_bos) == (size, size, False)
    fast = AutoTokenizer.from_pretrained(folder)
    assert fast("Hello<|user|>world<think>")["input_ids"] == expected
    assert fast.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<s>x"


def test_no_space_is_put_before_a_text_where_the_file_says_so(tmp_path: Path, llama_file: Path) -> None:
    folder = rebuilt(tmp_path, sentencepiece_tokens(llama_file, more={"add_space_prefix": False}))
    found = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    original = SentencePieceProcessor(model_file=str(llama_file))
    assert found.encode(" Hello world") == original.encode("Hello world")
    assert found.encode("Hello") != original.encode("Hello")


@pytest.fixture
def llama_file() -> Path:
    return Path(__file__).parents[1] / "fixtures" / "tokenizers" / "llama.model"


# ---- byte-level ---------------------------------------------------------------------------------------

GPT2 = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def splits(*patterns: str) -> list[Any]:
    return [*(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns), BYTES]


PUBLISHED: dict[str, tuple[list[Any], bool]] = {
    "gpt-2": (GPT2, False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), *GPT2], False),
    "deepseek-coder": ([
        *splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")[:-1],
        pre_tokenizers.Digits(individual_digits=True), BYTES,
    ], False),
    **{
        name: (splits(GGUF_PRE_TOKENIZER_SPLITS[name]), name in ("llama-bpe", "tekken"))
        for name in ("llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o")
    },
}  # fmt: skip
"""Steps of the models' own tokenizer.json (of transformers' table where it has the name), and `ignore_merges`."""


@pytest.mark.parametrize("name", sorted(set(PRE_TOKENIZERS) & set(GGUF_PRE_TOKENIZER_SPLITS)))
def test_patterns_are_those_of_transformers_where_it_knows_the_name(name: str) -> None:
    assert PRE_TOKENIZERS[name].patterns == (GGUF_PRE_TOKENIZER_SPLITS[name],)


@cache
def trained(pre: str) -> str:
    """A tokenizer of 400 tokens that was trained on the lines with the published splitting, as JSON."""
    steps, whole_words = PUBLISHED[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.normalizer = normalizers.NFC() if "qwen" in pre else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES[::3], trainer)
    return str(tokenizer.to_str())


def tokens_of(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    content = json.loads(tokenizer.to_str())["model"]
    vocab = content["vocab"]
    return sorted(vocab, key=lambda token: vocab[token]), [" ".join(pair) for pair in content["merges"]]


def ids_of(tokenizer: Tokenizer, lines: Sequence[str] = LINES) -> list[list[int]]:
    return [found.ids for found in tokenizer.encode_batch(list(lines), add_special_tokens=False)]


@pytest.mark.parametrize("pre", PUBLISHED)
def test_a_byte_level_tokenizer_comes_back(tmp_path: Path, pre: str) -> None:
    original = Tokenizer.from_str(trained(pre))
    tokens, merges = tokens_of(original)
    folder = rebuilt(tmp_path, byte_level_tokens(tokens, merges, pre, rows=len(tokens) + 9))
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids_of(found) == ids_of(original)
    assert found.get_vocab_size() == len(tokens)
    assert found.decode(ids_of(original, ["naïve 好 😀"])[0]) == "naïve 好 😀"


def test_tokenizers_that_split_otherwise_give_other_tokens() -> None:
    """The comparison above can fail."""
    first = Tokenizer.from_str(trained("qwen2"))
    other = Tokenizer.from_str(trained("qwen2"))
    other.pre_tokenizer = pre_tokenizers.Sequence(GPT2)
    assert sum(a != b for a, b in zip(ids_of(first), ids_of(other), strict=True)) > 100


SPECIAL = ["<|bos|>", "<|end|>", "<|eot|>"]


@pytest.mark.parametrize("first", [True, False])
def test_special_tokens_before_or_after_the_others_keep_their_ids(tmp_path: Path, first: bool) -> None:
    tokens, merges = tokens_of(Tokenizer.from_str(trained("smollm")))
    added, kinds = [*SPECIAL, "<think>"], [CONTROL] * 3 + [USER_DEFINED]
    all_tokens = [*added, *tokens] if first else [*tokens, *added]
    types = [*kinds, *[NORMAL] * len(tokens)] if first else [*[NORMAL] * len(tokens), *kinds]
    ids = {text: all_tokens.index(text) for text in added}
    folder = rebuilt(tmp_path, byte_level_tokens(
        all_tokens, merges, "smollm", types=types, bos_token_id=ids["<|bos|>"], eos_token_id=ids["<|end|>"],
        eot_token_id=ids["<|eot|>"], add_bos_token=True, add_eos_token=True, chat_template="{{ eos_token }}x",
    ))  # fmt: skip
    original = Tokenizer.from_str(trained("smollm"))
    shift = len(added) if first else 0
    hello = [number + shift for number in ids_of(original, ["Hello 123"])[0]]

    fast = AutoTokenizer.from_pretrained(folder)
    assert fast("Hello 123")["input_ids"] == [ids["<|bos|>"], *hello, ids["<|end|>"]]
    assert fast("<think>Hello 123<|eot|>", add_special_tokens=False)["input_ids"] == [
        ids["<think>"],
        *hello,
        ids["<|eot|>"],
    ]
    assert (
        fast.decode([ids["<|eot|>"], *hello, ids["<think>"]], skip_special_tokens=True) == "Hello 123<think>"
    )
    assert fast.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<|end|>x"
    assert (fast.bos_token_id, fast.eos_token_id) == (ids["<|bos|>"], ids["<|end|>"])
    ours = load_tokenizer(folder)
    assert ours.encode("Hello 123 <think>", add_bos=False)[: len(hello)] == hello


def test_llama_3s_tokenizer_gives_tiktokens_tokens(tmp_path: Path) -> None:
    model = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "llama3.model"
    encoding = llama3_encoding(model)
    alphabet = bytes_to_unicode()
    ranks = {"".join(alphabet[b] for b in token): rank for token, rank in encoding._mergeable_ranks.items()}
    tokens = sorted(ranks, key=lambda token: ranks[token])
    pairs = [(token[:at], token[at:]) for token in tokens for at in range(1, len(token))]
    merges = [f"{a} {b}" for a, b in pairs if a in ranks and b in ranks]
    folder = rebuilt(tmp_path, byte_level_tokens(tokens, merges, "llama-bpe"))
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids_of(found) == [encoding.encode_ordinary(line) for line in LINES]
