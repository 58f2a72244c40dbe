"""One tensor as a file's header describes it: where its bytes are and what they mean."""

import math
from dataclasses import dataclass
from pathlib import Path

DTYPE_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by safetensors' names of the dtypes."""

BLOCKS = {"Q8_0": (32, 34)}
"""GGML's block encodings: elements of a row and bytes that they take together (ggml `ggml-common.h`, block_q8_0: one
float16 scale and 32 signed bytes)."""

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights of this family come in."""

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What torch and config.json call them."""

DTYPE_CODES = {name: code for code, name in DTYPE_NAMES.items()}


def size_of(dtype: str, elements: int) -> int:
    """Bytes that elements of a dtype or block encoding take."""
    block, block_bytes = BLOCKS.get(dtype) or (1, DTYPE_SIZES[dtype])
    return elements // block * block_bytes


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor inside a file: `shape` in elements, `offset` in bytes from the start of the file.

    `strides` (in elements) is None where the elements lie in row-major order without gaps.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes its elements take."""
        return size_of(self.dtype, self.elements)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor of this shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
