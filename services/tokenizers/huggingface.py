"""Tokenizers of folders that have only Hugging Face's files (`tokenizer.json` and the like)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from services.errors import UnreadableTokenizer

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class HuggingFaceCodec:
    """Codec of plain text by a tokenizer of transformers."""

    def __init__(self, folder: Path) -> None:
        """Loads the tokenizer of a folder.

        Raises:
            UnreadableTokenizer: transformers cannot load it, or it needs code of its own.
        """
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise UnreadableTokenizer(
                f"transformers cannot load the tokenizer of {folder.name} ({error})."
            ) from error

    @property
    def size(self) -> int:
        return int(self._tokenizer.vocab_size)

    @property
    def added_tokens(self) -> dict[int, Any]:
        """Added tokens of `tokenizers` by id, with `content` and `special`."""
        return dict(self._tokenizer.added_tokens_decoder)

    @property
    def role_ids(self) -> tuple[int | None, int | None, int | None]:
        """Ids of beginning, end and padding, None for those that the tokenizer does not have."""
        tokenizer = self._tokenizer
        return tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def begins_with_bos(self) -> bool:
        """Returns True if the tokenizer itself puts the beginning-of-text token before a text."""
        bos = self._tokenizer.bos_token_id
        return bos is not None and self._tokenizer("x")["input_ids"][:1] == [bos]

    def encode(self, text: str) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def piece(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")

    def id_of(self, piece: str) -> int | None:
        found = self._tokenizer.get_vocab().get(piece)
        return None if found is None else int(found)

    def stream(self) -> "HuggingFaceStream":
        return HuggingFaceStream(self)


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
