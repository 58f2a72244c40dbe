"""Description of a checkpoint: one list of Hugging Face tensors and their parts, for every layout.

A tensor's name is that of the checkpoint's own file, which all outputs keep; an original checkpoint's have LLaMA's names.

An original checkpoint's tensor has one part per rank; a Hugging Face checkpoint's has one part. Code that reads a
checkpoint does not know which layout it was: one rank is the special case of many.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from services.architectures.config import ModelConfig
from services.architectures.four_bit import FourBit
from services.architectures.key_map import Shape
from services.architectures.vocabulary import Vocabulary
from services.files.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor under Hugging Face's name: `parts` are joined on `join_dim` (None: all parts are equal).

    `rotary_heads` is the number of heads by which its rows are un-interleaved after joining, 0 if they are not. `four_bit` is set for
    a weight that is stored in 4 bits, or that is rounded to them.
    A GGUF file's tensor is stored as `encoding` says, in rows of bytes if that is a block encoding, and `offset` is subtracted from its
    values. Its blocks come as they are stored or in float32; `dtype` is the one that is written by default.
    """

    name: str
    dtype: str
    shape: Shape
    parts: tuple[TensorHeader, ...]
    join_dim: int | None = None
    rotary_heads: int = 0
    four_bit: FourBit | None = None
    encoding: str | None = None
    offset: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Bytes of the joined tensor in its dtype; of a GGUF file's tensor, as it is stored."""
        if self.encoding is not None:
            return self.parts[0].size_bytes
        return replace(self.parts[0], dtype=self.dtype, shape=self.shape).size_bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base model on disk: configuration, tensors in Hugging Face's order, tokenizer, and the files read."""

    folder: Path
    layout: Literal["meta", "huggingface", "gguf"]
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
    def embeddings(self) -> str:
        """Name of the input embedding."""
        return self.own_names[self.config.model_class.embeddings]

    @property
    def head(self) -> str | None:
        """Name of the output head, None if it is tied to the input embedding."""
        return self.own_names.get(self.config.model_class.head)

    @property
    def head_name(self) -> str:
        """Name of the output head in the files of this checkpoint, or the one that it would have there if it is tied."""
        model_class = self.config.model_class
        renamed = model_class.module_name(self.embeddings) != self.embeddings
        return self.head or model_class.file_name(model_class.head, renamed=renamed)

    @property
    def untied(self) -> "Checkpoint":
        """This checkpoint with a head of its own, whose values are those of the input embedding."""
        if self.head is not None:
            return self
        head = replace(self.tensors[self.embeddings], name=self.head_name)
        config = replace(self.config, tie_word_embeddings=False)
        return replace(self, config=config, tensors={**self.tensors, head.name: head})

    @property
    def token_tensors(self) -> tuple[str, ...]:
        """Names of the tensors with one row per token: the input embedding, and the head if it is not tied."""
        return (self.embeddings,) if self.head is None else (self.embeddings, self.head)

    @property
    def own_names(self) -> Mapping[str, str]:
        """Names of the text model's tensors by those of the family's table."""
        model_class = self.config.model_class
        found = {model_class.text_name(name): name for name in self.tensors}
        return {text: name for text, name in found.items() if text is not None}

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
