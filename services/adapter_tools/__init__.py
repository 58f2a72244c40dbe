"""Tools for adapters: a LoRA is extracted from a fine-tuned model, or several adapters are combined into one."""

from services.adapter_tools.combining import Combined, CombineOptions, combine
from services.adapter_tools.extracting import Extracted, ExtractOptions, extract
from services.adapter_tools.folder import WrittenAdapter

__all__ = [
    "CombineOptions",
    "Combined",
    "ExtractOptions",
    "Extracted",
    "WrittenAdapter",
    "combine",
    "extract",
]
