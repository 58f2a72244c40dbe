"""Files as `torch.save` writes them, made without torch: opcode by opcode, zeros as values.

Format: torch/serialization.py (`_save`) and the opcodes of Python's `pickletools`.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping

STORAGES = {"F16": ("HalfStorage", 2), "F32": ("FloatStorage", 4), "BF16": ("BFloat16Storage", 2)}


def torch_file(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> bytes:
    """A state dict of zeros."""
    members = {"data.pkl": state_pickle(shapes, dtype), "byteorder": b"little"}
    for number, shape in enumerate(shapes.values()):
        members[f"data/{number}"] = bytes(math.prod(shape) * STORAGES[dtype][1])
    return torch_archive({**members, "version": b"3\n"})


def torch_archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive around a pickle and its storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def state_pickle(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> bytes:
    """`OrderedDict`-free: a plain dict of names and tensors, as a state dict that was filtered is saved."""
    items = b"".join(
        _text(name) + tensor(str(number), shape, dtype=dtype)
        for number, (name, shape) in enumerate(shapes.items())
    )
    return b"\x80\x02}(" + items + b"u."


def tensor(
    key: str,
    shape: tuple[int, ...],
    *,
    dtype: str = "F16",
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`."""
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))] if strides is None else list(strides)
    storage = b"(" + _text("storage") + b"ctorch\n" + STORAGES[dtype][0].encode() + b"\n" + _text(key)
    storage += _text("cpu") + _number(math.prod(shape)) + b"tQ"
    sizes = b"(" + b"".join(map(_number, shape)) + b"t" + b"(" + b"".join(map(_number, steps)) + b"t"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(offset) + sizes + rest + b"tR"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes((value.bit_length() + 8) // 8, "little")
    return b"\x8b" + struct.pack("<i", len(data)) + data
