"""Importance matrices in GGUF files, as llama-imatrix writes them: the header, read and checked.

Format (ggml-org/llama.cpp `tools/imatrix/imatrix.cpp`, save_imatrix): `general.type` is "imatrix"; each matrix of the model has
`<name>.in_sum2`, the sums of squares of its inputs by column, and `<name>.counts`, the number of inputs. Newer versions add
`<name>.in_sum` and `<name>.stats`, which quantization does not use; other tensors are ignored, as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from services.errors import UnreadableFile, UnsupportedFormat
from services.files.gguf_header import MAGIC, GgufArray, GgufHeader, read_gguf_header
from services.files.regular_file import open_regular

SUMS, COUNTS = ".in_sum2", ".counts"

DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"

MAKE_AGAIN = "Make it again with llama-imatrix, from this model."


@dataclass(frozen=True, slots=True, kw_only=True)
class ImatrixHeader:
    """Header of an importance matrix: `widths` has the columns of each matrix of the model, by GGUF's name."""

    header: GgufHeader
    widths: Mapping[str, int]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int


def read_imatrix_header(path: Path) -> ImatrixHeader:
    """Returns the header of an importance matrix.

    Errors of `read_gguf_header` are raised as they are.

    Raises:
        UnsupportedFormat: It is of the old format, another kind of GGUF file, or of a model with experts.
        UnreadableFile: Sums or counts of a matrix are missing, or metadata are.
    """
    _check_magic(path)
    header = read_gguf_header(path, (DATASETS,))
    kind = header.metadata.get("general.type")
    if kind != "imatrix":
        raise UnsupportedFormat(
            f"{path.name} has general.type {kind!r}; an importance matrix has 'imatrix'.",
            "Name the file that llama-imatrix has written.",
        )
    return ImatrixHeader(
        header=header, widths=_widths(header), datasets=_datasets(header),
        chunks=_positive(header, CHUNK_COUNT), chunk_size=_positive(header, CHUNK_SIZE),
    )  # fmt: skip


def _check_magic(path: Path) -> None:
    with open_regular(path) as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise UnsupportedFormat(
            f"{path.name} is not a GGUF file: it begins with {magic!r}. The old format of importance matrices (.dat) is not read.",
            "Convert it with llama-imatrix --in-file OLD.dat -o NEW.gguf, or make it again.",
        )


def _widths(header: GgufHeader) -> dict[str, int]:
    """Returns the columns of each matrix, after its tensors are known to belong together."""
    found: dict[str, int] = {}
    for name, tensor in header.tensors.items():
        stem = next((name.removesuffix(end) for end in (SUMS, COUNTS) if name.endswith(end)), None)
        if stem is None:
            continue
        if tensor.encoding != "F32":
            raise UnsupportedFormat(
                f"{header.path.name} holds {name!r} of type {tensor.encoding}; an importance matrix is of float32.",
                MAKE_AGAIN,
            )
        for other in (stem + SUMS, stem + COUNTS):
            if other not in header.tensors:
                raise UnreadableFile(f"{header.path.name} holds {name!r} without {other!r}.", MAKE_AGAIN)
        counts = prod(header.tensors[stem + COUNTS].shape)
        if counts != 1:
            raise UnsupportedFormat(
                f"{header.path.name} has {counts} counts of {stem!r}, as matrices of experts have; models that GGUF is written "
                "of have one.",
                MAKE_AGAIN,
            )
        found[stem] = prod(header.tensors[stem + SUMS].shape)
    if not found:
        raise UnreadableFile(f"{header.path.name} holds no importance of any matrix.", MAKE_AGAIN)
    return found


def _datasets(header: GgufHeader) -> tuple[str, ...]:
    found = header.metadata.get(DATASETS)
    if not isinstance(found, GgufArray) or any(not isinstance(text, str) for text in found.values or ()):
        raise _without(header, DATASETS, found)
    return tuple(found.values or ())


def _positive(header: GgufHeader, key: str) -> int:
    value: Any = header.metadata.get(key)
    if not isinstance(value, int) or value < 1:
        raise _without(header, key, value)
    return value


def _without(header: GgufHeader, key: str, found: object) -> UnreadableFile:
    return UnreadableFile(
        f"{header.path.name} has {found!r} as {key}, which llama-imatrix writes.", MAKE_AGAIN
    )
