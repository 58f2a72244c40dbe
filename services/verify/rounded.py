"""Expected values of a merge with the roundings that a right merge has, in float32, and the bound on each row's roundings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from services.adapters.stack import merged_tensors
from services.architectures.checkpoint import Checkpoint, TensorSource
from services.checkpoints.blocks import row_slices
from services.checkpoints.readback import StoredTensor
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.merge import ScaledAdapter, changes_of
from services.merge.delta import Change, changed_blocks
from services.verify.expected import ExpectedMerge, pair_halves, used_changes, whole_weight, with_rows

LAYER_ROUNDING = 1e-5
"""Relative bound on float32's roundings in a PEFT layer: orthogonal tuners solve linear systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedMerge:
    """A base and adapters, and how the sums are rounded: `once`, or to the base's dtype after each adapter.

    `dtypes` has the dtype of each stored tensor; a tensor that is absent is not rounded to one (block encodings).
    """

    base: Checkpoint
    adapters: Sequence[ScaledAdapter] = ()
    once: bool = False
    dtypes: Mapping[str, torch.dtype]

    def source(self, name: str) -> TensorSource:
        """Returns a tensor of the base; a head that the adapters untie is its embedding."""
        return self.base.tensors.get(name) or self.base.tensors[self.base.embeddings]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a merged tensor."""
        if name not in self.base.tensors:
            return self.source(name).shape
        return merged_tensors(self.base, [item.adapter for item in self.adapters])[name][1]


def rounded_merge(merge: ExpectedMerge, once: bool, stored: Mapping[str, StoredTensor]) -> RoundedMerge:
    """Returns a merge with one way of rounding, as it is stored in these tensors."""
    dtypes = {name: TORCH_DTYPES[item.dtype] for name, item in stored.items() if not item.by_blocks}
    return RoundedMerge(base=merge.base, adapters=merge.adapters, once=once, dtypes=dtypes)


def rounded_blocks(
    reader: TensorReader, merge: RoundedMerge, name: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields a merged tensor as blocks of rows in order, each with the bound on the norm of each row's roundings."""
    changes = changes_of(merge.adapters, name)
    if any(change.layer is not None for change in changes):
        yield from _layer_blocks(reader, merge, name, changes)
        return
    whole = whole_weight(reader, merge.source(name), used_changes(changes))
    rows, *columns = merge.shape(name)
    for block in row_slices(rows, columns[0] if columns else 1):
        yield rounded_rows(reader, merge, name, torch.arange(rows)[block], whole)


def rounded_rows(
    reader: TensorReader,
    merge: RoundedMerge,
    name: str,
    rows: torch.Tensor,
    whole: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of one merged tensor in float32 (float64 for such a base), and the bound on the norm of each row's roundings.

    A rounding to a dtype changes a value v by at most eps * |v|, hence a row by at most eps times its norm; the bound is the sum
    over all roundings. A product of r terms in float32 adds at most r * eps32 * |B||A|,
    with the norms of the factors.

    Args:
        rows: Indices of the rows, int64 of shape (rows,).
        whole: The tensor that the changes start from, if it has been read already.
    """
    own = TORCH_DTYPES[merge.source(name).dtype]
    wide = torch.promote_types(own, torch.float32)
    working = wide if merge.once else own
    used = used_changes(changes_of(merge.adapters, name))
    whole = whole_weight(reader, merge.source(name), used) if whole is None else whole
    weight = whole[rows].to(own).to(wide)
    bound = row_norms(weight) * torch.finfo(own).eps * bool(used)
    for change in used:
        if change.rows is not None:
            weight = with_rows(reader, change.rows, rows, weight)
        if change.pair is not None:
            left, right = (half.to(wide) for half in pair_halves(reader, change.pair, rows))
            scaling = change.pair.scaling * change.scale
            delta = left @ right * scaling
            if change.pair.rounded and not merge.once:
                delta = delta.to(own).to(wide)
                bound += row_norms(delta) * torch.finfo(own).eps
            weight = (weight + delta).to(working).to(wide)
            bound += row_norms(weight) * torch.finfo(own).eps
            product = row_norms(left) * right.norm() * abs(scaling)
            bound += product * (change.pair.rank + 2) * torch.finfo(torch.float32).eps
    return _stored(merge, name, weight, bound)


def _stored(
    merge: RoundedMerge, name: str, weight: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows as they are stored, and the bound with that of the last rounding."""
    own = TORCH_DTYPES[merge.source(name).dtype]
    dtype = merge.dtypes.get(name, weight.dtype)
    is_rounded = not merge.once or not changes_of(merge.adapters, name)
    if is_rounded and torch.promote_types(own, dtype) == dtype:  # it holds the values as they are
        return weight, bound
    return weight.to(dtype).to(weight.dtype), bound + row_norms(weight) * torch.finfo(dtype).eps


def _layer_blocks(
    reader: TensorReader, merge: RoundedMerge, name: str, changes: Sequence[Change]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the blocks of a tensor that PEFT's layer merges."""
    before = reader.load(merge.source(name))
    after = torch.cat(list(changed_blocks(reader, before, changes, once=merge.once)))
    wide = torch.promote_types(before.dtype, torch.float32)
    reached = torch.maximum(row_norms(before.to(wide)), row_norms(after.to(wide)))
    bound = reached * 2 * len(changes) * torch.finfo(before.dtype).eps
    bound += LAYER_ROUNDING * float(after.abs().max()) * after.shape[-1] ** 0.5
    for rows in row_slices(*after.shape):
        yield _stored(merge, name, after[rows].to(wide), bound[rows])


def row_norms(rows: torch.Tensor) -> torch.Tensor:
    """Returns the norm of each row, float64 of shape (rows,)."""
    norms: torch.Tensor = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)
    return norms.double()
