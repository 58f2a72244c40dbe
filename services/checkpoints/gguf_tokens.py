"""Tokenizer metadata of a GGUF file, as llama.cpp's converter writes it (ggml-org/llama.cpp `convert_hf_to_gguf.py`).

SentencePiece as `_create_vocab_sentencepiece` does; Llama 3's tiktoken as `_set_vocab_gpt2` does from the tokenizer.json that
transformers makes of it: bytes in GPT-2's alphabet, every split of a token into two as a merge, in the order of ranks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from services.architectures.bpe_merges import byte_alphabet, ranks_to_merges
from services.architectures.config import ModelConfig
from services.architectures.llama3 import (
    LLAMA_3_1_SPECIAL_TOKENS,
    LLAMA_3_CHAT_TEMPLATE,
    LLAMA_3_END_OF_TURN,
    LLAMA_3_SPECIAL_TOKENS,
)
from services.architectures.tokenizer_files import AddedToken, TokenizerFiles, token_content
from services.architectures.vocabulary import read_vocabulary
from services.checkpoints.folder_spec import FolderSpec
from services.checkpoints.gguf_byte_level import add_byte_level, looks_special
from services.templates import JINJA_NAMES, jinja_text

PADDING_SCORE = -10000.0
ADDED_SCORE = -1000.0

Token = tuple[str, float, int]
"""Text, score and type (gguf.TokenType)."""

Added = Mapping[int, AddedToken]
"""Tokens outside of the pieces, by id."""


def add_tokenizer(writer: gguf.GGUFWriter, spec: FolderSpec) -> None:
    """Adds the pieces of `tokenizer.model`, or else of `tokenizer.json`, added tokens, and padding up to the embeddings' rows.

    The chat template is the tokenizer's or the base's own, or else that of the model's lineage.

    Raises:
        UnreadableTokenizer: A file of the tokenizer is damaged.
    """
    folder, config = spec.tokenizer_folder, spec.output.config
    files = TokenizerFiles(folder)
    template = files.chat_template() or TokenizerFiles(spec.base_folder).chat_template()
    model = folder / "tokenizer.model"
    vocabulary = read_vocabulary(model) if model.is_file() else None
    bos = bool(files.tokenizer_config.get("add_bos_token", True))
    if vocabulary is None:
        bos = add_byte_level(writer, folder, files, config)
    elif vocabulary.kind == "tiktoken":
        instruct = _add_byte_pairs(writer, vocabulary.pieces, files, config)
        template = template or (LLAMA_3_CHAT_TEMPLATE if instruct else None)
    else:
        _add_sentencepiece(writer, model, files, config)
    if template is None and spec.template in JINJA_NAMES:
        template = jinja_text(spec.template, bos=bos)
    writer.add_add_bos_token(bos)
    writer.add_add_eos_token(bool(files.tokenizer_config.get("add_eos_token", False)))
    if template is not None:
        writer.add_chat_template(template)


# ---- SentencePiece ------------------------------------------------------------------------------------


def _add_sentencepiece(
    writer: gguf.GGUFWriter, model: Path, files: TokenizerFiles, config: ModelConfig
) -> None:
    pieces = SentencePieceProcessor(model_file=str(model))
    added = files.added_tokens()
    tokens = [
        _with_role(token, added.get(number)) for number, token in enumerate(sentencepiece_tokens(pieces))
    ]
    tokens += [_extra_token(number, added) for number in range(len(tokens), config.vocab_size)]
    texts, scores, types = zip(*tokens, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(texts))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(types))
    bos, eos = config.bos_token_id, _ends(config)
    writer.add_bos_token_id(bos if isinstance(bos, int) else pieces.bos_id())
    writer.add_eos_token_id(eos[0] if eos else pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_space_prefix(_adds_space(model))


def _adds_space(model: Path) -> bool:
    """Returns True if a space is put before a text, as the file's normalizer says (`add_dummy_prefix`)."""
    messages: Any = sentencepiece_model_pb2  # made at import: no type checker sees them
    found = messages.ModelProto()
    found.ParseFromString(model.read_bytes())
    return bool(found.normalizer_spec.add_dummy_prefix)


def _with_role(token: Token, added: AddedToken | None) -> Token:
    """Returns a normal piece as what the JSON files call it: a control token, or one that is split off first."""
    if added is None or token[2] != gguf.TokenType.NORMAL:
        return token
    special = added.special or looks_special(added.content)
    text = added.content if special else added.content.replace("\u2581", " ")
    return text, ADDED_SCORE, int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)


def sentencepiece_tokens(pieces: Any) -> list[Token]:
    """Returns all pieces of a model in the order of their ids."""
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


# ---- tiktoken -----------------------------------------------------------------------------------------


def _add_byte_pairs(
    writer: gguf.GGUFWriter, pieces: Sequence[bytes], files: TokenizerFiles, config: ModelConfig
) -> bool:
    """Adds Llama 3's tokens and merges; returns True if outputs end at the end of a turn, as an instruct model's do."""
    # the scaled rotary frequencies began with 3.1
    special = LLAMA_3_1_SPECIAL_TOKENS if config.rope_type == "llama3" else LLAMA_3_SPECIAL_TOKENS
    added = {len(pieces) + number: AddedToken(name, True) for number, name in enumerate(special)}
    added |= files.added_tokens()
    alphabet = byte_alphabet()
    texts = {piece: "".join(alphabet[byte] for byte in piece) for piece in pieces}
    tokens: list[Token] = [(text, 0.0, int(gguf.TokenType.NORMAL)) for text in texts.values()]
    tokens += [_extra_token(number, added) for number in range(len(tokens), config.vocab_size)]
    merges = ranks_to_merges({piece: rank for rank, piece in enumerate(pieces)})
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_token_merges([f"{texts[left]} {texts[right]}" for left, right in merges])
    numbers = {text: number for number, (text, *_) in added.items() if number < len(tokens)}
    return _add_special(writer, numbers, files.tokenizer_config.get("eos_token"), config)


def _add_special(
    writer: gguf.GGUFWriter, numbers: Mapping[str, int], eos_token: Any, config: ModelConfig
) -> bool:
    """Adds the ids of beginning, end and end of a turn; returns True if the last one ends outputs.

    Of several ends the tokenizer's own is written, or the turn's, as in Meta's instruct models.
    """
    ends, turn = _ends(config), numbers.get(LLAMA_3_END_OF_TURN)
    named = numbers.get(token_content(eos_token) or "")
    first = ends[0] if ends else numbers.get("<|end_of_text|>")
    eos = named if named is not None else turn if turn in ends else first
    bos = config.bos_token_id if isinstance(config.bos_token_id, int) else numbers.get("<|begin_of_text|>")
    for number, add in (
        (bos, writer.add_bos_token_id),
        (eos, writer.add_eos_token_id),
        (turn, writer.add_eot_token_id),
    ):
        if number is not None:
            add(number)
    return turn is not None and turn in (*ends, eos)


# ---- shared by both -----------------------------------------------------------------------------------


def _ends(config: ModelConfig) -> list[int]:
    eos = config.eos_token_id
    return [number for number in (eos if isinstance(eos, list) else [eos]) if isinstance(number, int)]


def _extra_token(number: int, added: Added) -> Token:
    """Returns the token of a row after the pieces: an added one, or padding that no text gives."""
    text, special, *_ = added.get(number, (None, False))
    if text is None:
        return f"[PAD{number}]", PADDING_SCORE, int(gguf.TokenType.UNUSED)
    kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    return text, ADDED_SCORE, int(kind)
