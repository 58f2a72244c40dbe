"""Tokenizers of LLaMA 1 and 2, run by SentencePiece itself.

A table of merges cannot express how SentencePiece breaks ties between pieces of equal score, so tokenizers
rebuilt from its vocabulary differ on ordinary text (the extended Chinese ones have 17,953 such pieces).
"""

import codecs
from collections.abc import Sequence
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from services.errors import UnreadableTokenizer
from services.tokenizers.tokenizer import encode_apart

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces (google/sentencepiece `sentencepiece_model.proto`)."""


def read_proto(model: bytes, name: str) -> Any:
    """Returns the file's protocol buffer, a `ModelProto`: pieces with scores and types, and the normalization of text.

    Raises:
        UnreadableTokenizer: The bytes are not a SentencePiece model.
    """
    messages: Any = sentencepiece_model_pb2  # made at import: no type checker sees them
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise UnreadableTokenizer(
            f"{name} ({len(model)} bytes) is not a SentencePiece model ({error}).", "Fetch it again."
        ) from error
    return proto


class SentencePieceCodec:
    """Codec of plain text by a SentencePiece model."""

    def __init__(self, model: bytes, name: str) -> None:
        """Loads a model; `name` is that of its file, for messages.

        Raises:
            UnreadableTokenizer: The bytes are not a SentencePiece model.
        """
        try:
            if not model:
                raise RuntimeError("it is empty")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UnreadableTokenizer(
                f"{name} ({len(model)} bytes) is not a SentencePiece model ({error}).",
                "It may be truncated, or a Git LFS pointer: fetch it again.",
            ) from error

    @property
    def size(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def plain_contents(self) -> frozenset[str]:
        return frozenset()

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        return encode_apart(self, parts)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(list(ids)))

    def piece(self, token_id: int) -> str:
        return str(self._processor.id_to_piece(token_id))

    def id_of(self, piece: str) -> int | None:
        token_id = int(self._processor.piece_to_id(piece))
        return token_id if self.piece(token_id) == piece else None

    def stream(self) -> "SentencePieceStream":
        return SentencePieceStream(self)

    def control_ids(self) -> list[int]:
        """Returns the ids of the model's control pieces, such as `<s>` and `</s>`."""
        return [token_id for token_id in range(self.size) if self._processor.is_control(token_id)]

    def role_ids(self) -> tuple[int | None, int | None, int | None]:
        """Returns the ids of beginning, end and padding, None for those that the model does not have."""
        ids = self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id()
        bos, eos, pad = (int(token_id) if token_id >= 0 else None for token_id in ids)
        return bos, eos, pad

    def byte(self, token_id: int) -> bytes:
        """Returns the byte of a piece like `<0xE4>`, b"" for every other piece."""
        if not self._processor.is_byte(token_id):
            return b""
        return bytes([int(self.piece(token_id)[3:-1], 16)])

    def pieces_as_bytes(self) -> list[bytes]:
        """Returns the bytes of each piece within a text, b"" for control, unknown and unused pieces."""
        return [
            self.piece(token_id).replace("▁", " ").encode() if self.is_word(token_id) else self.byte(token_id)
            for token_id in range(self.size)
        ]

    def is_word(self, token_id: int) -> bool:
        """Returns True if the piece has text of its own: it is not a control, unknown, unused or byte piece."""
        processor = self._processor
        return not (
            processor.is_byte(token_id)
            or processor.is_control(token_id)
            or processor.is_unknown(token_id)
            or processor.is_unused(token_id)
        )


class SentencePieceStream:
    """Stream decoder that decodes a window of ids again with each id: from the last piece with text of its own on.

    In SentencePiece the text of a piece depends on earlier pieces only at the very start (where a space is removed) and within
    a run of byte pieces, so a window that begins with such a piece decodes as it does within the whole.
    Bytes that may yet become a character are held back; SentencePiece writes U+FFFD for each that does not.
    """

    def __init__(self, codec: SentencePieceCodec) -> None:
        self._codec = codec
        self._window: list[int] = []
        self._emitted = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._codec.decode(self._window)
        delta = text[self._emitted : len(text) - self._held(token_id)]
        self._emitted += len(delta)
        if self._codec.is_word(token_id):
            self._begin_at(token_id)
        return delta

    def flush(self) -> str:
        return self._codec.decode(self._window)[self._emitted :]

    def _held(self, token_id: int) -> int:
        """Returns the number of bytes at the end, and so of U+FFFD in the text, that may still become a character."""
        byte = self._codec.byte(token_id)
        if not byte:
            self._utf8.reset()
            return 0
        self._utf8.decode(byte)
        return len(self._utf8.getstate()[0])

    def _begin_at(self, token_id: int) -> None:
        alone = self._codec.decode([token_id])
        if alone:
            self._window, self._emitted = [token_id], len(alone)
