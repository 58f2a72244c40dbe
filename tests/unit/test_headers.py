"""Headers of tensor files in both formats, whole, cut short and damaged: damage is refused or read within bounds."""

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.errors import (
    GraftwerkError,
    UnreadableFile,
    UnsupportedFormat,
)
from services.files.tensors import TensorHeader
from services.files.torch_zip import read_torch_header
from services.files.weight_files import read_tensor_file
from tests.header_files import FORMATS, SHAPES, written
from tests.reference.torch_files import state_pickle, tensor, torch_archive

FLIPS = 500


# ---- right ----


@pytest.mark.parametrize("name", FORMATS)
def test_names_dtypes_and_shapes_are_those_that_were_written(tmp_path: Path, name: str) -> None:
    found = read_tensor_file(written(tmp_path / name, FORMATS[name]))
    assert {key: header.shape for key, header in found.items()} == SHAPES
    assert {header.dtype for header in found.values()} == {"F16"}
    assert [header.size_bytes for header in found.values()] == [30, 14, 16]


@pytest.mark.parametrize("name", FORMATS)
def test_offsets_point_at_the_tensors_bytes(tmp_path: Path, name: str) -> None:
    """Every value is zero; marked with ones at its offset, a file still has only its own bytes changed."""
    path = written(tmp_path / name, FORMATS[name])
    data = bytearray(path.read_bytes())
    for header in read_tensor_file(path).values():
        assert data[header.offset : header.offset + header.size_bytes] == bytes(header.size_bytes)
        data[header.offset : header.offset + header.size_bytes] = b"\x01" * header.size_bytes
    path.write_bytes(data)
    assert {key: header.shape for key, header in read_tensor_file(path).items()} == SHAPES
    assert data.count(b"\x01" * 14) == {"model.safetensors": 4, "model.bin": 4}[name]


def test_a_view_keeps_its_strides_and_its_offset(tmp_path: Path) -> None:
    """Columns 2 to 4 of a matrix of 3 x 5: storage of 15 elements, offset 2, strides (5, 1)."""
    content = torch_archive({
        "data.pkl": b"\x80\x02}(X\x01\x00\x00\x00w" + tensor("0", (3, 3), offset=2, strides=(5, 1)) + b"u.",
        "data/0": bytes(30),
    })  # fmt: skip
    whole = torch_archive({"data.pkl": state_pickle({"w": (3, 5)}), "data/0": bytes(30)})
    view = read_torch_header(written(tmp_path / "view.bin", content))["w"]
    plain = read_torch_header(written(tmp_path / "whole.bin", whole))["w"]
    assert (view.shape, view.strides, plain.strides) == ((3, 3), (5, 1), None)
    shift = len(content) - len(whole)
    assert view.offset - plain.offset in (4, 4 + shift), "two elements of two bytes into the storage"


# ---- cut short and damaged ----


def assert_within(path: Path, found: Mapping[str, TensorHeader]) -> None:
    """Whoever reads on may rely on it: every tensor's bytes lie in the file."""
    size = path.stat().st_size
    for header in found.values():
        extent = header.elements
        if header.strides is not None and extent:
            extent = 1 + sum((n - 1) * step for n, step in zip(header.shape, header.strides, strict=True))
        item = header.size_bytes // max(1, header.elements)
        assert 0 <= header.offset <= header.offset + extent * item <= size


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_at_any_byte_is_refused(tmp_path: Path, name: str) -> None:
    content = FORMATS[name]
    path = written(tmp_path / name, content)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises((UnreadableFile, UnsupportedFormat)):
            read_tensor_file(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_read_within_its_bounds(tmp_path: Path, name: str) -> None:
    random_ = random.Random(3)
    path = tmp_path / name
    for _ in range(FLIPS):
        data = bytearray(FORMATS[name])
        for _ in range(random_.choice((1, 1, 1, 2, 8))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data)
        try:
            found = read_tensor_file(path)
        except GraftwerkError:
            continue
        assert_within(path, found)


@pytest.mark.filterwarnings(
    "ignore:invalid escape sequence:DeprecationWarning"
)  # pickle's own, for damaged strings
def test_a_damaged_pickle_is_refused_or_read_within_its_bounds(tmp_path: Path) -> None:
    """The archive is sound (its checksums are recomputed), so the pickle itself is reached."""
    random_ = random.Random(5)
    path = tmp_path / "model.bin"
    whole = state_pickle(SHAPES)
    storages = {f"data/{number}": bytes(size) for number, size in enumerate((30, 14, 16))}
    outcomes = set()
    for _ in range(FLIPS):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 1, 2))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(torch_archive({"data.pkl": bytes(data), **storages}))
        try:
            assert_within(path, read_torch_header(path))
            outcomes.add("read")
        except GraftwerkError as error:
            outcomes.add(error.code)
    assert outcomes >= {"read", "unreadable_file", "unsafe_pickle"}


def test_both_sizes_are_named_when_a_file_is_cut_short(tmp_path: Path) -> None:
    content = FORMATS["model.safetensors"]
    path = written(tmp_path / "model.safetensors", content[:-10])
    with pytest.raises(UnreadableFile) as caught:
        read_tensor_file(path)
    assert f"has {len(content) - 10} bytes" in caught.value.message
    assert f"describes {len(content)}" in caught.value.message
    assert "truncated" in caught.value.message


def test_bytes_that_belong_to_no_tensor_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", FORMATS["model.safetensors"] + b"\0")
    with pytest.raises(UnreadableFile, match="bytes outside of its tensors"):
        read_tensor_file(path)
