"""Byte-level BPE tokenizers of `tokenizer.json` in a GGUF file, as llama.cpp's converter writes them.

Source: ggml-org/llama.cpp `conversion/base.py` (get_vocab_base, does_token_look_special, _set_vocab_gpt2).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from services.architectures.config import ModelConfig
from services.architectures.gguf_pretokenizer import pretokenizer_name
from services.architectures.tokenizer_files import TokenizerFiles
from services.errors import UnreadableTokenizer

LOOKS_SPECIAL = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
"""Beginnings and ends of tokens that some files do not call special though they are."""

NAMED_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
"""Such tokens without a common form."""


def looks_special(text: str) -> bool:
    """Returns True for a token that is treated as a control token though its file does not call it special."""
    return text in NAMED_SPECIAL or any(text.startswith(a) and text.endswith(b) for a, b in LOOKS_SPECIAL)


def add_byte_level(writer: gguf.GGUFWriter, folder: Path, files: TokenizerFiles, config: ModelConfig) -> bool:
    """Adds tokens, types, merges and the ids of special tokens; returns True if texts begin with the beginning token.

    Raises:
        UnsupportedFormat: llama.cpp has no pre-tokenizer of this name.
        UnreadableTokenizer: The file is damaged.
    """
    path = folder / "tokenizer.json"
    name = pretokenizer_name(folder)
    table = json.loads(path.read_bytes())
    model, added = table["model"], table.get("added_tokens") or []
    texts = {number: text for text, number in model["vocab"].items()}
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for token in added:
        special = token.get("special") or looks_special(token["content"])
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    if max(texts) >= config.vocab_size:
        raise UnreadableTokenizer(
            f"{path.name} has a token of id {max(texts)}; the embeddings have {config.vocab_size} rows.",
            "Use the tokenizer of this model.",
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    rows = range(config.vocab_size)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in rows])
    writer.add_token_types([int(kinds.get(number, gguf.TokenType.UNUSED)) for number in rows])
    writer.add_token_merges([_merge(entry) for entry in model["merges"]])
    _add_ids(writer, {text: number for number, text in texts.items()}, files, config)
    return _begins_with_bos(path, files)


def _merge(entry: Any) -> str:
    return entry if isinstance(entry, str) else " ".join(entry)


def _add_ids(
    writer: gguf.GGUFWriter, numbers: Mapping[str, int], files: TokenizerFiles, config: ModelConfig
) -> None:
    """Adds the ids of special tokens: those that the tokenizer names, or else the configuration's."""
    eos = config.eos_token_id
    first = eos[0] if isinstance(eos, list) and eos else eos
    for role, stated, add in (
        ("bos_token", config.bos_token_id, writer.add_bos_token_id),
        ("eos_token", first, writer.add_eos_token_id),
        ("pad_token", None, writer.add_pad_token_id),
    ):
        named = numbers.get(files.role(role) or "")
        number = stated if named is None else named
        if isinstance(number, int) and 0 <= number < config.vocab_size:
            add(number)


def _begins_with_bos(path: Path, files: TokenizerFiles) -> bool:
    """Returns True if the tokenizer itself puts the beginning token before a text."""
    tokenizer = Tokenizer.from_file(str(path))
    bos = files.role("bos_token")
    ids = tokenizer.encode("a").ids
    return bos is not None and bool(ids) and ids[0] == tokenizer.token_to_id(bos)
