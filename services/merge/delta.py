"""The arithmetic of a merge.

`w = round(float32(w) + (float32(B) @ float32(A)) * scaling)` for each adapter in order, rounded to the base's dtype
each time: bit for bit what PEFT's `merge_and_unload` gives on a CPU when the adapters are merged one after another
(peft/tuners/lora/layer.py, Linear.get_delta_weight and merge), and what the scripts of 2023 computed. With `once` the sum stays in
float32 and is rounded at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.checkpoints.reading import TensorReader, check_finite
from services.formats.adapter import LoraPair
from services.formats.tensors import TensorHeader

CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter does to one tensor: it replaces it whole, or adds a pair's product, or both in that order."""

    adapter: str
    scale: float
    pair: LoraPair | None
    replaced: TensorHeader | None


def add_changes(
    reader: TensorReader, weight: torch.Tensor, changes: Sequence[Change], *, once: bool
) -> torch.Tensor:
    """The weight after all changes, in the weight's own dtype.

    Args:
        weight: shape (out, in); not modified.
        once: round at the end only.
    """
    dtype = weight.dtype
    working = torch.promote_types(dtype, torch.float32) if once else dtype
    last = max((i for i, change in enumerate(changes) if change.replaced is not None), default=0)
    for change in changes[last:]:  # what a later adapter replaces whole does not count
        if change.replaced is not None:
            weight = reader.view(change.replaced)
            check_finite(f"{change.adapter}: {change.replaced.name}", weight)
            weight = weight.to(working)
        if change.pair is not None:
            weight = _sum(weight, pair_delta(reader, change.pair, change.scale), working)
    return weight.to(dtype)


def pair_delta(reader: TensorReader, pair: LoraPair, scale: float) -> torch.Tensor:
    """`(B @ A) * scaling` in float32, in the shape of the weight that it changes.

    Raises:
        NonFiniteTensor: A or B holds NaN or infinity.
    """
    a, b = reader.view(pair.a), reader.view(pair.b)
    for header, tensor in ((pair.a, a), (pair.b, b)):
        check_finite(header.name, tensor)
    delta = b.float() @ a.float()
    if pair.transposed:
        delta = delta.T
    return delta.mul_(pair.scaling * scale)


def _sum(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weight + delta, computed in the wider of the two dtypes and rounded to `dtype`, some rows at a time."""
    result = torch.empty(weight.shape, dtype=dtype)
    for start in range(0, weight.shape[0], CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        result[rows] = weight[rows] + delta[rows]
    return result
