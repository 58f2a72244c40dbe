"""Conversion of a checkpoint to another layout, every tensor accounted for."""

from services.convert.conversion import ConvertOptions, convert

__all__ = ["ConvertOptions", "convert"]
