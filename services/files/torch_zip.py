"""Tensors of a file in the format of `torch.save`, described without torch and without running its pickle.

Format: an uncompressed zip archive; `<root>/data.pkl` is a pickle that names storages, `<root>/data/<key>`
holds each storage's bytes (torch/serialization.py). The pickle is read by an unpickler that knows a dozen names, all of
them placeholders of ours; any other name is refused, and the message says what it would have called.
"""

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.errors import UnreadableFile, UnsafePickle, UnsupportedFormat
from services.files.tensors import DTYPE_SIZES, TensorHeader, contiguous_strides

PICKLE_LIMIT_BYTES = 8 * 2**20
"""Largest pickle. That of a 70B checkpoint takes well under a megabyte."""

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of files of torch before 1.6 (and of `_use_new_zipfile_serialization=False`)."""

STORAGE_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip


DIMENSIONS_LIMIT = 8
"""Largest number of dimensions. No weight has more than two."""

ARCHIVE_FAULTS = (
    zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError, ValueError, OverflowError,
)  # fmt: skip
"""Errors that zipfile raises on damaged archives."""


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _PickledTensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: object, offset: int, shape: object, strides: object, *_: object
) -> _PickledTensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise pickle.UnpicklingError("a tensor is described without storage, shape or strides")
    numbers = (offset, *shape, *strides)
    if any(not isinstance(n, int) or not 0 <= n < 2**63 for n in numbers) or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor's offset, shape or strides are not natural numbers")
    if len(shape) > DIMENSIONS_LIMIT:
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} dimensions")
    return _PickledTensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that knows tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickle(
                f"the pickle would call {module}.{name}, which is not a tensor; it was not run.",
                "Load the file where you trust it and save its tensors as safetensors.",
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("a storage is named in an unknown way")
        kind, key = pid[1], pid[2]
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage has no known dtype or no name")
        return _Storage(key, kind.dtype)


def read_torch_header(path: Path) -> dict[str, TensorHeader]:
    """Returns the tensors of a `.pth` or `.bin` file by name, in the file's order.

    Raises:
        UnreadableFile: The file is truncated or damaged.
        UnsafePickle: The pickle names something other than tensors.
        UnsupportedFormat: The file is of torch before 1.6, or does not hold a plain mapping of names to tensors.
    """
    _refuse_legacy(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except (*ARCHIVE_FAULTS, OSError) as error:  # a damaged directory makes zipfile seek to nowhere
        raise UnreadableFile(
            f"{path.name} has {path.stat().st_size} bytes and no valid zip directory at its end ({error}): "
            "it is truncated or was not written by torch.save.",
            "Fetch the file again and compare its digest with the publisher's.",
        ) from error


def _refuse_legacy(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head == LEGACY_MAGIC:
        raise UnsupportedFormat(
            f"{path.name} is in the pickle format of torch before 1.6, whose tensors cannot be found "
            "without running it.",
            "Rewrite it once where you trust it: torch.save(torch.load(f, weights_only=True), f).",
        )


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, TensorHeader]:
    pickles = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnsupportedFormat(
            f"{path.name} is a zip archive without torch's data.pkl.", "Import it as an archive instead."
        )
    root = pickles[0].removesuffix("data.pkl")
    _check_byte_order(path, archive, root)
    state = _unpickle(path, archive, pickles[0])
    with path.open("rb") as file:
        offsets: dict[str, tuple[int, int]] = {}
        return {
            name: _locate(path, file, archive, root, offsets, name, tensor)
            for name, tensor in _named_tensors(path, state)
        }


def _check_byte_order(path: Path, archive: zipfile.ZipFile, root: str) -> None:
    name = f"{root}byteorder"
    if name not in archive.namelist():
        return
    with archive.open(name) as file:
        order = file.read(16).strip()
    if order != b"little":
        raise UnsupportedFormat(
            f"{path.name} holds big-endian tensors.", "Save it on a little-endian machine."
        )


def _unpickle(path: Path, archive: zipfile.ZipFile, member: str) -> object:
    if archive.getinfo(member).file_size > PICKLE_LIMIT_BYTES:
        raise UnreadableFile(f"{path.name}: its data.pkl is larger than {PICKLE_LIMIT_BYTES} bytes.")
    with archive.open(member) as file:
        data = file.read()
    try:
        _check_memo(data)
        return _TensorUnpickler(io.BytesIO(data)).load()
    except UnsafePickle as error:
        raise UnsafePickle(f"{path.name}: {error.message}", error.hint) from None
    except (
        pickle.UnpicklingError, TypeError, AttributeError, ValueError, LookupError, EOFError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise UnreadableFile(f"{path.name}: its pickle is damaged ({error}).", "Fetch it again.") from error


def _check_memo(data: bytes) -> None:
    """Checks before unpickling that lengths lie within the data and that no memo number makes the unpickler reserve gigabytes."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= len(data):
            raise pickle.UnpicklingError(f"memo number {argument} in {len(data)} bytes")


def _named_tensors(path: Path, state: object) -> list[tuple[str, _PickledTensor]]:
    if isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, _PickledTensor) for name, tensor in state.items()
    ):
        return list(state.items())
    raise UnsupportedFormat(
        f"{path.name} does not hold a plain mapping of names to tensors (a {type(state).__name__} with other values).",
        "Save the model's state dict alone: torch.save(model.state_dict(), file).",
    )


def _locate(
    path: Path,
    file: Any,
    archive: zipfile.ZipFile,
    root: str,
    offsets: dict[str, tuple[int, int]],
    name: str,
    tensor: _PickledTensor,
) -> TensorHeader:
    key = tensor.storage.key
    if key not in offsets:
        offsets[key] = _storage_place(path, file, archive, f"{root}data/{key}")
    start, size_bytes = offsets[key]
    item = DTYPE_SIZES[tensor.storage.dtype]
    empty = 0 in tensor.shape
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    needed = 0 if empty else (tensor.offset + last + 1) * item
    if needed > size_bytes:
        raise UnreadableFile(
            f"{path.name}: tensor {name!r} needs {needed} bytes of storage {key}, which has {size_bytes}.",
            "The file is damaged: fetch it again.",
        )
    plain = empty or _is_contiguous(tensor)
    return TensorHeader(
        name, tensor.storage.dtype, tensor.shape, path, start + tensor.offset * item,
        None if plain else tensor.strides,
    )  # fmt: skip


def _is_contiguous(tensor: _PickledTensor) -> bool:
    expected = contiguous_strides(tensor.shape)
    return all(
        size == 1 or step == wanted
        for size, step, wanted in zip(tensor.shape, tensor.strides, expected, strict=True)
    )


def _storage_place(path: Path, file: Any, archive: zipfile.ZipFile, member: str) -> tuple[int, int]:
    """Returns offset and size in bytes of a stored member's data.

    It begins after the local header, whose name and extra field have lengths of their own (APPNOTE.TXT 4.3.7).
    """
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise UnreadableFile(f"{path.name}: storage {member} is missing.", "Fetch the file again.") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedFormat(
            f"{path.name}: storage {member} is compressed, which torch.save never does.",
            "Save the state dict again with torch.save.",
        )
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UnreadableFile(f"{path.name}: storage {member} has no local header.", "Fetch the file again.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.file_size > path.stat().st_size:
        raise UnreadableFile(f"{path.name} ends inside storage {member}: it is truncated.", "Fetch it again.")
    return start, int(info.file_size)
