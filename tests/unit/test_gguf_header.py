"""GGUF headers read without any library: against files encoded by hand, whole, truncated and damaged."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.errors import GraftwerkError, UnreadableFile, UnsupportedFormat
from services.files.gguf_header import GgufArray, read_gguf_header
from services.models.summary import describe_folder

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10
Entry = tuple[str, int, Any]
Tensor = tuple[str, Sequence[int], int, int]

ENTRIES: list[Entry] = [
    ("general.architecture", STRING, "llama"), ("general.file_type", U32, 7), ("llama.block_count", U32, 3),
    ("llama.rope.freq_base", F32, 500.0), ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<unk>", "<s>", "好"])),
    ("tokenizer.ggml.scores", ARRAY, (F32, [0.0, -1.0, -2.0])),
]  # fmt: skip
TENSORS: list[Tensor] = [("token_embd.weight", [64, 3], 8, 0), ("output_norm.weight", [64], 0, 224)]
"""Name, dimensions with the fastest first, type (8: Q8_0, 0: float32) and offset; 3 rows of 2 blocks of 34 bytes are 204, the
next multiple of 32 is 224."""

DATA = bytes(224 + 256)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack({U32: "<I", F32: "<f", U64: "<Q"}[kind], content)


def header(
    entries: Sequence[Entry] = ENTRIES, tensors: Sequence[Tensor] = TENSORS, *, version: int = 3
) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    for key, kind, content in entries:
        out += text(key) + struct.pack("<I", kind) + value(kind, content)
    for name, dims, number, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)
    return out


def saved(folder: Path, head: bytes, data: bytes = DATA, *, alignment: int = 32) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_are_read(tmp_path: Path, version: int) -> None:
    head = header(version=version)
    found = read_gguf_header(saved(tmp_path, head))
    start = -(-len(head) // 32) * 32
    assert (found.version, found.architecture, found.of_architecture("block_count")) == (version, "llama", 3)
    assert found.metadata["llama.rope.freq_base"] == 500.0
    assert found.metadata["tokenizer.ggml.tokens"] == GgufArray(3)
    embeddings = found.tensors["token_embd.weight"]
    assert (embeddings.encoding, embeddings.shape, embeddings.offset, embeddings.size_bytes) == (
        "Q8_0", (3, 64), start, 204,
    )  # fmt: skip
    assert found.tensors["output_norm.weight"].offset == start + 224
    assert (found.raw("token_embd.weight").dtype, found.raw("token_embd.weight").shape) == ("U8", (3, 68))
    assert (found.raw("output_norm.weight").dtype, found.raw("output_norm.weight").shape) == ("F32", (64,))


def test_another_alignment_moves_the_data(tmp_path: Path) -> None:
    head = header([*ENTRIES, ("general.alignment", U32, 256)])
    found = read_gguf_header(saved(tmp_path, head, alignment=256))
    assert found.tensors["token_embd.weight"].offset == -(-len(head) // 256) * 256


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, header()).read_bytes()
    for length in (*range(0, len(header())), len(header()) + 40, len(whole) - 1):
        (tmp_path / "model.gguf").write_bytes(whole[:length])
        with pytest.raises((UnreadableFile, UnsupportedFormat)):
            read_gguf_header(tmp_path / "model.gguf")


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path, header(), DATA[:-16])
    size = path.stat().st_size
    with pytest.raises(UnreadableFile, match=rf"has {size} bytes; tensor 'output_norm.weight'.*takes 256"):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("head", "error", "phrase"),
    [
        (b"GGML" + header()[4:], UnsupportedFormat, "begins with b'GGML'"),
        (header(version=1), UnsupportedFormat, "version 1 "),
        (b"GGUF" + struct.pack(">I", 3) + header()[8:], UnsupportedFormat, "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), UnreadableFile, "announces 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**33), UnreadableFile, "metadata entries, more than 100000"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40), UnreadableFile, "a string of 1099511627776 bytes"),
        (header([("a", 13, None)][:0]) + b"", UnreadableFile, "takes 204"),
        (header(tensors=[("a", [64, 3], 99, 0)]), UnsupportedFormat, "tensor 'a' is of the unknown type 99"),
        (header(tensors=[("a", [48, 3], 8, 0)]), UnreadableFile, r"tensor 'a' \[3, 48\] Q8_0"),
        (
            header(tensors=[("a", [2**62, 2**62], 0, 0)]),
            UnreadableFile,
            "takes 850705917302346158658436518579420528",
        ),
        (header(tensors=[("a", [64, 3], 8, 2**63)]), UnreadableFile, "tensor 'a'"),
        (header(tensors=[("a", [1, 1, 1, 1, 1], 0, 0)]), UnreadableFile, "of 5 dimensions"),
        (header(tensors=[("a", [], 0, 0)]), UnreadableFile, "of 0 dimensions"),
        (header(tensors=[TENSORS[0], TENSORS[0]]), UnreadableFile, "token_embd"),
        (header([("general.alignment", U32, 0)]), UnreadableFile, "alignment of 0"),
        (header([("general.alignment", STRING, "x")]), UnreadableFile, "alignment of 'x'"),
        (header([("a", ARRAY, (ARRAY, [(ARRAY, [(U32, [1])])]))]), UnreadableFile, "type 9"),
    ],
)
def test_what_is_no_sound_file_is_refused(
    tmp_path: Path, head: bytes, error: type[GraftwerkError], phrase: str
) -> None:
    data = b"" if "takes 204" in phrase else DATA
    with pytest.raises(error, match=phrase):
        read_gguf_header(saved(tmp_path, head, data))


def test_an_array_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    entry = text("a") + struct.pack("<IIQ", ARRAY, U32, 2**20)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry
    with pytest.raises(UnreadableFile, match="ends at"):
        read_gguf_header(saved(tmp_path, head))


def test_an_array_of_endless_strings_is_refused(tmp_path: Path) -> None:
    entry = text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**61)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry
    with pytest.raises(UnreadableFile, match="2305843009213693952 more than the 1000000 that are left"):
        read_gguf_header(saved(tmp_path, head))


def test_a_folder_with_a_file_is_described(tmp_path: Path) -> None:
    saved(tmp_path, header())
    found = describe_folder(tmp_path, "model")
    assert (found.kind, found.problems, found.parameters, found.vocabulary_size) == ("gguf", [], 256, 3)
    assert found.dtypes == ["float32", "q8_0"]
    assert found.architecture == {
        "name": "llama", "file_type": 7, "tensors": 2, "block_count": 3, "rope.freq_base": 500.0,
    }  # fmt: skip


def test_a_damaged_file_is_a_problem_of_the_folder_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(header()[:50])
    found = describe_folder(tmp_path, "model")
    assert found.kind == "gguf"
    assert "ends at 50 bytes" in found.problems[0]
