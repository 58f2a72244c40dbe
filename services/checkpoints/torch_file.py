"""Writer of a file in the format of `torch.save`, tensor by tensor: nothing is held in memory.

Format (torch/serialization.py, _save): an uncompressed zip archive of `<root>/data.pkl`, a pickle of protocol 2 that names
the storages, `<root>/byteorder`, one `<root>/data/<key>` per storage and `<root>/version`. Data begins at multiples of
64 bytes, padded in the local header's extra field as torch's own writer does. Every tensor has a storage of its own.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch

from services.checkpoints.write_ledger import TensorPlan
from services.files.tensors import contiguous_strides

PICKLE_PROTOCOL = 2
ZIP_VERSION = b"3\n"
"""Archive version of torch 1.6 and later (caffe2/serialize/versions.h)."""

ALIGNMENT_BYTES = 64
LOCAL_HEADER_BYTES = 30
ZIP64_EXTRA_BYTES = 20
PADDING_ID = b"FB"
"""Id of the extra field that torch's writer pads with (caffe2/serialize/inline_container.cc, getPadding)."""

ZIP64_FROM_BYTES = 2**31 - 2**20
"""Smallest member whose header has sizes of 64 bits."""

FILE_MODE = 0o600
"""Mode of the members that zipfile writes itself."""

READ_BYTES = 16 * 2**20

STORAGE_TYPES = {
    "F64": torch.DoubleStorage, "F32": torch.FloatStorage, "F16": torch.HalfStorage, "BF16": torch.BFloat16Storage,
}  # fmt: skip


class TorchFile:
    """Context manager that writes one file. Tensors may come in any order, one at a time.

    The content that a killed run left in the file stays until it is overwritten: `reuse_tensor` takes over its tensors,
    before any other is written and in the order in which they were written then.
    """

    def __init__(self, path: Path, plans: Sequence[TensorPlan]) -> None:
        self._path = path
        self._plans = {plan.name: (str(key), plan) for key, plan in enumerate(plans)}
        self._root = path.stem

    def __enter__(self) -> Self:
        self._path.touch()
        self._path.chmod(0o644)  # regardless of the umask: other containers read it
        self._file = self._path.open("r+b")
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._put("data.pkl", _pickled(list(self._plans.values())))
        self._put("byteorder", b"little")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._put("version", ZIP_VERSION)
            self._archive.close()
            self._file.truncate(self._file.tell())

    def open_tensor(self, name: str) -> IO[bytes]:
        """Returns a file that takes the bytes of a tensor in row-major order; close it before the next is opened."""
        key, plan = self._plans[name]
        return self._open(f"data/{key}", plan.size_bytes)

    def close_tensor(self, name: str) -> int:
        """Flushes a tensor whose file was closed; returns the CRC-32 of its bytes."""
        self._file.flush()
        return self._archive.getinfo(f"{self._root}/data/{self._plans[name][0]}").CRC

    def holds_next(self, name: str, crc: int) -> bool:
        """Returns True if a killed run wrote this tensor at the current position, by the CRC-32 of its bytes."""
        member = self._next_member(name)
        self._file.seek(self._archive.start_dir + _header_bytes(member))
        found, left = 0, member.file_size
        while chunk := self._file.read(min(READ_BYTES, left)):
            found, left = zlib.crc32(chunk, found), left - len(chunk)
        return left == 0 and found == crc

    def reuse_tensor(self, name: str, crc: int) -> None:
        """Keeps the tensor that `holds_next` has found, and moves behind it."""
        member = self._next_member(name)
        member.CRC, member.compress_size, member.external_attr = crc, member.file_size, FILE_MODE << 16
        member.header_offset = self._archive.start_dir
        self._file.seek(member.header_offset)
        self._file.write(member.FileHeader(_is_large(member)))
        self._archive.start_dir = self._file.tell() + member.file_size
        self._archive.filelist.append(member)
        self._archive.NameToInfo[member.filename] = member

    def _next_member(self, name: str) -> zipfile.ZipInfo:
        key, plan = self._plans[name]
        return self._member(f"data/{key}", plan.size_bytes)

    def _put(self, name: str, data: bytes) -> None:
        with self._open(name, len(data)) as member:
            member.write(data)

    def _open(self, name: str, size_bytes: int) -> IO[bytes]:
        member = self._member(name, size_bytes)
        return self._archive.open(member, "w", force_zip64=_is_large(member))

    def _member(self, name: str, size_bytes: int) -> zipfile.ZipInfo:
        member = zipfile.ZipInfo(
            f"{self._root}/{name}"
        )  # dated 1980, so that the same tensors make the same file
        member.file_size = size_bytes
        member.extra = _padding(self._archive.start_dir + _header_bytes(member))
        return member


def _header_bytes(member: zipfile.ZipInfo) -> int:
    zip64 = ZIP64_EXTRA_BYTES if _is_large(member) else 0
    return LOCAL_HEADER_BYTES + len(member.filename.encode()) + zip64 + len(member.extra)


def _is_large(member: zipfile.ZipInfo) -> bool:
    return member.file_size >= ZIP64_FROM_BYTES


def _padding(start: int) -> bytes:
    """Returns an extra field that moves data from `start` to a multiple of ALIGNMENT_BYTES."""
    length = -(start + 4) % ALIGNMENT_BYTES
    return PADDING_ID + struct.pack("<H", length) + b"Z" * length


def _pickled(plans: Sequence[tuple[str, TensorPlan]]) -> bytes:
    """Returns the pickle of a plain dict of names to tensors, as torch.save makes it."""
    buffer = io.BytesIO()
    state = {plan.name: _PlannedTensor(key, plan) for key, plan in plans}
    _StoragePickler(buffer, PICKLE_PROTOCOL).dump(state)
    return buffer.getvalue()


class _PlannedStorage:
    """Placeholder of a storage, which is pickled by its name."""

    def __init__(self, key: str, plan: TensorPlan) -> None:
        self.key = key
        self.plan = plan


class _PlannedTensor:
    """Placeholder of a tensor, pickled as the call that rebuilds it (torch/_utils.py, _rebuild_tensor_v2)."""

    def __init__(self, key: str, plan: TensorPlan) -> None:
        self._key = key
        self._plan = plan

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self._plan.shape
        storage = _PlannedStorage(self._key, self._plan)
        parts = (storage, 0, shape, contiguous_strides(shape), False, OrderedDict())  # type: ignore[var-annotated]
        return torch._utils._rebuild_tensor_v2, parts


class _StoragePickler(pickle.Pickler):
    """Pickler that writes a storage as torch names it: its type, key, device and count of elements."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _PlannedStorage):
            return None
        return "storage", STORAGE_TYPES[obj.plan.dtype], obj.key, "cpu", prod(obj.plan.shape)
