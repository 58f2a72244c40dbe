"""Header of a GGUF file: metadata and tensors, read within bounds.

Format (ggml-org/ggml `docs/gguf.md`, versions 2 and 3): magic, version, counts; metadata as key, type, value; then name,
dimensions (the fastest first), type and offset of each tensor; data begins at the next multiple of
`general.alignment`. Strings are a length and UTF-8 bytes; all numbers are little-endian.
"""

import math
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from services.errors import UnreadableFile, UnsupportedFormat
from services.files.regular_file import open_regular
from services.files.tensors import TensorHeader, check_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

ENTRIES_LIMIT = 100_000
"""Largest number of metadata entries, and of tensors: the largest models have some thousands."""

STRING_LIMIT_BYTES = 2**20
"""Longest string. A chat template takes some kilobytes."""

HEADER_LIMIT_BYTES = 64 * 2**20
"""Largest header. A vocabulary of 256,000 tokens with its merges takes about ten megabytes."""

TEXT_LIMIT_BYTES = 32 * 2**20
"""Largest size of all strings that are kept."""

STRINGS_LIMIT = 1_000_000
"""Most strings and arrays within arrays: a vocabulary of 256,000 tokens has half a million merges."""

VALUES_LIMIT = 2**21
"""Most numbers that are kept: eight times the largest vocabulary."""

NESTING_LIMIT = 2

GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip
"""Encodings by ggml's number: name, elements of a block, bytes of a block (ggml `ggml.h`, ggml_type)."""

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array in the metadata: its length, and its values if they were asked for."""

    length: int
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` as torch counts it (the fastest dimension last), `offset` from the start of the file."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A GGUF file's metadata and its tensors by name."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Name of the model's architecture, "llama" for LLaMA."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def of_architecture(self, key: str) -> Any:
        """Returns a value under the architecture's name, None if it is absent."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def raw(self, name: str) -> TensorHeader:
        """Returns a tensor's bytes as they are stored: in its dtype if torch has it, as rows of bytes (U8) if it is in blocks."""
        tensor = self.tensors[name]
        if tensor.encoding in ("F32", "F16", "BF16"):
            return TensorHeader(name, tensor.encoding, tensor.shape, self.path, tensor.offset)
        rows = math.prod(tensor.shape[:-1])
        return TensorHeader(name, "U8", (rows, tensor.size_bytes // max(rows, 1)), self.path, tensor.offset)


def read_gguf_header(path: Path, arrays: Collection[str] = ()) -> GgufHeader:
    """Returns the header of a GGUF file.

    Args:
        arrays: Keys of the arrays whose values are kept; of others only the length is.

    Raises:
        UnreadableFile: The file is truncated or damaged, or has sizes beyond the limits.
        UnsupportedFormat: It is not a GGUF file, or of another version, or big-endian.
    """
    with open_regular(path) as file:
        return _Reader(path, file, arrays).header()


class _Reader:
    """Reader of values one after another, never beyond the file or the limits."""

    def __init__(self, path: Path, file: BufferedReader, arrays: Collection[str]) -> None:
        self._path = path
        self._file = file
        self._arrays = arrays
        self._size = os.fstat(file.fileno()).st_size
        self._at = 0
        self._left = {
            "bytes of text": TEXT_LIMIT_BYTES,
            "strings and arrays": STRINGS_LIMIT,
            "numbers": VALUES_LIMIT,
        }

    def header(self) -> GgufHeader:
        version = self._version()
        tensor_count, entry_count = self._count("tensors"), self._count("metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"has the metadata entry {key!r} twice")
            metadata[key] = self._entry(key, int(self._number("<I")))
        described = [self._tensor() for _ in range(tensor_count)]
        start = self._data_start(metadata)
        return GgufHeader(self._path, version, metadata, self._placed(described, start))

    def _version(self) -> int:
        magic = self._take(4)
        if magic != MAGIC:
            raise UnsupportedFormat(
                f"{self._path.name} begins with {magic!r}; a GGUF file begins with {MAGIC!r}.",
                "Fetch the file again, or remove its ending .gguf.",
            )
        version = self._number("<I")
        if version not in VERSIONS:
            raise UnsupportedFormat(
                f"{self._path.name} is of GGUF version {version} (or big-endian); read are little-endian files of "
                f"versions {VERSIONS[0]} and {VERSIONS[1]}.",
                "Make the file again with a current llama.cpp.",
            )
        return int(version)

    def _take(self, count: int) -> bytes:
        self._pass(count)
        data = self._file.read(count)
        if len(data) != count:
            raise self._damaged(f"ends at {self._size} bytes, within its header")
        return data

    def _pass(self, count: int) -> None:
        """Counts bytes of the header that are read or skipped."""
        self._at += count
        if self._at > HEADER_LIMIT_BYTES:
            raise self._damaged(f"has a header of more than {HEADER_LIMIT_BYTES} bytes")
        if self._at > self._size:
            raise self._damaged(f"ends at {self._size} bytes; a value of its header ends at {self._at}")

    def _spend(self, what: str, count: int) -> None:
        """Counts what the header announces, before it is read."""
        self._left[what] -= count
        if self._left[what] < 0:
            raise self._damaged(
                f"has too many {what}: {count} more than the {self._left[what] + count} that are left"
            )

    def _damaged(self, what: str) -> UnreadableFile:
        return UnreadableFile(f"{self._path.name} {what}.", "It is truncated or damaged: fetch it again.")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, what: str) -> int:
        count = int(self._number("<Q"))
        if count > ENTRIES_LIMIT:
            raise self._damaged(f"announces {count} {what}, more than {ENTRIES_LIMIT}")
        return count

    def _string(self) -> str:
        length = int(self._number("<Q"))
        if length > STRING_LIMIT_BYTES:
            raise self._damaged(f"has a string of {length} bytes, more than {STRING_LIMIT_BYTES}")
        self._spend("bytes of text", length)
        return self._take(length).decode("utf-8", "replace")

    def _entry(self, key: str, kind: int) -> Any:
        return self._kept(key) if kind == _ARRAY and key in self._arrays else self._value(kind, NESTING_LIMIT)

    def _kept(self, key: str) -> GgufArray:
        kind, length = int(self._number("<I")), int(self._number("<Q"))
        if kind in _SCALARS:
            self._spend("numbers", length)
            data = self._take(length * struct.calcsize(_SCALARS[kind]))
            return GgufArray(length, struct.unpack(f"<{length}{_SCALARS[kind][1]}", data))
        if kind == _STRING:
            self._spend("strings and arrays", length)
            return GgufArray(length, tuple(self._text(key) for _ in range(length)))
        raise self._damaged(f"has values of type {kind} in {key}, which are neither numbers nor texts")

    def _text(self, key: str) -> str:
        """Returns a string whose every byte counts."""
        length = int(self._number("<Q"))
        if length > STRING_LIMIT_BYTES:
            raise self._damaged(f"has a string of {length} bytes in {key}, more than {STRING_LIMIT_BYTES}")
        self._spend("bytes of text", length)
        data = self._take(length)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"has {data[:40]!r} in {key}, which is not UTF-8") from error

    def _value(self, kind: int, nesting: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and nesting:
            return self._array(nesting - 1)
        raise self._damaged(f"has a metadata value of type {kind}, which the format does not allow")

    def _array(self, nesting: int) -> GgufArray:
        kind, length = int(self._number("<I")), int(self._number("<Q"))
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
            return GgufArray(length)
        self._spend("strings and arrays", length)
        for _ in range(length):
            self._skip_string() if kind == _STRING else self._value(kind, nesting)
        return GgufArray(length)

    def _skip_string(self) -> None:
        self._skip(int(self._number("<Q")))

    def _skip(self, count: int) -> None:
        self._pass(count)
        self._file.seek(count, os.SEEK_CUR)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dims = int(self._number("<I"))
        if not 1 <= dims <= 4:
            raise self._damaged(f"has a tensor {name!r} of {dims} dimensions")
        shape = tuple(int(self._number("<Q")) for _ in range(dims))
        return name, shape[::-1], int(self._number("<I")), int(self._number("<Q"))

    def _data_start(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"has an alignment of {alignment!r}")
        return -(-self._at // alignment) * alignment

    def _placed(
        self, described: list[tuple[str, tuple[int, ...], int, int]], start: int
    ) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        for name, shape, number, offset in described:
            check_name(self._path, name)
            if number not in GGML_TYPES:
                raise UnsupportedFormat(
                    f"{self._path.name}: tensor {name!r} is of the unknown type {number}.",
                    "It was made by a newer llama.cpp than this version of Graftwerk knows.",
                )
            encoding, block, block_bytes = GGML_TYPES[number]
            size = math.prod(shape) // block * block_bytes
            if name in tensors or shape[-1] % block or start + offset + size > self._size:
                raise self._damaged(
                    f"has {self._size} bytes; tensor {name!r} {list(shape)} {encoding} starts at {start + offset} and takes {size}"
                )
            tensors[name] = GgufTensor(name, encoding, shape, start + offset, size)
        return tensors
