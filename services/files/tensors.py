"""Description of one tensor in a file: position, dtype, shape."""

import math
from dataclasses import dataclass
from pathlib import Path

from services.errors import UnreadableFile

DTYPE_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by safetensors' names of the dtypes."""

BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84),
    "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ3_XXS": (256, 98), "IQ1_S": (256, 50), "IQ4_NL": (32, 18), "IQ3_S": (256, 110),
    "IQ2_S": (256, 82), "IQ4_XS": (256, 136), "IQ1_M": (256, 56),
}  # fmt: skip
"""GGML's block encodings: elements of a row and bytes that they take together (ggml `ggml-common.h`)."""

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights of this family."""

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of these dtypes in torch and config.json."""

DTYPE_CODES = {name: code for code, name in DTYPE_NAMES.items()}


NAME_LIMIT = 512
"""Longest name of a tensor, in characters. The longest in use have about a hundred."""

NAME_PARTS_LIMIT = 32
"""Most parts of a name between dots."""


def check_name(path: Path, name: str) -> None:
    """Checks that a name can be one of a module's parameters.

    Raises:
        UnreadableFile: It is too long, or has control characters or too many parts.
    """
    if len(name) > NAME_LIMIT or name.count(".") >= NAME_PARTS_LIMIT or not name.isprintable():
        raise UnreadableFile(
            f"{path.name} holds a tensor {name[:80]!r} ({len(name)} characters, {name.count('.') + 1} parts); names have at "
            f"most {NAME_LIMIT} printable characters and {NAME_PARTS_LIMIT} parts.",
            "The file is damaged: fetch it again.",
        )


def size_of(dtype: str, elements: int) -> int:
    """Returns the bytes of elements in a dtype or block encoding."""
    block, block_bytes = BLOCKS.get(dtype) or (1, DTYPE_SIZES[dtype])
    return elements // block * block_bytes


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor inside a file: `shape` in elements, `offset` in bytes from the start of the file.

    `strides` (in elements) is None if the elements are in row-major order without gaps.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return size_of(self.dtype, self.elements)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides in elements of a row-major tensor of this shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
