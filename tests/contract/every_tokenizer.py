"""A tokenizer of each kind that a model may have."""

from pathlib import Path

from services.tokenizers import Tokenizer, load_tokenizer
from services.tokenizers.tokenizer_json import build_table, table_to_json
from tests.reference.families import byte_level_tokenizer
from tests.tokenizer_sets import OURS

MODELS = ("llama", "chinese-llama", "chinese-alpaca", "llama3")
KINDS = (*MODELS, *(f"{name}.json" for name in MODELS), "byte-level.json")
"""`tokenizer.model` of SentencePiece and tiktoken, and a `tokenizer.json` of each."""


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    """Returns one of the tokenizers; `folder` takes its file."""
    name, _, suffix = kind.partition(".")
    if name == "byte-level":
        text = byte_level_tokenizer().to_str()
    else:
        path = OURS.file(name)
        loaded = load_tokenizer(path)
        if not suffix:
            return loaded
        text = table_to_json(build_table(path.read_bytes(), path.name, loaded))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return load_tokenizer(folder)
