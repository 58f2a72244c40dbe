"""Pieces of a `tokenizer.json`, read without a tokenizer library.

The file is that of huggingface/tokenizers (`tokenizers/src/tokenizer/serialization.rs`): `model.vocab` maps pieces to
ids, or lists pieces and scores in the order of their ids (Unigram); `added_tokens` lists further tokens with their ids.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.architectures.bpe_merges import byte_alphabet
from services.architectures.vocabulary import PIECES_LIMIT, Vocabulary, VocabularyKind, read_vocabulary
from services.errors import UnreadableTokenizer
from services.files.json_budget import JsonBudget
from services.files.json_file import check_budget
from services.files.json_members import MAX_ELEMENTS, members, value_at
from services.files.regular_file import read_regular

KINDS: Mapping[str, VocabularyKind] = {
    "BPE": "sentencepiece", "Unigram": "sentencepiece", "WordLevel": "words", "WordPiece": "words",
}  # fmt: skip
"""Kind of the pieces by the type of `model`; with a step of type ByteLevel they are bytes."""

SIZE_LIMIT_BYTES = 64 * 2**20
"""Largest `tokenizer.json`. Gemma 3's takes 33 megabytes."""

BUDGET = JsonBudget(containers=1_500_000, members=2_000_000, items=4_000_000, depth=64)
"""For a whole file: Gemma 3's has half a million merges, each a list of two texts."""

HINT = "Take tokenizer.json from the original model."


def read_folder_vocabulary(folder: Path) -> Vocabulary | None:
    """Returns the pieces of a folder's `tokenizer.model`, or else of its `tokenizer.json`; None if it has neither.

    Raises:
        UnreadableTokenizer: The file is damaged or too large.
    """
    model, table = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.is_file():
        return read_vocabulary(model)
    return read_json_vocabulary(table) if table.is_file() else None


def read_json_vocabulary(path: Path) -> Vocabulary:
    """Returns the pieces of a `tokenizer.json` in the order of their ids, added tokens included.

    An id between two others that no token has gets an empty piece. Merges are skipped, not checked.

    Raises:
        UnreadableTokenizer: The file is damaged or too large, or its ids are not those that `tokenizers` would give.
    """
    vocabulary, _ = _read(read_tokenizer_json(path), path.name)
    return vocabulary


