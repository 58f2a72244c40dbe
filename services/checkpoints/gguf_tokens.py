"""A SentencePiece tokenizer as GGUF's metadata (ggml-org/llama.cpp `convert_hf_to_gguf.py`, _create_vocab_sentencepiece)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from sentencepiece import SentencePieceProcessor

from services.checkpoints.huggingface import LLAMA_TOKENIZER_CONFIG
from services.formats.config import ModelConfig, read_json

PADDING_SCORE = -10000.0
ADDED_SCORE = -1000.0

Token = tuple[str, float, int]
"""Text, score and type (gguf.TokenType)."""


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: ModelConfig) -> None:
    """Adds the pieces of `tokenizer.model`, tokens added behind them, and padding up to the rows of the embeddings."""
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    settings = _settings(folder)
    tokens = sentencepiece_tokens(pieces)
    for number in range(len(tokens), config.vocab_size):
        tokens.append(_behind(number, settings))
    texts, scores, types = zip(*tokens, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(texts))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(types))
    _add_special(writer, pieces, config)
    writer.add_add_bos_token(bool(settings.get("add_bos_token", True)))
    writer.add_add_eos_token(bool(settings.get("add_eos_token", False)))
    template = _chat_template(folder, settings)
    if template is not None:
        writer.add_chat_template(template)


def sentencepiece_tokens(pieces: Any) -> list[Token]:
    """All pieces of a model in the order of their ids."""
    return [
        (pieces.id_to_piece(number), float(pieces.get_score(number)), int(_type_of(pieces, number)))
        for number in range(pieces.vocab_size())
    ]


def _type_of(pieces: Any, number: int) -> gguf.TokenType:
    for test, kind in (
        (pieces.is_unknown, gguf.TokenType.UNKNOWN), (pieces.is_control, gguf.TokenType.CONTROL),
        (pieces.is_unused, gguf.TokenType.UNUSED), (pieces.is_byte, gguf.TokenType.BYTE),
    ):  # fmt: skip
        if test(number):
            return kind
    return gguf.TokenType.NORMAL


def _settings(folder: Path) -> Mapping[str, Any]:
    """What transformers' files say of the tokenizer, with tokens added behind the pieces under "added"."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else dict(LLAMA_TOKENIZER_CONFIG)
    decoder = settings.get("added_tokens_decoder")
    added = {
        int(number): (token.get("content"), bool(token.get("special")))
        for number, token in (decoder if isinstance(decoder, dict) else {}).items()
        if number.isdigit() and isinstance(token, dict)
    }
    older = folder / "added_tokens.json"
    if older.is_file():
        added |= {number: (text, False) for text, number in read_json(older).items() if number not in added}
    return {**settings, "added": added}


def _behind(number: int, settings: Mapping[str, Any]) -> Token:
    """A row behind the pieces: an added token, or padding that no text gives."""
    text, special = settings["added"].get(number, (None, False))
    if not isinstance(text, str):
        return f"[PAD{number}]", PADDING_SCORE, int(gguf.TokenType.UNUSED)
    kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    return text, ADDED_SCORE, int(kind)


def _add_special(writer: gguf.GGUFWriter, pieces: Any, config: ModelConfig) -> None:
    eos = config.eos_token_id
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    bos = config.bos_token_id
    writer.add_bos_token_id(bos if isinstance(bos, int) else pieces.bos_id())
    writer.add_eos_token_id(first_eos if isinstance(first_eos, int) else pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
