"""Headers of tensor files, whole, cut short and damaged: what cannot be read is refused, and nothing else happens."""

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import (
    ConfigMismatch,
    GraftwerkError,
    IncompleteCheckpoint,
    ShapeMismatch,
    UnknownTensor,
    UnreadableFile,
    UnsafePickle,
    UnsupportedFormat,
)
from services.files.json_file import read_json
from services.files.safetensors_header import read_safetensors_header
from services.files.tensors import TensorHeader
from services.files.torch_zip import read_torch_header
from services.files.weight_files import read_tensor_file
from services.models.summary import describe_folder
from tests.reference.tensor_files import (
    llama_config,
    llama_shapes,
    safetensors_file,
    write_adapter,
    write_base,
)
from tests.reference.torch_files import state_pickle, tensor, torch_archive, torch_file

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 1, 4)}
FORMATS = {"model.safetensors": safetensors_file(SHAPES), "model.bin": torch_file(SHAPES)}
FLIPS = 500


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def header_file(entries: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---- right --------------------------------------------------------------------------------------------


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


# ---- cut short and damaged ----------------------------------------------------------------------------


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
    assert outcomes >= {"read", "unreadable_file", "unsafe_pickle", "unsupported_format"}


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


# ---- safetensors --------------------------------------------------------------------------------------


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


# ---- torch --------------------------------------------------------------------------------------------


def pickled(opcodes: bytes) -> bytes:
    return torch_archive({"data.pkl": opcodes, "data/0": bytes(30)})


class Command:
    """A pickle that would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self.command,))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "was-run"
    content = pickled(pickle.dumps({"w": Command(f"touch {marker}")}, protocol))
    with pytest.raises(UnsafePickle, match="system, which is not a tensor; it was not run"):
        read_torch_header(written(tmp_path / "model.bin", content))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins\neval",
        "builtins\ngetattr",
        "torch\nload",
        "torch._utils\n_rebuild_tensor_v3",
        "collections\nCounter",
    ],
)
def test_a_name_outside_the_list_is_refused(tmp_path: Path, name: str) -> None:
    content = pickled(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(UnsafePickle, match=name.replace("\n", r"\.")):
        read_torch_header(written(tmp_path / "model.bin", content))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo number of four thousand million
        b"\x80\x02}p99999999999\n.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",  # a bytearray of four exabytes
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02(" * 5000 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02" + b"0.",
        b"\x80\x02)R.",
        b"\x80\x63.",
        b"",
    ],
)
def test_a_pickle_that_asks_for_too_much_is_refused(tmp_path: Path, opcodes: bytes) -> None:
    with pytest.raises(UnreadableFile, match="its pickle is damaged"):
        read_torch_header(written(tmp_path / "model.bin", pickled(opcodes)))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"shape": (4, 5)}, "needs 40 bytes of storage 0, which has 30"),
        ({"shape": (3, 5), "offset": 1}, "needs 32 bytes"),
        ({"shape": (3, 5), "strides": (6, 1)}, "needs 34 bytes"),
        ({"shape": (3, 5), "strides": (2**61, 1)}, "bytes of storage 0"),
        ({"shape": (2**40, 2**40), "strides": (0, 2**30)}, "bytes of storage 0"),
        ({"shape": (3, 5), "strides": (1,)}, "not natural numbers"),
        ({"shape": (2**64, 1), "strides": (0, 0)}, "not natural numbers"),
        ({"shape": (1,) * 9}, "9 dimensions"),
        ({"shape": (3, 5), "key": "1"}, "storage archive/data/1 is missing"),
        ({"shape": (3, 5), "key": "../../etc/passwd"}, "is missing"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, change: dict[str, Any], phrase: str) -> None:
    content = pickled(b"\x80\x02}(X\x01\x00\x00\x00w" + tensor(change.pop("key", "0"), **change) + b"u.")
    with pytest.raises(UnreadableFile) as caught:
        read_torch_header(written(tmp_path / "model.bin", content))
    assert phrase in caught.value.message


def test_an_endless_repetition_of_one_element_is_no_reason_to_reserve_memory(tmp_path: Path) -> None:
    """Strides of zero are allowed by torch; only the header is made, no tensor."""
    content = pickled(b"\x80\x02}(X\x01\x00\x00\x00w" + tensor("0", (2**30, 2**30), strides=(0, 0)) + b"u.")
    assert read_torch_header(written(tmp_path / "model.bin", content))["w"].strides == (0, 0)


@pytest.mark.parametrize(
    ("members", "phrase"),
    [
        ({"other.txt": b"x"}, "without torch's data.pkl"),
        ({"data.pkl": b"\x80\x02}.", "byteorder": b"big"}, "big-endian"),
        ({"data.pkl": b"\x80\x02](K\x01e."}, "not hold a plain mapping of names to tensors (a list"),
        ({"data.pkl": b"\x80\x02}K\x01K\x02s."}, "not hold a plain mapping"),
    ],
)
def test_an_archive_that_is_no_state_dict_is_refused(
    tmp_path: Path, members: dict[str, bytes], phrase: str
) -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        read_torch_header(written(tmp_path / "model.bin", torch_archive(members)))
    assert phrase in caught.value.message


def test_a_compressed_storage_is_refused(tmp_path: Path) -> None:
    content = torch_archive(
        {"data.pkl": state_pickle({"w": (3, 5)}), "data/0": bytes(30)}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UnsupportedFormat, match="is compressed"):
        read_torch_header(written(tmp_path / "model.bin", content))


# ---- JSON and folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"{'a': 1}", b"9" * 5000],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"config\.json"):
        read_json(written(tmp_path / "config.json", content))


def changed_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**llama_config(), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {key: value}
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size",
                    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings")
        for value in (0, -1, "8", [8], {"a": 1}, True, float("nan"), float("inf"), 10**40)
    ]
    + [{"rope_parameters": {"rope_theta": "x"}}],
)  # fmt: skip
def test_a_number_of_the_config_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_base(tmp_path / "base")
    changed_config(folder, **changes)
    with pytest.raises(GraftwerkError) as caught:
        read_checkpoint(folder)
    assert "config.json" in f"{caught.value.message} {caught.value.hint}"


def test_a_thousand_million_layers_are_refused_at_once(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    changed_config(folder, num_hidden_layers=10**9)
    with pytest.raises(
        IncompleteCheckpoint, match="1000000000 layers was announced; the files hold 30 tensors"
    ):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "error", "phrases"),
    [
        ({"hidden_size": 64}, ShapeMismatch, ("[101, 48]", "[101, 64]")),
        ({"vocab_size": 100}, ShapeMismatch, ("[101, 48]", "[100, 48]")),
        ({"num_key_value_heads": 8}, ShapeMismatch, ("[24, 48]", "[48, 48]")),
        ({"num_hidden_layers": 4}, IncompleteCheckpoint, ("9 of 39 tensors", "layers.3")),
        ({"num_hidden_layers": 2}, UnknownTensor, ("layers.2",)),
        ({"tie_word_embeddings": True}, ConfigMismatch, ("tie_word_embeddings", "lm_head.weight")),
        ({"model_type": "mistral"}, UnsupportedFormat, ("'mistral'", "'llama'")),
        ({"quantization_config": {"bits": 4}}, UnsupportedFormat, ("quantization_config",)),
    ],
)
def test_a_config_of_another_model_is_refused_with_both_values(
    tmp_path: Path, changes: dict[str, Any], error: type[GraftwerkError], phrases: tuple[str, ...]
) -> None:
    folder = write_base(tmp_path / "base")
    changed_config(folder, **changes)
    with pytest.raises(error) as caught:
        read_checkpoint(folder)
    for phrase in phrases:
        assert phrase in caught.value.message


def shard(folder: Path) -> dict[str, Any]:
    """The base's one file as two shards with an index."""
    shapes = dict(llama_shapes())
    names = sorted(shapes)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        content = safetensors_file({name: shapes[name] for name in names if where[name] == file})
        (folder / file).write_bytes(content)
    (folder / "model.safetensors").unlink()
    return {"weight_map": where}


@pytest.mark.parametrize(
    ("change", "error", "phrase"),
    [
        (lambda index: index["weight_map"].update({"x": "../../secret.safetensors"}), IncompleteCheckpoint, "secret"),
        (lambda index: index["weight_map"].update({"x": "/etc/passwd"}), IncompleteCheckpoint, "/etc/passwd"),
        (lambda index: index["weight_map"].update({"x": "model-00003-of-00002.safetensors"}), IncompleteCheckpoint,
         "model-00003"),
        (lambda index: index["weight_map"].update({"x": "model-00001-of-00002.safetensors"}), ConfigMismatch, "'x'"),
        (lambda index: index["weight_map"].pop("lm_head.weight"), ConfigMismatch, "lm_head.weight"),
        (lambda index: index["weight_map"].update({"x": 7}), IncompleteCheckpoint, "no weight_map"),
        (lambda index: index.pop("weight_map"), IncompleteCheckpoint, "no weight_map"),
    ],
)  # fmt: skip
def test_an_index_that_disagrees_with_its_shards_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], error: type[GraftwerkError], phrase: str
) -> None:
    folder = write_base(tmp_path / "base")
    index = shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(read_checkpoint(folder).tensors) == 30
    change(index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error) as caught:
        read_checkpoint(folder)
    assert phrase in caught.value.message


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").write_bytes(safetensors_file({}))
    with pytest.raises(IncompleteCheckpoint, match="hold no tensors"):
        read_checkpoint(folder)


