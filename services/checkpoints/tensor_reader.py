"""Reader of tensors by offset from mapped files: no pickle is run, and only requested tensors are loaded."""

import mmap
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from services.architectures.checkpoint import TensorSource
from services.checkpoints.block_decoding import decode
from services.checkpoints.four_bit import dequantized, rounded
from services.checkpoints.rotary import interleaved_to_halves
from services.errors import ConfigMismatch, NonFiniteTensor
from services.files.tensors import TensorHeader

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}

EXPONENTS = {
    torch.float16: (torch.int16, 0x7C00), torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000),
}  # fmt: skip
"""Integer dtype of the same width and bits of a full exponent, which only NaN and infinity have (IEEE 754), by dtype."""

CHUNK_ELEMENTS = 1 << 20


class TensorReader:
    """Context manager that reads tensors from files and keeps these mapped until it is closed.

    A tensor that needs no joining is a view of the file's pages: it costs no memory of its own and must not be
    used after closing. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._maps.clear()  # tensors may still view the pages: the last one that is freed unmaps them

    def _mapped(self, path: Path) -> mmap.mmap:
        with self._lock:
            if path not in self._maps:
                with path.open("rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return self._maps[path]

    def view(self, header: TensorHeader) -> torch.Tensor:
        """Returns the tensor that a header describes, as a view of its file."""
        dtype = TORCH_DTYPES[header.dtype]
        if header.elements == 0:
            return torch.empty(header.shape, dtype=dtype)
        extent = header.elements
        if header.strides is not None:
            extent = 1 + sum((n - 1) * step for n, step in zip(header.shape, header.strides, strict=True))
        flat = torch.frombuffer(self._mapped(header.path), dtype=dtype, count=extent, offset=header.offset)
        return (
            flat.view(header.shape)
            if header.strides is None
            else flat.as_strided(header.shape, header.strides)
        )

    def load(self, source: TensorSource) -> torch.Tensor:
        """Returns a tensor of a checkpoint in its Hugging Face form: ranks joined, rotary rows reordered.

        Raises:
            ConfigMismatch: The ranks hold different values of a tensor that each must have whole.
            NonFiniteTensor: The tensor holds NaN or infinity.
        """
        tensor = self.joined(source)
        check_finite(source.name, tensor)
        return tensor

    def joined(self, source: TensorSource) -> torch.Tensor:
        """Returns the tensor of `load` without checking its values; a view of the file, not read yet, if it needs no joining.

        Raises:
            ConfigMismatch: The ranks hold different values of a tensor that each must have whole.
            UnsupportedOption: It is rounded to 4 bits, and bitsandbytes is not installed.
        """
        if source.four_bit is not None and source.four_bit.stored:
            return dequantized(self.view, source.four_bit)
        parts = [self.view(part) for part in source.parts]
        if source.join_dim is None:
            _check_replicated(source, parts)
            tensor = stored_values(source, parts[0])
        else:
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=source.join_dim)
        if source.rotary_heads:
            tensor = interleaved_to_halves(tensor, source.rotary_heads)
        return tensor if source.four_bit is None else rounded(tensor, source.four_bit)

    def release(self, source: TensorSource) -> None:
        """Releases the pages of a tensor to the kernel, so that resident memory stays flat."""
        for part in source.parts:
            self.release_header(part)

    def release_header(self, header: TensorHeader) -> None:
        """Releases the pages of one tensor of a file."""
        start = header.offset - header.offset % mmap.PAGESIZE
        length = header.offset + header.size_bytes - start
        mapped = self._mapped(header.path)
        if length > 0 and start + length <= len(mapped):
            mapped.madvise(mmap.MADV_DONTNEED, start, length)


def stored_values(source: TensorSource, rows: torch.Tensor) -> torch.Tensor:
    """Returns rows of a tensor's only part with its encoding and its offset undone, in float32 if it has one of these."""
    if source.encoding and rows.dtype == torch.uint8:
        rows = decode(rows, source.encoding).reshape(-1, *source.shape[1:])
    return rows.float() - source.offset if source.offset else rows


def _check_replicated(source: TensorSource, parts: list[torch.Tensor]) -> None:
    for rank, part in enumerate(parts[1:], start=1):
        if not torch.equal(part, parts[0]):
            raise ConfigMismatch(
                f"{source.parts[0].name!r} differs between rank 0 and rank {rank}; every rank must hold the same values.",
                "The files are of different checkpoints or one is damaged: fetch them again.",
            )


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuses NaN and infinity, by the bits of the exponent: one pass over integers, a chunk at a time.

    Raises:
        NonFiniteTensor: The tensor holds such values; the message has their number.
    """
    if tensor.dtype not in EXPONENTS or tensor.numel() == 0:
        return
    width, exponent = EXPONENTS[tensor.dtype]
    bits = tensor.contiguous().view(-1).view(width)
    for start in range(0, bits.numel(), CHUNK_ELEMENTS):
        chunk = bits[start : start + CHUNK_ELEMENTS]
        if int(chunk.bitwise_and(exponent).max()) == exponent:
            count = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteTensor(
                f"{name!r} holds {count} values of NaN or infinity among {tensor.numel()}.",
                "The weights are damaged, or the requested dtype cannot hold them: nothing was written.",
            )
