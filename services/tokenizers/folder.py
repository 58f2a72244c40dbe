"""Tokenizer files of a model folder for transformers and vLLM, made from `tokenizer.model`.

transformers 5 has a class LlamaTokenizer that takes only the pieces and merges from `tokenizer.json`, and from a
`tokenizer.model` alone it builds merges in the order of ids, which differ from SentencePiece's on every fourth mixed
line. PreTrainedTokenizerFast runs `tokenizer.json` as it is, in version 4 and in 5 (there under the name
TokenizersBackend); `tokenizer.model` itself stays for programs that run SentencePiece.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from services.architectures.llama3 import LLAMA_3_CHAT_TEMPLATE, LLAMA_3_END_OF_TURN
from services.architectures.tokenizer_files import CHAT_TEMPLATE, TokenizerFiles, token_content
from services.errors import UnreadableTokenizer
from services.files.json_file import Json, read_json_if_present, write_json
from services.kinds.made_model import TokenizerParity
from services.templates import JINJA_NAMES, jinja_text
from services.tokenizers.loading import load_tokenizer
from services.tokenizers.parity import measure_parity
from services.tokenizers.tiktoken import is_tiktoken
from services.tokenizers.tokenizer import Tokenizer
from services.tokenizers.tokenizer_json import build_table, table_to_json

SENTENCEPIECE_CONFIG: Mapping[str, Any] = {
    "add_bos_token": True, "add_eos_token": False, "legacy": True,
    "clean_up_tokenization_spaces": False, "model_max_length": 1000000000000000019884624838656,
}  # fmt: skip
"""Settings of the original tokenizer; legacy: text after a special token begins like any text."""

LLAMA_3_CONFIG: Mapping[str, Any] = {
    "clean_up_tokenization_spaces": False, "model_max_length": 1000000000000000019884624838656,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CompletedTokenizer:
    """Result of the completion: the parity of `tokenizer.json`, None if there is none, and warnings."""

    parity: TokenizerParity | None = None
    warnings: tuple[str, ...] = ()


def check_tokenizer(folder: Path) -> None:
    """Refuses a folder whose `tokenizer.model` or JSON files are damaged; one without a `tokenizer.model` passes.

    Raises:
        UnreadableTokenizer: A file is damaged.
    """
    if (folder / "tokenizer.model").is_file():
        load_tokenizer(folder)
        _read(folder / "tokenizer.json")


def complete_tokenizer(folder: Path, *, instruct: bool = False) -> CompletedTokenizer:
    """Writes the files that belong to the folder's `tokenizer.model`; without one the folder stays as it is.

    `tokenizer.json` is always written again, because an existing one may be of another vocabulary. Chat template, added tokens
    and other keys of `tokenizer_config.json` stay. Takes a second, for Llama 3 about eight.

    Args:
        instruct: Llama 3: turns end with `<|eot_id|>`, and the chat template is Meta's.

    Raises:
        UnreadableTokenizer: A file is damaged.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        return CompletedTokenizer()
    model, tokenizer = path.read_bytes(), load_tokenizer(folder)
    earlier = _read(folder / "tokenizer.json")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    _write_json_files(folder, model, tokenizer, instruct=instruct)
    try:
        table = build_table(model, path.name, tokenizer, earlier=earlier)
    except UnreadableTokenizer as error:
        warning = f"No tokenizer.json was written, and tokenizer.model is unchanged: {error.message}"
        return CompletedTokenizer(warnings=(warning,))
    (folder / "tokenizer.json").write_text(table_to_json(table), encoding="utf-8")
    _write_added_tokens(folder, table)
    parity = measure_parity(tokenizer, table)
    return CompletedTokenizer(parity, _parity_warnings(parity))


def add_chat_template(folder: Path, template: str) -> None:
    """Writes one of our templates as the chat template of a folder that has none.

    Without a tokenizer, or with a template that has no Jinja text, the folder stays as it is.

    Args:
        template: a name in `services.templates.TEMPLATES`.

    Raises:
        UnreadableTokenizer: A file is damaged.
    """
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if template not in JINJA_NAMES or not has_tokenizer or TokenizerFiles(folder).chat_template() is not None:
        return
    text = jinja_text(template, bos=load_tokenizer(folder).add_bos)
    (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8", newline="")


def _parity_warnings(parity: TokenizerParity) -> tuple[str, ...]:
    if not parity.different:
        return ()
    return (
        f"tokenizer.json gives other tokens than tokenizer.model on {parity.different} of {parity.lines} lines of mixed "
        "text: a table of merges cannot express how SentencePiece chooses among pieces of equal score. Graftwerk uses "
        "tokenizer.model; elsewhere take the ids from SentencePiece if they must be those of training.",
    )


def _write_json_files(folder: Path, model: bytes, tokenizer: Tokenizer, *, instruct: bool) -> None:
    config = _read(folder / "tokenizer_config.json")
    roles = _roles(tokenizer)
    if instruct:
        roles["eos_token"] = LLAMA_3_END_OF_TURN
    if not is_tiktoken(model):
        roles["unk_token"] = token_content(config.get("unk_token")) or "<unk>"
    defaults = LLAMA_3_CONFIG if is_tiktoken(model) else SENTENCEPIECE_CONFIG
    config = {"model_input_names": ["input_ids", "attention_mask"], **(config or defaults), **roles}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("auto_map", None)  # code of its own, which a table does not need
    if instruct:
        config.setdefault("chat_template", LLAMA_3_CHAT_TEMPLATE)
    write_json(folder / "tokenizer_config.json", config)
    named = _read(folder / "special_tokens_map.json")
    write_json(folder / "special_tokens_map.json", {**named, **roles})


def _roles(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    return {role: tokenizer.piece(token_id) for role, token_id in ids.items() if token_id is not None}


def _write_added_tokens(folder: Path, table: tokenizers.Tokenizer) -> None:
    """Writes the added tokens into `tokenizer_config.json`, where every version of transformers finds them."""
    path = folder / "tokenizer_config.json"
    config = _read(path)
    unknown = config.get("unk_token")
    config["added_tokens_decoder"] = {
        str(token_id): {
            "content": token.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token.special,
        }
        for token_id, token in sorted(table.get_added_tokens_decoder().items()) if token.content != unknown
    }  # fmt: skip
    write_json(path, config)


def _read(path: Path) -> Json:
    return read_json_if_present(path, UnreadableTokenizer)
