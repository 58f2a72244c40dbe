"""Headers of torch archives: pickles, storages and archives that are refused."""

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from services.errors import (
    UnreadableFile,
    UnsafePickle,
    UnsupportedFormat,
)
from services.files.torch_zip import read_torch_header
from tests.header_files import written
from tests.reference.torch_files import state_pickle, tensor, torch_archive


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
