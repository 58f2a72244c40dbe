"""Tensors of a file in the format of `torch.save`, described without torch and without running its pickle.

Format: an uncompressed zip archive; `<root>/data.pkl` is a pickle that names storages, `<root>/data/<key>`
holds each storage's bytes (torch/serialization.py). The pickle is interpreted, not run (`services/files/torch_pickle.py`): any name
that is not one of a tensor is refused, and the message says what it would have called.
"""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import IO

from services.errors import UnreadableFile, UnsafePickle, UnsupportedFormat
from services.files.regular_file import open_regular
from services.files.tensors import DTYPE_SIZES, TensorHeader, check_name, contiguous_strides
from services.files.torch_pickle import NotAStateDict, PickledTensor, read_state
from services.files.zip_archive import ARCHIVE_FAULTS, open_zip

PICKLE_LIMIT_BYTES = 20 * 2**20
"""Largest pickle. That of 100,000 tensors takes 15 megabytes, that of a 70B checkpoint well under one."""

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of files of torch before 1.6 (and of `_use_new_zipfile_serialization=False`)."""


def read_torch_header(path: Path) -> dict[str, TensorHeader]:
    """Returns the tensors of a `.pth` or `.bin` file by name, in the file's order.

    Raises:
        UnreadableFile: The file is truncated or damaged.
        UnsafePickle: The pickle names something other than tensors.
        UnsupportedFormat: The file is of torch before 1.6, or does not hold a plain mapping of names to tensors.
    """
    _refuse_legacy(path)
    try:
        with open_zip(path) as archive:
            return _read_archive(path, archive)
    except (*ARCHIVE_FAULTS, OSError) as error:  # a damaged directory makes zipfile seek to nowhere
        raise UnreadableFile(
            f"{path.name} has {path.stat().st_size} bytes and no valid zip directory at its end ({error}): "
            "it is truncated or was not written by torch.save.",
            "Fetch the file again and compare its digest with the publisher's.",
        ) from error


def _refuse_legacy(path: Path) -> None:
    with open_regular(path) as file:
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
    with open_regular(path) as file:
        _check_byte_order(path, file, archive, root)
        state = _unpickle(path, _stored(path, file, archive, pickles[0], PICKLE_LIMIT_BYTES))
        offsets: dict[str, tuple[int, int]] = {}
        return {
            name: _locate(path, file, archive, root, offsets, name, tensor)
            for name, tensor in _named_tensors(path, state)
        }


def _check_byte_order(path: Path, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
    name = f"{root}byteorder"
    if name in archive.NameToInfo and _stored(path, file, archive, name, 16).strip() != b"little":
        raise UnsupportedFormat(
            f"{path.name} holds big-endian tensors.", "Save it on a little-endian machine."
        )


def _stored(path: Path, file: IO[bytes], archive: zipfile.ZipFile, member: str, limit_bytes: int) -> bytes:
    """Returns the content of a member that is not compressed."""
    start, size_bytes = _storage_place(path, file, archive, member)
    if size_bytes > limit_bytes:
        raise UnreadableFile(
            f"{path.name}: its {member} has {size_bytes} bytes; at most {limit_bytes} are read.",
            "Fetch it again.",
        )
    file.seek(start)
    return file.read(size_bytes)


def _unpickle(path: Path, data: bytes) -> object:
    try:
        return read_state(data)
    except UnsafePickle as error:
        raise UnsafePickle(f"{path.name}: {error.message}", error.hint) from None
    except NotAStateDict:
        raise _not_a_state_dict(path, {}) from None
    except (
        pickle.UnpicklingError, TypeError, AttributeError, ValueError, LookupError, EOFError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise UnreadableFile(f"{path.name}: its pickle is damaged ({error}).", "Fetch it again.") from error


def _named_tensors(path: Path, state: object) -> list[tuple[str, PickledTensor]]:
    if not isinstance(state, dict) or not all(isinstance(tensor, PickledTensor) for tensor in state.values()):
        raise _not_a_state_dict(path, state)
    for name in state:
        check_name(path, name)
    return list(state.items())


def _not_a_state_dict(path: Path, state: object) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"{path.name} does not hold a plain mapping of names to tensors (a {type(state).__name__} with other values).",
        "Save the model's state dict alone: torch.save(model.state_dict(), file).",
    )


def _locate(
    path: Path,
    file: IO[bytes],
    archive: zipfile.ZipFile,
    root: str,
    offsets: dict[str, tuple[int, int]],
    name: str,
    tensor: PickledTensor,
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


def _is_contiguous(tensor: PickledTensor) -> bool:
    expected = contiguous_strides(tensor.shape)
    return all(
        size == 1 or step == wanted
        for size, step, wanted in zip(tensor.shape, tensor.strides, expected, strict=True)
    )


def _storage_place(path: Path, file: IO[bytes], archive: zipfile.ZipFile, member: str) -> tuple[int, int]:
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
