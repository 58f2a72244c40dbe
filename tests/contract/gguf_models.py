"""Models written as GGUF and read back by llama.cpp's own package."""

from pathlib import Path
from typing import Any

import gguf
import torch

from services.convert import ConvertOptions, convert

WIDE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 160}
"""Rows of whole blocks of 32: head_dim 12."""


def to_gguf(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    convert(source, target, ConvertOptions(output_format="gguf", **options))
    return target


def tensors_of(folder: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def field(folder: Path, key: str) -> Any:
    found = gguf.GGUFReader(folder / "model.gguf").get_field(key)
    return None if found is None else found.contents()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's permute (convert_hf_to_gguf.py, LlamaModel.permute), written out row by row."""
    size = weight.shape[0] // heads
    order = [
        head * size + part * (size // 2) + i
        for head in range(heads)
        for i in range(size // 2)
        for part in (0, 1)
    ]
    return weight[order]
