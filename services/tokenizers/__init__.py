"""Tokenizers: text to token ids and back, exactly as with the original implementations."""

from services.tokenizers.folder import (
    CompletedTokenizer,
    add_chat_template,
    check_tokenizer,
    complete_tokenizer,
)
from services.tokenizers.loading import load_tokenizer
from services.tokenizers.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "CompletedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "add_chat_template",
    "check_tokenizer",
    "complete_tokenizer",
    "load_tokenizer",
]
