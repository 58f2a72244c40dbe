"""Pieces of a `tokenizer.model`, read without a tokenizer library.

A SentencePiece `tokenizer.model` is a protocol buffer (google/sentencepiece `sentencepiece_model.proto`: ModelProto
field 1 = repeated SentencePiece {1: piece, 2: score, 3: type}). Llama 3's file of the same name is tiktoken's: lines of
base64 and rank. The content tells them apart.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from services.errors import InvalidRequest, UnreadableTokenizer
from services.files.regular_file import read_regular

SIZE_LIMIT_BYTES = 32 * 2**20
"""Largest `tokenizer.model`. The largest in use, of 256,000 pieces, take four megabytes."""

PIECES_LIMIT = 2**19
"""Most pieces of a vocabulary: twice those of the largest in use."""

FIELDS_LIMIT = 3 * PIECES_LIMIT
"""Most fields of a SentencePiece model, those of pieces included: each has a text, a score and mostly no type."""

HINT = "Take tokenizer.model from the original download."

VocabularyKind = Literal["sentencepiece", "tiktoken", "byte-level", "words"]
"""Form of the pieces: text with "▁" for a space, bytes (with or without a tokenizer.json around them), or words."""

TIKTOKEN_SPECIAL_TOKENS = 256
"""Number of special tokens that follow the ranks of Llama 3's file (meta-llama/llama3 `tokenizer.py`)."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's pieces in the order of their ids.

    `special_tokens` follow the pieces and have no known text. `model_pieces` is one more than the largest id that plain text
    can become, None if that is any piece.
    """

    kind: VocabularyKind
    pieces: tuple[bytes, ...]
    sha256: str
    special_tokens: int = 0
    file: Literal["tokenizer.model", "tokenizer.json"] = "tokenizer.model"
    model_pieces: int | None = None

    @property
    def size(self) -> int:
        """Number of token ids."""
        return len(self.pieces) + self.special_tokens

    @property
    def text_size(self) -> int:
        """Number of rows that an embedding needs for plain text; added tokens may follow."""
        return self.size if self.model_pieces is None else self.model_pieces

    def continues(self, earlier: "Vocabulary") -> bool:
        """Returns True if the pieces begin with all those of an earlier vocabulary.

        tiktoken's file has the same pieces as a byte-level `tokenizer.json`, without the names of its special tokens.
        """
        comparable = self.kind == earlier.kind or {self.kind, earlier.kind} == {"tiktoken", "byte-level"}
        at = self.first_difference(earlier)
        return comparable and self.size >= earlier.size and at == min(len(self.pieces), len(earlier.pieces))

    def first_difference(self, earlier: "Vocabulary") -> int:
        """Returns the first id at which the two differ (the shorter one's size if none does).

        An id that an earlier vocabulary leaves free (an empty piece) may have any piece.
        """
        pairs = enumerate(zip(self.pieces, earlier.pieces, strict=False))
        different = (number for number, (own, other) in pairs if other and own != other)
        return next(different, min(len(self.pieces), len(earlier.pieces)))


def read_vocabulary(path: Path) -> Vocabulary:
    """Returns the pieces of a `tokenizer.model`.

    Raises:
        UnreadableTokenizer: The file is neither SentencePiece nor tiktoken, or is damaged or too large.
    """
    return _parsed(read_regular(path, SIZE_LIMIT_BYTES, UnreadableTokenizer, HINT), path.name)


@lru_cache(maxsize=2)
def _parsed(data: bytes, name: str) -> Vocabulary:
    """Returns the pieces of a file's content. Plans for one model follow each other, and 32,000 pieces take 0.15 s."""
    digest = hashlib.sha256(data).hexdigest()
    tiktoken = _tiktoken_pieces(data)
    if tiktoken is not None:
        return Vocabulary("tiktoken", tiktoken, digest, TIKTOKEN_SPECIAL_TOKENS)
    try:
        pieces = tuple(_sentencepiece_pieces(data))
    except (IndexError, ValueError) as error:
        raise UnreadableTokenizer(
            f"{name} is neither a SentencePiece model nor a tiktoken file ({error}).",
            HINT,
        ) from error
    if not pieces:
        raise UnreadableTokenizer(f"{name} holds no pieces.", HINT)
    return Vocabulary("sentencepiece", pieces, digest)


def new_pieces(base: Sequence[bytes], addition: Sequence[bytes], pad_token: str | None = None) -> list[bytes]:
    """Returns the pieces by which an addition extends a base, in order; the padding token comes last.

    Raises:
        InvalidRequest: The padding token is a piece already, or there is nothing new.
    """
    known = set(base)
    new = list(dict.fromkeys(piece for piece in addition if piece not in known))
    if pad_token is not None:
        if pad_token.encode() in {*known, *new}:
            raise InvalidRequest(
                f"The padding token {pad_token!r} is a piece of the vocabulary already.",
                "Leave it out, or choose another.",
            )
        new.append(pad_token.encode())
    if not new:
        raise InvalidRequest(
            f"All {len(addition)} pieces of the addition are among the base's {len(base)}: nothing would be added.",
            "Choose another addition.",
        )
    return new


def _tiktoken_pieces(data: bytes) -> tuple[bytes, ...] | None:
    first = data.partition(b"\n")[0].split(b" ", 2)
    if len(first) != 2 or not first[1].strip().isdigit():
        return None
    if data.count(b"\n") > PIECES_LIMIT:
        raise UnreadableTokenizer(f"The tiktoken file has more than {PIECES_LIMIT} lines.", HINT)
    pieces: list[bytes] = []
    for line in filter(None, data.split(b"\n")):
        try:
            piece, digits = line.split()
            pieces.append(base64.b64decode(piece, validate=True))
            rank = int(digits)
        except (ValueError, binascii.Error):
            return None
        if rank != len(pieces) - 1:
            raise UnreadableTokenizer(
                f"The tiktoken file's line {len(pieces)} has rank {rank} instead of {len(pieces) - 1}.",
                "The file is damaged: fetch it again.",
            )
    return tuple(pieces)


def _sentencepiece_pieces(data: bytes) -> Iterator[bytes]:
    left = iter(range(FIELDS_LIMIT))
    for number, wire_type, value in _fields(data, left):
        if number == 1 and wire_type == 2:
            fields = {n: v for n, w, v in _fields(value, left) if w == 2}
            if 1 not in fields:
                raise ValueError("a piece has no text")
            yield fields[1]


def _fields(data: bytes, left: Iterator[int]) -> Iterator[tuple[int, int, bytes]]:
    """Yields the fields of one protocol buffer message: number, wire type, raw bytes (empty for numbers).

    Args:
        left: One item for each field that may still be read.
    """
    at = 0
    while at < len(data):
        if next(left, None) is None:
            raise ValueError(f"it has more than {FIELDS_LIMIT} fields")
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError(f"field {number} is truncated")
            yield number, wire_type, data[at : at + length]
            at += length
        elif wire_type == 0:
            _, at = _varint(data, at)
            yield number, wire_type, b""
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
            if at > len(data):
                raise ValueError(f"field {number} is truncated")
            yield number, wire_type, b""
        else:
            raise ValueError(f"field {number} has wire type {wire_type}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
