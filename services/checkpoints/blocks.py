"""Streams of blocks of rows: a large tensor is checked, digested and cut without being in memory whole."""

from collections.abc import Callable, Iterable, Iterator

import torch

from services.architectures.checkpoint import TensorSource
from services.checkpoints.rotary import halves_to_interleaved, interleaved_to_halves
from services.checkpoints.tensor_reader import CODES, TensorReader, check_finite, stored_values
from services.checkpoints.write_ledger import TensorPlan
from services.errors import InternalError, NonFiniteTensor

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block, unless one head has more: 4 MB in float32."""


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Yields all rows in blocks of at most BLOCK_ELEMENTS elements, or of one row."""
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def source_blocks(reader: TensorReader, source: TensorSource) -> Iterator[torch.Tensor]:
    """Yields the tensor of `reader.load` as blocks of rows in order, and releases the pages that were read.

    Ranks are joined, blocks decoded and rotary rows reordered.

    Raises:
        ConfigMismatch: The ranks hold different values of a tensor that each must have whole.
        NonFiniteTensor: The tensor holds NaN or infinity.
    """
    if source.four_bit is not None or (source.join_dim is None and len(source.parts) > 1):
        # scales that share an offset, or norms, which every rank has
        yield reader.load(source)
        return
    blocks: Iterable[torch.Tensor] = _joined(reader, source)
    if source.rotary_heads:
        head_rows = source.shape[0] // source.rotary_heads
        whole_heads = aligned_blocks(blocks, head_rows, BLOCK_ELEMENTS)
        blocks = (interleaved_to_halves(block, block.shape[0] // head_rows) for block in whole_heads)
    for block in blocks:
        try:
            check_finite(source.name, block)
        except NonFiniteTensor:
            reader.load(source)  # raises with the figures of the whole tensor
            raise
        yield block
        reader.release(source)


def _joined(reader: TensorReader, source: TensorSource) -> Iterator[torch.Tensor]:
    parts = [reader.view(part) for part in source.parts]
    columns = source.shape[-1] if len(source.shape) > 1 else 1
    if source.join_dim == 1 and len(parts) > 1:
        for rows in row_slices(source.shape[0], columns):
            yield torch.cat([part[rows] for part in parts], dim=1)
        return
    for part in parts:
        for rows in row_slices(part.shape[0], columns):
            yield stored_values(source, part[rows])


def checked_blocks(plan: TensorPlan, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yields the blocks of rows unchanged but contiguous, checked against the plan.

    Raises:
        InternalError: They do not make the planned tensor.
    """
    rows = 0
    for block in blocks:
        shape = (rows + block.shape[0], *block.shape[1:])
        if CODES[block.dtype] != plan.dtype or shape[1:] != plan.shape[1:] or shape[0] > plan.shape[0]:
            raise InternalError(
                f"{plan.name!r}: a block {list(block.shape)} {block.dtype} at row {rows} does not belong to {plan}."
            )
        yield block.contiguous()
        rows += block.shape[0]
    if rows != plan.shape[0]:
        raise InternalError(f"{plan.name!r} came with {rows} rows; planned was {plan.shape}.")


def digested_blocks(
    blocks: Iterable[torch.Tensor], update: Callable[[memoryview], None]
) -> Iterator[torch.Tensor]:
    """Yields the blocks unchanged and passes the bytes of each to `update` (of a running hash)."""
    for block in blocks:
        update(tensor_bytes(block))
        yield block


def aligned_blocks(
    blocks: Iterable[torch.Tensor], multiple: int, max_elements: int = BLOCK_ELEMENTS
) -> Iterator[torch.Tensor]:
    """Yields the same rows in blocks of whole multiples (of a head's rows, for example), of at most about `max_elements`.

    The last block may hold fewer rows than a multiple.
    """
    rest: torch.Tensor | None = None
    for block in blocks:
        joined = block if rest is None else torch.cat([rest, block])
        whole = joined.shape[0] - joined.shape[0] % multiple
        row = max(1, joined.numel() // max(1, joined.shape[0]))
        step = max(1, max_elements // row // multiple) * multiple
        for start in range(0, whole, step):
            yield joined[start : min(start + step, whole)]
        rest = joined[whole:] if whole < joined.shape[0] else None
    if rest is not None:
        yield rest


def halves_to_interleaved_blocks(
    blocks: Iterable[torch.Tensor], heads: int, rows: int
) -> Iterator[torch.Tensor]:
    """Yields `halves_to_interleaved` of a weight of `rows` rows that comes as blocks of rows, head by head."""
    head_rows = rows // heads
    for block in aligned_blocks(blocks, head_rows):
        yield halves_to_interleaved(block, block.shape[0] // head_rows)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a tensor in row-major order, without a copy if it is contiguous."""
    if tensor.numel() == 0:
        return memoryview(b"")
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data
