"""Tokenizers of folders without a `tokenizer.model`: a `tokenizer.json`, run by `tokenizers` as it is.

Classes of transformers may build another tokenizer from its pieces than the file describes, so they are asked only for folders
of older files (`vocab.json`, `merges.txt`).
"""

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders
from transformers import AutoTokenizer

from services.architectures.bpe_merges import byte_alphabet
from services.architectures.tokenizer_files import AddedToken
from services.errors import UnreadableTokenizer
from services.tokenizers.tokenizer import encode_apart

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BYTES = {character: byte for byte, character in enumerate(byte_alphabet())}


def read_table(folder: Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a folder's `tokenizer.json`, or of its older files through transformers.

    Raises:
        UnreadableTokenizer: It cannot be loaded, or needs code of its own.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            return tokenizers.Tokenizer.from_file(str(path))
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        table: tokenizers.Tokenizer = loaded.backend_tokenizer
        return table
    except Exception as error:  # `tokenizers` raises Exception itself
        raise UnreadableTokenizer(
            f"The tokenizer of {folder.name} cannot be loaded ({error}).",
            "Take tokenizer.json from the original model.",
        ) from error


def complete_table(
    table: tokenizers.Tokenizer, special: Iterable[str], listed: dict[int, AddedToken]
) -> tokenizers.Tokenizer:
    """Returns the tokenizer with what the files next to it add: further tokens, and special ones that it does not call so.

    Args:
        special: Contents of the tokens that have a role.
        listed: Added tokens by id, of `tokenizer_config.json` and `added_tokens.json`.

    Raises:
        UnreadableTokenizer: A listed token has another id in the tokenizer.
    """
    known = {token.content for token in table.get_added_tokens_decoder().values()}
    for number, token in sorted(listed.items()):
        if token.content not in known:
            table.add_tokens([_rust(token, token.special or token.content in special)])
        if table.token_to_id(token.content) != number:
            raise UnreadableTokenizer(
                f"{token.content!r} has the id {number} in tokenizer_config.json and {table.token_to_id(token.content)} in "
                "tokenizer.json.",
                "Use the tokenizer's files that belong together.",
            )
    added = {token.content: token.special for token in table.get_added_tokens_decoder().values()}
    pieces = [content for content in special if table.token_to_id(content) is not None]
    table.add_special_tokens([content for content in pieces if content not in added])
    if all(added.get(content, True) for content in pieces):
        return table
    content = json.loads(table.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in pieces
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _rust(token: AddedToken, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content, special=special, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized
    )


class HuggingFaceCodec:
    """Codec of plain text by a tokenizer of `tokenizers`."""

    def __init__(self, table: tokenizers.Tokenizer) -> None:
        """`table` is changed: it no longer cuts or pads, and takes special tokens in a text for text."""
        table.no_truncation()
        table.no_padding()
        table.encode_special_tokens = True
        self._table = table
        self._is_bytes = isinstance(table.decoder, decoders.ByteLevel)
        pieces = table.get_vocab(with_added_tokens=False)
        self._size = max(pieces.values(), default=-1) + 1

    @property
    def size(self) -> int:
        return self._size

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """Added tokens by their ids."""
        return {
            number: AddedToken(token.content, token.special, token.lstrip, token.rstrip, token.normalized)
            for number, token in self._table.get_added_tokens_decoder().items()
        }

    @property
    def plain_contents(self) -> frozenset[str]:
        return frozenset(token.content for token in self.added_tokens.values() if not token.special)

    @property
    def first_id(self) -> int | None:
        """Id of the token that the tokenizer itself puts before a text, None if it puts none."""
        ids = self._table.encode("x").ids
        return ids[0] if ids[:1] != self.encode("x")[:1] else None

    def encode(self, text: str) -> list[int]:
        return list(self._table.encode(text, add_special_tokens=False).ids)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Returns the ids of a text with special tokens in it, which is encoded as a whole.

        What a text becomes may depend on its being the first one. If a part of the text looks like a special token, the
        parts are encoded one by one.
        """
        wanted = [part for part in parts if isinstance(part, int)]
        typed = [part for part in parts if isinstance(part, str)]
        special = [token.content for token in self.added_tokens.values() if token.special] if wanted else []
        if not wanted or any(content in text for text in typed for content in special):
            return encode_apart(self, parts)
        contents = [part if isinstance(part, str) else self.piece(part) for part in parts]
        self._table.encode_special_tokens = False
        ids = self.encode("".join(contents))
        self._table.encode_special_tokens = True
        found = [token_id for token_id in ids if token_id in wanted]
        return ids if found == wanted else encode_apart(self, parts)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._table.decode(list(ids), skip_special_tokens=False))

    def piece(self, token_id: int) -> str:
        return self._table.id_to_token(token_id) or ""

    def id_of(self, piece: str) -> int | None:
        return self._table.token_to_id(piece)

    def byte_piece(self, token_id: int) -> bytes:
        """Returns the bytes of a piece of a byte-level model."""
        piece = self.piece(token_id)
        if all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        return piece.encode()

    def pieces_as_bytes(self) -> list[bytes]:
        """Returns the bytes of each piece within a text, b"" where the tokenizer's decoder gives none."""
        if self._is_bytes:
            return [self.byte_piece(token_id) for token_id in range(self.size)]
        ids = range(self.size)
        before = next(
            (at for at in ids if len(self.piece(at)) == 1 and self.decode([at]) == self.piece(at)), None
        )
        if before is None:
            return [b""] * self.size
        start = self.decode([before])
        decoded = self._table.decode_batch([[before, at] for at in ids], skip_special_tokens=False)
        return [self._added_bytes(start, text, at) for at, text in zip(ids, decoded, strict=True)]

    def _added_bytes(self, start: str, text: str, token_id: int) -> bytes:
        """Returns the bytes that a token adds to a text; a byte piece may be decoded to half a character."""
        piece = self.piece(token_id)
        if not text.startswith(start):
            return b""
        added = text.removeprefix(start)
        return (
            bytes.fromhex(piece[3:5]) if _BYTE_PIECE.fullmatch(piece) and added != piece else added.encode()
        )

    def stream(self) -> "ByteLevelStream | HuggingFaceStream":
        return ByteLevelStream(self) if self._is_bytes else HuggingFaceStream(self)


class ByteLevelStream:
    """Stream decoder of pieces that are bytes."""

    def __init__(self, codec: HuggingFaceCodec) -> None:
        self._codec = codec
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        return self._utf8.decode(self._codec.byte_piece(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class HuggingFaceStream:
    """Stream decoder that decodes all ids again with each id, since a decoder of `tokenizers` may be any chain of steps.

    Nothing is returned within a run of byte pieces: if the run turns out not to be UTF-8, `tokenizers` rewrites all of it.
    """

    def __init__(self, codec: HuggingFaceCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._emitted = ""

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        if _BYTE_PIECE.fullmatch(self._codec.piece(token_id)):
            return ""
        text = self._codec.decode(self._ids).rstrip("\ufffd")
        return self._emit(text)

    def flush(self) -> str:
        return self._emit(self._codec.decode(self._ids))

    def _emit(self, text: str) -> str:
        if not text.startswith(self._emitted):
            return ""
        delta = text[len(self._emitted) :]
        self._emitted = text
        return delta
