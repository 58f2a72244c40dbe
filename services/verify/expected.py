"""What a merge should have given, in float64 and without any rounding, and how far rounding may take it from there."""

from collections.abc import Sequence

import torch

from services.architectures.checkpoint import Checkpoint
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.merge import ScaledAdapter


def rounding(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One unit in the last place of `dtype` at each value, the smallest normal number's at least."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(values.abs().clamp(min=info.smallest_normal)))) * info.eps


def expected_rows(
    reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter], name: str, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one merged tensor in float64 without any rounding, and how far rounding may take the merge from them.

    Each step may be off by one rounding of the base's dtype at the value it reached, and the product by the float32 error
    of a sum of r terms, r * eps * sum|B||A| (Higham 2002, eq. 3.5).
    """
    source = base.tensors[name]
    dtype = TORCH_DTYPES[source.dtype]
    last = max((i for i, item in enumerate(adapters) if name in item.adapter.replaced), default=None)
    used = adapters if last is None else adapters[last:]  # what a later adapter replaces whole does not count
    whole = reader.joined(source) if last is None else reader.view(used[0].adapter.replaced[name])
    weight = whole[rows].double()
    tolerance = rounding(weight, dtype)
    for item in used:
        if name in item.adapter.rows:
            weight = _with_rows(reader, item, name, rows, weight)
        pair = item.adapter.pairs.get(name)
        if pair is not None:
            a, b = reader.view(pair.a).double(), reader.view(pair.b).double()
            left, right = (a[:, rows].T, b.T) if pair.transposed else (b[rows], a)
            scaling = pair.scaling * item.scale
            delta = left @ right * scaling
            weight = weight + delta
            tolerance = tolerance + rounding(weight, dtype) + (rounding(delta, dtype) if pair.rounded else 0)
            tolerance += (
                left.abs() @ right.abs() * abs(scaling) * (pair.rank + 2) * torch.finfo(torch.float32).eps
            )
    return weight, tolerance


def _with_rows(
    reader: TensorReader, item: ScaledAdapter, name: str, rows: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The rows of a weight, those that the adapter trained taken from it."""
    token_rows = item.adapter.rows[name]
    trained = dict(zip(token_rows.indices, reader.view(token_rows.rows).double(), strict=True))
    return torch.stack([trained.get(int(row), kept) for row, kept in zip(rows, weight, strict=True)])
