"""tiktoken's own encoding of Llama 3's text, against which ours is tested."""

import base64
from collections.abc import Mapping
from pathlib import Path

import tiktoken


def llama3_encoding(file: Path, special_tokens: Mapping[str, int] | None = None) -> tiktoken.Encoding:
    """Returns tiktoken's own encoding of a file of ranks, with Llama 3's pattern (meta-llama/llama3 `llama/tokenizer.py`)."""
    ranks = {}
    for line in file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return tiktoken.Encoding(
        "llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(special_tokens or {})
    )
