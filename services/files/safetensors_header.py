"""Header of a `.safetensors` file, read with bounds and checked against the file's true size.

Format: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

import math
import os
import struct
from pathlib import Path
from typing import Any

from services.errors import UnreadableFile, UnsupportedFormat
from services.files.json_file import parse_json
from services.files.regular_file import open_regular
from services.files.tensors import DTYPE_SIZES, TensorHeader, check_name

HEADER_LIMIT_BYTES = 32 * 2**20
"""Largest header. That of 100,000 tensors takes 15 megabytes; the format's own library accepts 100 megabytes."""

DIMENSIONS_LIMIT = 8
"""Largest number of dimensions. No weight has more than two."""


def read_safetensors_header(path: Path) -> dict[str, TensorHeader]:
    """Returns the tensors of a safetensors file by name, in the order of their bytes.

    Raises:
        UnreadableFile: The file is truncated or longer than its header says, or the header is damaged.
        UnsupportedFormat: A tensor has a dtype that is not supported.
    """
    header, data_start, size_bytes = _header_json(path)
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_tiling(path, tensors, data_start, size_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _header_json(path: Path) -> tuple[dict[str, Any], int, int]:
    """Returns the header, the first byte of the data, and the size of the file."""
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size_bytes - 8:
            raise UnreadableFile(
                f"{path.name} has {size_bytes} bytes and its first 8 announce a header of {length}: "
                "it is truncated, or is not a safetensors file.",
                "Fetch the file again and compare its SHA-256 with the publisher's.",
            )
        if length > HEADER_LIMIT_BYTES:
            raise UnreadableFile(
                f"{path.name} has a header of {length} bytes; at most {HEADER_LIMIT_BYTES} are read.",
                "Save its tensors in several files.",
            )
        raw = file.read(length)
    try:
        header = parse_json(raw)
    except ValueError as error:
        raise UnreadableFile(
            f"{path.name}: the safetensors header is damaged ({error}).", "Fetch the file again."
        ) from error
    if not isinstance(header, dict):
        raise UnreadableFile(
            f"{path.name}: the safetensors header is not a JSON object.", "Fetch the file again."
        )
    return header, 8 + length, size_bytes


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorHeader:
    check_name(path, name)
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise UnreadableFile(
            f"{path.name}: the header's entry for {name!r} is damaged.", "Fetch the file again."
        ) from error
    numbers = (*shape, begin, end)
    if any(type(n) is not int or not 0 <= n < 2**63 for n in numbers) or len(shape) > DIMENSIONS_LIMIT:
        raise UnreadableFile(
            f"{path.name}: tensor {name!r} has a shape or offsets that are not natural numbers.",
            "Fetch the file again.",
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        raise UnsupportedFormat(
            f"{path.name}: tensor {name!r} has dtype {dtype}; supported are {', '.join(DTYPE_SIZES)}.",
            "Use an unquantized copy of the weights.",
        )
    needed = math.prod(shape) * DTYPE_SIZES[dtype]
    if end - begin != needed:
        raise UnreadableFile(
            f"{path.name}: tensor {name!r} of shape {list(shape)} and dtype {dtype} needs {needed} bytes; "
            f"the header gives it {end - begin}.",
            "The file is damaged: fetch it again.",
        )
    return TensorHeader(name, dtype, shape, path, data_start + begin)


def _check_tiling(path: Path, tensors: list[TensorHeader], data_start: int, size_bytes: int) -> None:
    expected = data_start
    for tensor in tensors:
        if tensor.offset != expected:
            raise UnreadableFile(
                f"{path.name}: tensor {tensor.name!r} starts at byte {tensor.offset} instead of {expected}: "
                "tensors overlap or leave a gap.",
                "The file is damaged: fetch it again.",
            )
        expected += tensor.size_bytes
    if expected != size_bytes:
        raise UnreadableFile(
            f"{path.name} has {size_bytes} bytes; its header describes {expected}: "
            + ("it is truncated" if size_bytes < expected else "it has bytes outside of its tensors")
            + ".",
            "Fetch the file again and compare its SHA-256 with the publisher's.",
        )
