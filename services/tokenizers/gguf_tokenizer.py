"""Tokenizer files of a model folder, rebuilt from a GGUF file.

A SentencePiece vocabulary becomes a `tokenizer.model` again, with the tokens that were added to it in `tokenizer_config.json`; a
byte-level one becomes a `tokenizer.json`, as transformers has it for models of its kind.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from services.architectures.gguf_vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    GgufVocabulary,
)
from services.errors import UnreadableTokenizer
from services.files.json_file import Json, write_json
from services.tokenizers.loading import load_tokenizer
from services.tokenizers.sentencepiece import SentencePieceCodec
from services.tokenizers.tokenizer import Tokenizer
from services.tokenizers.tokenizer_json import BPE_MODEL_TYPE, table_to_json

NO_LIMIT = 1000000000000000019884624838656
"""`model_max_length` of a tokenizer that has none, as transformers writes it."""


def write_gguf_tokenizer(vocabulary: GgufVocabulary, folder: Path) -> None:
    """Writes the tokenizer's files into a folder.

    Raises:
        UnreadableTokenizer: A tokenizer library refuses what was rebuilt.
    """
    write_json(folder / "tokenizer_config.json", tokenizer_config(vocabulary))
    if vocabulary.chat_template is not None:
        (folder / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")
    if vocabulary.is_sentencepiece:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocabulary))
    else:
        (folder / "tokenizer.json").write_text(table_to_json(byte_level_table(vocabulary)), encoding="utf-8")


def load_gguf_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """Returns the tokenizer of a vocabulary, from files that are written for a moment.

    Raises:
        UnreadableTokenizer: A tokenizer library refuses what was rebuilt.
    """
    with TemporaryDirectory(prefix="graftwerk-tokenizer-") as scratch:
        folder = Path(scratch)
        write_gguf_tokenizer(vocabulary, folder)
        write_json(folder / "generation_config.json", {"eos_token_id": [*vocabulary.ends]})
        return load_tokenizer(folder)


def tokenizer_config(vocabulary: GgufVocabulary) -> Json:
    """Returns the content of `tokenizer_config.json`: roles, added tokens, what a text begins and ends with."""
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"],
        "add_bos_token": vocabulary.add_bos, "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False, "model_max_length": NO_LIMIT,
        **{role: vocabulary.tokens[token_id] for role, token_id in vocabulary.ids.items()},
        "added_tokens_decoder": {
            str(number): {
                "content": token.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": token.special,
            }
            for number, token in added_tokens(vocabulary).items()
        },
    }  # fmt: skip
    return config | ({"legacy": True} if vocabulary.is_sentencepiece else {})


def added_tokens(vocabulary: GgufVocabulary) -> Mapping[int, AddedToken]:
    """Returns the tokens that are split off before a text is encoded, by id; control tokens are special.

    Control pieces of a SentencePiece model are in the model alone.
    """
    first = vocabulary.pieces if vocabulary.is_sentencepiece else 0
    return {
        number: AddedToken(
            vocabulary.tokens[number], normalized=False, special=vocabulary.types[number] == CONTROL
        )
        for number in range(first, len(vocabulary.tokens))
        if vocabulary.types[number] in (CONTROL, USER_DEFINED)
    }


# ---- SentencePiece ------------------------------------------------------------------------------------


def sentencepiece_model(vocabulary: GgufVocabulary) -> bytes:
    """Returns the `tokenizer.model` of a vocabulary: llama.cpp joins pieces by their scores, as byte-pair models do.

    Text is not normalized, which is so in every SentencePiece model of these families.

    Raises:
        UnreadableTokenizer: SentencePiece refuses the model.
    """
    messages: Any = sentencepiece_model_pb2  # made at import: no type checker sees them
    proto = messages.ModelProto()
    for number in range(vocabulary.pieces):
        proto.pieces.add(
            piece=vocabulary.tokens[number], score=vocabulary.scores[number], type=vocabulary.types[number]
        )
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = BPE_MODEL_TYPE, vocabulary.pieces
    trainer.byte_fallback = BYTE in vocabulary.types[: vocabulary.pieces]
    _set_roles(trainer, vocabulary)
    normalizer.name, normalizer.precompiled_charsmap = "identity", b""
    normalizer.add_dummy_prefix = vocabulary.add_space
    normalizer.remove_extra_whitespaces = vocabulary.remove_extra_spaces
    normalizer.escape_whitespaces = True
    model = bytes(proto.SerializeToString())
    SentencePieceCodec(model, "The rebuilt tokenizer.model")
    return model


def _set_roles(trainer: Any, vocabulary: GgufVocabulary) -> None:
    """Names the pieces of the roles, by which SentencePiece finds their ids; a role without one has the id -1."""
    ids = {"unk_token": vocabulary.types.index(UNKNOWN), **vocabulary.ids}
    for role in ("bos", "eos", "unk", "pad"):
        number = ids.get(f"{role}_token")
        own = number is not None and number < vocabulary.pieces
        setattr(trainer, f"{role}_id", number if own else -1)
        if own and number is not None:
            setattr(trainer, f"{role}_piece", vocabulary.tokens[number])


# ---- byte-level ---------------------------------------------------------------------------------------


def byte_level_table(vocabulary: GgufVocabulary) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a byte-level vocabulary for the `tokenizers` library.

    Raises:
        UnreadableTokenizer: The library gives a token another id.
    """
    pre_tokenizer = vocabulary.pre_tokenizer
    assert pre_tokenizer is not None
    vocab = {token: number for number, token in enumerate(vocabulary.tokens[: vocabulary.pieces])}
    table = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=list(vocabulary.merges), ignore_merges=pre_tokenizer.whole_words)
    )
    splits: list[Any] = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in pre_tokenizer.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=vocabulary.add_space, use_regex=False)
    table.normalizer = normalizers.NFC() if pre_tokenizer.composed else None
    table.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    table.decoder = decoders.ByteLevel()
    table.add_tokens(list(added_tokens(vocabulary).values()))
    table.post_processor = _post_processor(vocabulary)
    _check_ids(table, vocabulary)
    return table


def _post_processor(vocabulary: GgufVocabulary) -> Any:
    to_text = processors.ByteLevel(trim_offsets=False)
    begin = [vocabulary.tokens[vocabulary.ids["bos_token"]]] if vocabulary.add_bos else []
    end = [vocabulary.tokens[vocabulary.ids["eos_token"]]] if vocabulary.add_eos else []
    if not begin + end:
        return to_text
    single = [*(f"{t}:0" for t in begin), "$A:0", *(f"{t}:0" for t in end)]
    pair = [*single, *(f"{t}:1" for t in begin), "$B:1", *(f"{t}:1" for t in end)]
    ids = [(token, vocabulary.tokens.index(token)) for token in dict.fromkeys(begin + end)]
    template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return processors.Sequence([to_text, template])


def _check_ids(table: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    for number, token in enumerate(vocabulary.tokens):
        if table.token_to_id(token) != number:
            raise UnreadableTokenizer(
                f"The token {token!r} has the id {number} in the GGUF file and {table.token_to_id(token)} in the rebuilt "
                "tokenizer.json.",
                "Use the model's Hugging Face files.",
            )