def test_a_hugging_face_folder_with_the_original_below_stays_one(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(torch_file(SHAPES))
    assert read_checkpoint(folder).layout == "huggingface"
    assert describe_folder(folder, "base").kind == "huggingface"


@pytest.mark.parametrize("kind", ["base", "adapter", "original"])
def test_a_description_says_what_is_wrong_and_never_raises(tmp_path: Path, kind: str) -> None:
    """Every file in turn is cut, emptied and filled with noise."""
    random_ = random.Random(7)
    folder = {
        "base": lambda: write_base(tmp_path / "it"),
        "adapter": lambda: write_adapter(tmp_path / "it", pieces=101),
        "original": lambda: original(tmp_path / "it"),
    }[kind]()
    assert describe_folder(folder, "it").kind == {"base": "huggingface"}.get(kind, kind)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        spoiled = [
            b"",
            content[: len(content) // 2],
            random_.randbytes(300),
            b"{}",
            b"[1]",
            content[:-1] + b"\xff",
        ]
        for damage in spoiled:
            path.write_bytes(damage)
            describe_folder(folder, "it")
        path.write_bytes(content)


def original(folder: Path) -> Path:
    folder.mkdir()
    (folder / "consolidated.00.pth").write_bytes(torch_file(SHAPES))
    (folder / "params.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "name", ["layers." + "9" * 5000 + ".weight", "layers.999999.attention.wq.weight", "\ud800"]
)
def test_absurd_names_of_tensors_are_refused(tmp_path: Path, name: str) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").write_bytes(safetensors_file({**llama_shapes(), name: (2, 2)}))
    with pytest.raises(UnknownTensor):
        read_checkpoint(base)
