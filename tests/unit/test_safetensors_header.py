"""Headers of safetensors files: entries, dtypes and offsets that are refused."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.errors import (
    UnreadableFile,
    UnsupportedFormat,
)
from services.files.safetensors_header import read_safetensors_header
from tests.header_files import written


def header_file(entries: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD: dict[str, Any] = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    "entry",
    [
        {**GOOD, "shape": [2.0, 3]}, {**GOOD, "shape": ["2", 3]}, {**GOOD, "shape": "23"}, {**GOOD, "shape": [True, 6]},
        {**GOOD, "shape": [-2, -3]}, {**GOOD, "shape": [1e400]}, {**GOOD, "shape": None}, {**GOOD, "shape": [[2, 3]]},
        {**GOOD, "shape": [2] * 9, "data_offsets": [0, 1024]}, {**GOOD, "shape": [2**63, 0], "data_offsets": [0, 0]},
        {**GOOD, "data_offsets": [12, 0]}, {**GOOD, "data_offsets": [0]}, {**GOOD, "data_offsets": [0, 12, 12]},
        {**GOOD, "data_offsets": {"0": 0, "1": 12}}, {**GOOD, "data_offsets": [-12, 0]}, {**GOOD, "data_offsets": [0, 14]},
        {"shape": [2, 3]}, [], None, 7, "F16",
    ],
)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_refused_by_the_tensors_name(tmp_path: Path, entry: Any) -> None:
    path = written(tmp_path / "model.safetensors", header_file({"some.weight": entry}, bytes(12)))
    with pytest.raises(UnreadableFile, match=r"some\.weight"):
        read_safetensors_header(path)


@pytest.mark.parametrize("dtype", ["F4", "Q8_0", "", None, 7, ["F16"], {"F16": 1}])
def test_a_dtype_that_is_not_known_is_refused_by_name(tmp_path: Path, dtype: Any) -> None:
    path = written(tmp_path / "model.safetensors", header_file({"w": {**GOOD, "dtype": dtype}}, bytes(12)))
    with pytest.raises(UnsupportedFormat, match="'w' has dtype"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"a": {**GOOD}, "b": {**GOOD, "data_offsets": [6, 18]}}, 18),
        ({"a": {**GOOD}, "b": {**GOOD, "data_offsets": [14, 26]}}, 26),
        ({"a": {**GOOD, "data_offsets": [4, 16]}}, 16),
    ],
)
def test_tensors_that_overlap_or_leave_a_gap_are_refused(
    tmp_path: Path, entries: dict[str, Any], size: int
) -> None:
    path = written(tmp_path / "model.safetensors", header_file(entries, bytes(size)))
    with pytest.raises(UnreadableFile, match="overlap or leave a gap"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x02", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 50) + b"{}", struct.pack("<Q", 0) + b"{}",
        struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"\xff\xff",
        struct.pack("<Q", 100_000) + b"[" * 100_000, b"version https://git-lfs.github.com/spec/v1\noid sha256:77\n",
    ],
)  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"model\.safetensors"):
        read_safetensors_header(written(tmp_path / "model.safetensors", content))
