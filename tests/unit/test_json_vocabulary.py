"""The pieces of a tokenizer.json: as `tokenizers` numbers them, or refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from services.architectures.json_vocabulary import read_folder_vocabulary, read_json_vocabulary
from services.architectures.vocabulary import read_vocabulary
from services.errors import UnreadableTokenizer
from services.files.json_members import members, value_at
from tests.corpus import mixed_lines
from tests.reference.tokenizer_files import piece_names, sentencepiece_file
from tests.tokenizer_sets import OURS

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A byte-level tokenizer of 400 pieces and three added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(mixed_lines(300), trainer)
    tokenizer.add_special_tokens(
        [AddedToken("<|end|>", special=True), AddedToken("<｜羊驼｜>", special=True)]
    )
    tokenizer.add_tokens([AddedToken("two words", normalized=False)])
    return tokenizer


@pytest.fixture
def path(trained: Tokenizer, tmp_path: Path) -> Path:
    trained.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def changed(path: Path, change: Change) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# ---- right --------------------------------------------------------------------------------------------


def test_byte_level_pieces_are_the_bytes_that_tokenizers_decodes(trained: Tokenizer, path: Path) -> None:
    vocabulary = read_json_vocabulary(path)
    assert (vocabulary.kind, vocabulary.size, vocabulary.text_size) == ("byte-level", 403, 400)
    for number, piece in enumerate(vocabulary.pieces):
        assert piece.decode("utf-8", "replace") == trained.decode([number], skip_special_tokens=False)
    assert vocabulary.pieces[-3:] == (b"<|end|>", "<｜羊驼｜>".encode(), b"two words")


def test_all_tokens_of_a_line_join_to_its_bytes(trained: Tokenizer, path: Path) -> None:
    pieces = read_json_vocabulary(path).pieces
    for line in mixed_lines(200):
        assert b"".join(pieces[number] for number in trained.encode(line).ids) == line.encode()


@pytest.mark.parametrize("name", ["llama", "chinese-alpaca"])
def test_a_table_of_sentencepiece_pieces_equals_the_model_that_it_came_from(
    name: str, tmp_path: Path
) -> None:
    model = read_vocabulary(OURS.file(name))
    pieces = {piece.decode(): number for number, piece in enumerate(model.pieces)}
    Tokenizer(models.BPE(vocab=pieces, merges=[])).save(str(tmp_path / "tokenizer.json"))
    table = read_json_vocabulary(tmp_path / "tokenizer.json")
    assert (table.kind, table.pieces) == ("sentencepiece", model.pieces)
    assert table.continues(model)


def test_a_unigram_list_is_numbered_by_its_order(tmp_path: Path) -> None:
    Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)], 0)).save(str(tmp_path / "t.json"))
    vocabulary = read_json_vocabulary(tmp_path / "t.json")
    assert (vocabulary.kind, vocabulary.pieces) == ("sentencepiece", (b"<unk>", "▁a".encode(), b"b"))


def test_llama_3s_ranks_and_its_tokenizer_json_continue_each_other(tmp_path: Path) -> None:
    """One lists the same pieces as bytes, and its 256 special tokens only as a number."""
    ranks = read_vocabulary(OURS.file("llama3"))
    alphabet = bytes_to_unicode()
    vocab = {"".join(alphabet[byte] for byte in piece): number for number, piece in enumerate(ranks.pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|special_{number}|>" for number in range(256)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = read_json_vocabulary(tmp_path / "tokenizer.json")
    assert table.size == ranks.size
    assert table.continues(ranks)
    assert ranks.continues(table)


def test_an_added_token_continues_the_vocabulary_and_another_piece_does_not(path: Path) -> None:
    base = read_json_vocabulary(path)
    added = {
        **json.loads(path.read_text(encoding="utf-8"))["added_tokens"][0], "id": 403, "content": "<|new|>",
    }  # fmt: skip
    longer = read_json_vocabulary(changed(path, lambda content: content["added_tokens"].append(added)))
    assert (longer.size, longer.pieces[-1]) == (404, b"<|new|>")
    assert longer.continues(base)
    assert not base.continues(longer)
    other = read_json_vocabulary(
        changed(path, lambda content: content["added_tokens"][0].update(content="<|other|>"))
    )
    assert not other.continues(base)
    assert other.first_difference(base) == 400


def test_an_id_that_no_piece_has_may_be_taken_later(tmp_path: Path) -> None:
    for name, vocab in (("early", {"a": 0, "b": 2}), ("late", {"a": 0, "new": 1, "b": 2})):
        content = {"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    early, late = (read_json_vocabulary(tmp_path / f"{name}.json") for name in ("early", "late"))
    assert early.pieces == (b"a", b"", b"b")
    assert late.continues(early)
    assert not early.continues(late)


def test_a_tokenizer_model_comes_before_a_tokenizer_json(path: Path) -> None:
    found = read_folder_vocabulary(path.parent)
    assert found is not None
    assert found.file == "tokenizer.json"
    (path.parent / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(7)))
    found = read_folder_vocabulary(path.parent)
    assert found is not None
    assert (found.file, found.size) == ("tokenizer.model", 7)
    assert read_folder_vocabulary(path.parent / "nothing") is None


def test_values_are_found_wherever_they_are_and_skipped_where_they_are_not_needed() -> None:
    data = json.dumps(
        {"skipped": ['"}]\\', {"a": [1, "]"]}], "model": {"x": -1.5e3, "y": "{"}, "last": None}
    ).encode()
    found = members(data)
    assert list(found) == ["skipped", "model", "last"]
    assert value_at(data, found["model"]) == {"x": -1500.0, "y": "{"}
    assert [value_at(data, found[key]) for key in ("skipped", "last")] == [['"}]\\', {"a": [1, "]"]}], None]


# ---- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("model"), "has no 'model'"),
        (lambda c: c["model"].pop("vocab"), "has no 'vocab'"),
        (lambda c: c["model"].update(type="Neural"), "its model is of type 'Neural'"),
        (lambda c: c["model"].update(vocab=["a", "b"]), "not a table of pieces and ids"),
        (lambda c: c["model"].update(vocab={"a": "0"}), "not a table of pieces and ids"),
        (lambda c: c["model"].update(vocab={"a": -1}), "not a table of pieces and ids"),
        (lambda c: c["model"].update(vocab={"a": 2**40}), "not a table of pieces and ids"),
        (lambda c: c["model"]["vocab"].update({"a": 7}), "have the same id"),
        (lambda c: c["added_tokens"][1].update(id=500), "has the id 500 and would get 401"),
        (lambda c: c["added_tokens"].reverse(), "has the id 402 and would get 400"),
        (lambda c: c["added_tokens"][0].pop("content"), "has no 'content'"),
        (lambda c: c["added_tokens"][0].update(content="\ud800"), "is not a tokenizer"),
        (lambda c: (c["model"].update(vocab={}), c.update(added_tokens=[])), "holds no pieces"),
        (lambda c: c.update(model=[1, 2]), "is not a tokenizer"),
        (lambda c: c.update(added_tokens={"a": 1}), "is not a tokenizer"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_refused_with_the_reason(path: Path, change: Change, reason: str) -> None:
    with pytest.raises(UnreadableTokenizer, match=reason) as refused:
        read_json_vocabulary(changed(path, change))
    assert "tokenizer.json" in refused.value.message


def test_ids_that_tokenizers_would_give_otherwise_are_those_that_are_refused(path: Path) -> None:
    changed(path, lambda content: content["added_tokens"][1].update(id=500))
    assert Tokenizer.from_file(str(path)).token_to_id("<｜羊驼｜>") == 401


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b'{"model"', b'{"model": {', b'{"model": {"vocab": {"a": 0}', b"\xff\xfe{}", b'{"model": "a"}',
        b'{"model": {"type": "BPE", "vocab": {"\xff": 0}}}', b'{"model": {"type": "BPE", "vocab": ' + b"[" * 100_000,
        b'{"model": {"type": "BPE", "vocab": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:9e556afd\nsize 499723\n",
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UnreadableTokenizer, match=r"tokenizer\.json"):
        read_json_vocabulary(tmp_path / "tokenizer.json")


def test_a_vocabulary_of_millions_of_elements_is_not_built(tmp_path: Path) -> None:
    content = b'{"model": {"type": "Unigram", "vocab": [' + b"0," * 1_000_001 + b"0]}}"
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UnreadableTokenizer, match="more than 1000000 elements"):
        read_json_vocabulary(tmp_path / "tokenizer.json")


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(UnreadableTokenizer, match="68157440 bytes; at most 67108864 are read"):
        read_json_vocabulary(tmp_path / "tokenizer.json")


def test_a_damaged_file_is_refused_or_read_and_nothing_else(path: Path) -> None:
    content = path.read_bytes()
    random_ = random.Random(4)
    for _ in range(150):
        data = bytearray(content[: random_.choice((len(content), random_.randrange(len(content))))])
        for _ in range(random_.choice((1, 1, 3))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data)
        try:
            vocabulary = read_json_vocabulary(path)
        except UnreadableTokenizer:
            continue
        assert sum(map(len, vocabulary.pieces)) <= len(data)