def read_added_entries(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Returns the added tokens of a `tokenizer.json` next to the `tokenizer.model` of the same pieces, as the file has them.

    transformers 5 writes further tokens nowhere else. There are none without the two files, or where `tokenizer.json` has
    other pieces: it is then of another tokenizer, for example of the one before an extension.

    Raises:
        UnreadableTokenizer: One of the files is damaged or too large.
    """
    model, table = folder / "tokenizer.model", folder / "tokenizer.json"
    if not model.is_file() or not table.is_file():
        return ()
    own = read_vocabulary(model)
    found, entries = _read(read_tokenizer_json(table), table.name)
    return entries if found.model_pieces == len(own.pieces) and found.continues(own) else ()


def read_tokenizer_json(path: Path) -> bytes:
    """Returns the content of a `tokenizer.json` whose size, values and depth are within the limits.

    Raises:
        UnreadableTokenizer: They are not, or it is not a regular file.
    """
    data = read_regular(path, SIZE_LIMIT_BYTES, UnreadableTokenizer, HINT)
    try:
        check_budget(data, BUDGET)
    except ValueError as error:
        raise UnreadableTokenizer(f"{path.name} is not a tokenizer ({error}).", HINT) from error
    return data


@lru_cache(maxsize=2)
def _read(data: bytes, name: str) -> tuple[Vocabulary, Sequence[Mapping[str, Any]]]:
    """Returns the pieces of a file and its added tokens as it has them. Plans for one model follow each other."""
    try:
        kind, pieces, model_pieces, entries = _parts(data)
    except KeyError as error:
        raise UnreadableTokenizer(f"{name} has no {error}.", HINT) from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise UnreadableTokenizer(f"{name} is not a tokenizer ({error}).", HINT) from error
    digest = hashlib.sha256(data).hexdigest()
    vocabulary = Vocabulary(kind, pieces, digest, file="tokenizer.json", model_pieces=model_pieces)
    return vocabulary, entries


def _parts(data: bytes) -> tuple[VocabularyKind, tuple[bytes, ...], int, Sequence[Mapping[str, Any]]]:
    """Returns kind and pieces of a file, the number of ids of its model, and its added tokens as it has them."""
    found = members(data)
    model = members(data, found["model"][0])
    kind = _kind(data, found, model)
    ids = _model_ids(value_at(data, model["vocab"]))
    entries: Sequence[Mapping[str, Any]] = ()
    if "added_tokens" in found:
        entries = value_at(data, found["added_tokens"]) or ()
    by_id = _by_id({**ids, **_added_ids(ids, entries)})
    if not by_id:
        raise ValueError("it holds no pieces")
    texts = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    pieces = pieces_as_bytes(texts) if kind == "byte-level" else [text.encode() for text in texts]
    return kind, tuple(pieces), max(ids.values(), default=-1) + 1, entries


def _kind(data: bytes, found: Mapping[str, Any], model: Mapping[str, Any]) -> VocabularyKind:
    """Returns the kind of the pieces. Old files leave out the model's type, which is then BPE if there are merges."""
    name = value_at(data, model["type"]) if "type" in model else "BPE" if "merges" in model else "Unigram"
    if name not in KINDS:
        raise ValueError(f"its model is of type {name!r}; known are {', '.join(KINDS)}")
    tops = [value_at(data, found[key]) for key in ("pre_tokenizer", "decoder") if key in found]
    is_bytes = any(step.get("type") == "ByteLevel" for top in tops for step in _steps(top))
    return "byte-level" if is_bytes else KINDS[name]


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """Yields a pre-tokenizer or decoder and those that it is composed of."""
    if not isinstance(step, dict):
        return
    yield step
    for key in ("pretokenizers", "decoders"):
        for inner in step.get(key) or []:
            yield from _steps(inner)


def _model_ids(vocab: Any) -> dict[str, int]:
    if isinstance(vocab, list):
        texts = [entry[0] for entry in vocab if isinstance(entry, list) and isinstance(entry[0], str)]
        vocab = {text: number for number, text in enumerate(texts)} if len(texts) == len(vocab) else None
    if isinstance(vocab, dict) and len(vocab) > PIECES_LIMIT:
        raise ValueError(f"it has {len(vocab)} pieces, more than {PIECES_LIMIT}")
    if not isinstance(vocab, dict) or not all(map(_is_id, vocab.values())):
        raise ValueError("its vocabulary is not a table of pieces and ids")
    return vocab


def _added_ids(pieces: Mapping[str, int], added: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the tokens that are not pieces of the model.

    `tokenizers` numbers them in their order, after the pieces (`added_vocabulary.rs`, add_tokens), and ignores the ids
    that are written next to them: such a file would give other tokens than it says.
    """
    new: dict[str, int] = {}
    following = len(pieces)
    for token in added:
        text, stated = token["content"], token["id"]
        if not isinstance(text, str) or not _is_id(stated):
            raise ValueError(f"its added token {text!r} has the id {stated!r}")
        number = pieces.get(text, new.get(text, following))
        if number != stated:
            raise ValueError(f"its added token {text!r} has the id {stated} and would get {number}")
        following = max(following, number + 1)
        if text not in pieces:
            new[text] = number
    return new


def _by_id(ids: Mapping[str, int]) -> dict[int, str]:
    by_id = {number: text for text, number in ids.items()}
    if len(by_id) != len(ids):
        double = next(text for text, number in ids.items() if by_id[number] != text)
        raise ValueError(f"its pieces {double!r} and {by_id[ids[double]]!r} have the same id")
    return by_id


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def pieces_as_bytes(texts: Sequence[str]) -> list[bytes]:
    """Returns pieces of a byte-level model as bytes: each character is a byte; a text with others is an added token's own."""
    byte_of = {character: chr(byte) for byte, character in enumerate(byte_alphabet())}
    table = {byte: byte_of.get(chr(byte), "\u0100") for byte in range(0x100)}  # U+0100 is not in Latin-1
    table |= {ord(character): byte for character, byte in byte_of.items()}
    return [_piece_bytes(text, table) for text in texts]


def _piece_bytes(text: str, table: Mapping[int, str]) -> bytes:
    try:
        return text.translate(table).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()
