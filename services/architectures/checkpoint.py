"""Description of a checkpoint: one list of Hugging Face tensors and their parts, for either layout.

An original checkpoint's tensor has one part per rank; a Hugging Face checkpoint's has one part. Code that reads a
checkpoint does not know which layout it was: one rank is the special case of many.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from services.architectures.config import ModelConfig
from services.architectures.key_map import Shape
from services.architectures.vocabulary import Vocabulary
from services.files.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor under Hugging Face's name: `parts` are joined on `join_dim` (None: all parts are equal).

    `rotary_heads` is the number of heads by which its rows are un-interleaved after joining, 0 if they are not.
    """

    name: str
    dtype: str
    shape: Shape
    parts: tuple[TensorHeader, ...]
    join_dim: int | None = None
    rotary_heads: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the joined tensor."""
        return replace(self.parts[0], shape=self.shape).size_bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base model on disk: configuration, tensors in Hugging Face's order, tokenizer, and the files read."""

    folder: Path
    layout: Literal["meta", "huggingface"]
    config: ModelConfig
    tensors: Mapping[str, TensorSource]
    dropped: tuple[str, ...]
    ranks: int
    tokenizer_folder: Path
    vocabulary: Vocabulary | None
    weight_files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def stored(self) -> dict[str, tuple[str, Shape]]:
        """Dtype and shape of each tensor."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes of the tensors, the one of the most bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
        return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))
