"""Tools for adapters: a LoRA is extracted from a fine-tuned model, or several adapters are combined into one."""

from services.adapter_tools.extracting import Extracted, ExtractOptions, extract
from services.adapter_tools.folder import WrittenAdapter

__all__ = ["ExtractOptions", "Extracted", "WrittenAdapter", "extract"]
