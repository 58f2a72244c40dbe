"""A file as `torch.save` writes it, tensor by tensor: nothing is held in memory.

Format (torch/serialization.py, _save): an uncompressed zip archive of `<root>/data.pkl`, a pickle of protocol 2 that names
the storages, `<root>/byteorder`, one `<root>/data/<key>` a storage and `<root>/version`. Data begins at multiples of
64 bytes, padded in the local header's extra field as torch's own writer does. Every tensor has a storage of its own.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch

from services.checkpoints.ledger import TensorPlan
from services.formats.tensors import contiguous_strides

PICKLE_PROTOCOL = 2
ZIP_VERSION = b"3\n"
"""The archive version of torch 1.6 and later (caffe2/serialize/versions.h)."""

ALIGNMENT_BYTES = 64
LOCAL_HEADER_BYTES = 30
ZIP64_EXTRA_BYTES = 20
PADDING_ID = b"FB"
"""The id that torch's writer gives its padding (caffe2/serialize/inline_container.cc, getPadding)."""

ZIP64_FROM_BYTES = 2**31 - 2**20
"""Members from this size on have sizes of 64 bits in their headers."""

STORAGE_TYPES = {
    "F64": torch.DoubleStorage, "F32": torch.FloatStorage, "F16": torch.HalfStorage, "BF16": torch.BFloat16Storage,
}  # fmt: skip


class TorchFile:
    """Writes one file; a context manager. Tensors may come in any order, one at a time."""

    def __init__(self, path: Path, plans: Sequence[TensorPlan]) -> None:
        self._path = path
        self._plans = {plan.name: (str(key), plan) for key, plan in enumerate(plans)}
        self._root = path.stem

    def __enter__(self) -> Self:
        self._archive = zipfile.ZipFile(self._path, "x", zipfile.ZIP_STORED)
        self._path.chmod(0o644)  # whatever the umask: other containers read it
        self._put("data.pkl", _pickled(list(self._plans.values())))
        self._put("byteorder", b"little")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._put("version", ZIP_VERSION)
        self._archive.close()

    def open_tensor(self, name: str) -> IO[bytes]:
        """A file that takes the bytes of a tensor in row-major order; close it before the next is opened."""
        key, plan = self._plans[name]
        return self._open(f"data/{key}", plan.size_bytes)

    def _put(self, name: str, data: bytes) -> None:
        with self._open(name, len(data)) as member:
            member.write(data)

    def _open(self, name: str, size_bytes: int) -> IO[bytes]:
        member = zipfile.ZipInfo(f"{self._root}/{name}")  # of 1980: the same tensors make the same file
        member.file_size = size_bytes
        large = size_bytes >= ZIP64_FROM_BYTES
        start = self._archive.start_dir + LOCAL_HEADER_BYTES + len(member.filename.encode())
        member.extra = _padding(start + (ZIP64_EXTRA_BYTES if large else 0))
        return self._archive.open(member, "w", force_zip64=large)


def _padding(start: int) -> bytes:
    """An extra field after which data that would begin at `start` begins at a multiple of ALIGNMENT_BYTES."""
    length = -(start + 4) % ALIGNMENT_BYTES
    return PADDING_ID + struct.pack("<H", length) + b"Z" * length


def _pickled(plans: Sequence[tuple[str, TensorPlan]]) -> bytes:
    """The pickle of a plain dict of names to tensors, as torch.save makes it."""
    buffer = io.BytesIO()
    state = {plan.name: _PlannedTensor(key, plan) for key, plan in plans}
    _StoragePickler(buffer, PICKLE_PROTOCOL).dump(state)
    return buffer.getvalue()


class _PlannedStorage:
    """Stands for a storage; it is written as its name, never as itself."""

    def __init__(self, key: str, plan: TensorPlan) -> None:
        self.key = key
        self.plan = plan


class _PlannedTensor:
    """Stands for a tensor: pickled as the call that rebuilds it (torch/_utils.py, _rebuild_tensor_v2)."""

    def __init__(self, key: str, plan: TensorPlan) -> None:
        self._key = key
        self._plan = plan

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self._plan.shape
        storage = _PlannedStorage(self._key, self._plan)
        parts = (storage, 0, shape, contiguous_strides(shape), False, OrderedDict())  # type: ignore[var-annotated]
        return torch._utils._rebuild_tensor_v2, parts


class _StoragePickler(pickle.Pickler):
    """Writes a storage as torch names it: its type, key, place and count of elements."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _PlannedStorage):
            return None
        return "storage", STORAGE_TYPES[obj.plan.dtype], obj.key, "cpu", prod(obj.plan.shape)
