"""Conversion of a checkpoint to another layout, every tensor accounted for."""

from services.convert.adapter import ADAPTER_FILE, convert_adapter
from services.convert.conversion import ConvertOptions, convert, converted_output

__all__ = ["ADAPTER_FILE", "ConvertOptions", "convert", "convert_adapter", "converted_output"]
