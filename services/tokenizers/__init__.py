"""Text to token ids and back, exactly as the model's authors did it."""

from services.tokenizers.folder import CompletedTokenizer, check_tokenizer, complete_tokenizer
from services.tokenizers.loading import load_tokenizer
from services.tokenizers.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "CompletedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "check_tokenizer",
    "complete_tokenizer",
    "load_tokenizer",
]
