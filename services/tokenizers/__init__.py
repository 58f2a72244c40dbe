"""Text to token ids and back, exactly as the model's authors did it."""

from services.tokenizers.loading import load_tokenizer
from services.tokenizers.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
