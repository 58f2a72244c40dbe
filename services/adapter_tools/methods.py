"""Methods by which the changes of several adapters become one.

With the change `d_i = scaling_i B_i A_i` of each adapter and its factor `w_i`, all in float32, the combined change is

- `concatenate`, `linear`: `sum(w_i d_i)`. It has the sum of the ranks. PEFT calls it `cat` where the factors are stacked, and
  `svd` where they are computed again.
- `ties` (Yadav et al. 2023): each `d_i` keeps the share `density` of its elements that are largest in magnitude, `t_i`. The sign of an
  element is that of `sum(t_i)`, positive for 0; the result is the mean of the `w_i t_i` of this sign. PEFT: `ties_svd`.
- `dare` (Yu et al. 2023): each element of `d_i` is kept with probability `density` and then divided by it; the result is the sum
  with the factors `w_i`. PEFT: `dare_linear_svd`.

Source: peft/tuners/lora/model.py, add_weighted_adapter; peft/utils/merge_utils.py, ties, dare_linear. PEFT's `linear`, `ties` and
`dare_linear` without `svd` combine A and B apart from each other, which is another and rougher result. An element of `ties` that
equals the smallest one kept is kept too, so that the result does not depend on a sorting order.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from services.adapter_tools.blocks import Matrix
from services.checkpoints.blocks import row_slices

Method = Literal["concatenate", "linear", "ties", "dare"]

KEPT_ELEMENTS = 1 << 26
"""Elements up to which a combined change is kept in memory in float32 (256 MB) rather than computed for each pass."""

LOW_BITS = 15
"""Bits of a float32's magnitude that the second of two histograms resolves."""


@dataclass(frozen=True, slots=True)
class Change:
    """One adapter's change of a module: factors in float32, the scaling of the pair, and the adapter's factor and number."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    weight: float
    position: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def norm(self) -> float:
        """Frobenius norm of the weighted change, from the Gram matrices of its factors."""
        a, b = self.a.double(), self.b.double()
        square = float(((b.T @ b) * (a @ a.T)).sum())
        return abs(self.weight * self.scaling) * math.sqrt(max(0.0, square))

    def rows(self, rows: slice) -> torch.Tensor:
        """Returns some rows of `scaling B A`, float32."""
        return (self.b[rows] @ self.a).mul_(self.scaling)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Share of elements that `ties` and `dare` keep, and the seed and name from which `dare` draws them."""

    density: float
    seed: int
    module: str

    def generator(self, position: int) -> torch.Generator:
        """Returns the generator for the mask of one adapter, the same for every pass."""
        digest = hashlib.sha256(f"{self.seed}/{self.module}/{position}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sum_of(changes: Sequence[Change]) -> Matrix:
    """Returns the weighted sum of the changes, computed in float64."""

    def blocks() -> Iterator[torch.Tensor]:
        for rows in row_slices(*changes[0].shape):
            parts = (c.b[rows].double() @ c.a.double() * (c.weight * c.scaling) for c in changes)
            yield torch.stack(list(parts)).sum(dim=0)

    return Matrix(changes[0].shape, blocks)


def ties_of(changes: Sequence[Change], sparsity: Sparsity) -> Matrix:
    """Returns the combined change of `ties`."""
    least = [_threshold(change, sparsity.density) for change in changes]
    weights = torch.tensor([change.weight for change in changes])[:, None, None]

    def blocks() -> Iterator[torch.Tensor]:
        for rows in row_slices(*changes[0].shape):
            trimmed = torch.stack([
                torch.where(found.abs() >= smallest, found, 0.0)
                for found, smallest in ((change.rows(rows), smallest) for change, smallest in zip(changes, least, strict=True))
            ])  # fmt: skip
            sign = torch.where(trimmed.sum(dim=0) >= 0, 1.0, -1.0)
            agreeing = trimmed.sign() == sign
            total = (trimmed * weights * agreeing).sum(dim=0)
            yield (total / agreeing.sum(dim=0).clamp(min=1)).double()

    return _kept(Matrix(changes[0].shape, blocks))


def dare_of(changes: Sequence[Change], sparsity: Sparsity) -> Matrix:
    """Returns the combined change of `dare`."""

    def blocks() -> Iterator[torch.Tensor]:
        generators = [sparsity.generator(change.position) for change in changes]
        for rows in row_slices(*changes[0].shape):
            total = torch.zeros(())
            for change, generator in zip(changes, generators, strict=True):
                found = change.rows(rows)
                mask = torch.bernoulli(torch.full_like(found, sparsity.density), generator=generator)
                total = total + found * mask / sparsity.density * change.weight
            yield total.double()

    return _kept(Matrix(changes[0].shape, blocks))


SPARSE_METHODS: Mapping[str, Callable[[Sequence[Change], Sparsity], Matrix]] = {
    "ties": ties_of,
    "dare": dare_of,
}
"""Methods whose change is not of low rank."""


def _kept(matrix: Matrix) -> Matrix:
    if math.prod(matrix.shape) > KEPT_ELEMENTS:
        return matrix
    whole = torch.cat([block.float() for block in matrix.blocks()])
    return Matrix(matrix.shape, lambda: (whole[rows].double() for rows in row_slices(*matrix.shape)))


def _threshold(change: Change, density: float) -> float:
    """Returns the magnitude of the smallest element that is kept, without sorting: by two histograms of the magnitudes' bits.

    Magnitudes in float32 have the order of their bits as integers (IEEE 754).
    """
    count = int(density * math.prod(change.shape))
    if density >= 1 or count == 0:
        return 0.0 if density >= 1 else math.inf
    high, count = _bin_of(_bits(change), LOW_BITS, lambda bits: bits >> LOW_BITS, count)
    low, _ = _bin_of(
        _bits(change), 0, lambda bits: bits[bits >> LOW_BITS == high] & ((1 << LOW_BITS) - 1), count
    )
    return float(torch.tensor(high << LOW_BITS | low, dtype=torch.int32).view(torch.float32))


def _bits(change: Change) -> Iterator[torch.Tensor]:
    for rows in row_slices(*change.shape):
        yield change.rows(rows).abs_().view(-1).view(torch.int32)


def _bin_of(
    blocks: Iterator[torch.Tensor], shift: int, select: Callable[[torch.Tensor], torch.Tensor], count: int
) -> tuple[int, int]:
    """Returns the bin that holds the element of this rank from the top, and its rank within the bin."""
    size = 1 << (31 - LOW_BITS if shift else LOW_BITS)
    counts = torch.zeros(size, dtype=torch.long)
    for bits in blocks:
        counts += torch.bincount(select(bits), minlength=size)
    above = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(above, count))
    return size - 1 - at, count - (int(above[at - 1]) if at else 0)
