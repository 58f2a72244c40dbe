"""Best approximation of a matrix by a product of rank r: the largest r singular values and their vectors (Eckart and Young 1936).

A matrix with at most EXACT_SIZE rows or columns is decomposed by LAPACK in float64. A larger one is approximated by subspace
iteration with Rayleigh-Ritz projection from a fixed random start, which reads the matrix once per step and holds
only factors (Halko, Martinsson, Tropp 2011, "Finding structure with randomness", algorithms 4.4 and 5.1). The result is the same each
time; its error is measured, not assumed.

The factors are balanced, B = U sqrt(S) and A = sqrt(S) V^T: both are as large as the root of the singular values, so that
neither overflows nor vanishes where they are stored in float16 later. The largest element of each column of B is positive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from services.adapter_tools.blocks import Matrix

EXACT_SIZE = 512
"""Rows or columns up to which LAPACK decomposes the whole matrix."""

OVERSAMPLING = 16
"""Least number of directions that the iteration follows in addition to the rank; half of the rank, if that is more."""

MAX_STEPS = 40
"""Largest number of steps of the iteration."""

GAIN = 1e-7
"""Share of the matrix's energy below which a step's gain ends the iteration."""

START_SEED = 0
"""Seed of the start: one start for every matrix, so that the same matrix gives the same factors."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Knowledge about a matrix: its largest singular values, largest first, and the sum of the squares of all of them.

    `size` is the norm of the summands of a sum, to which the rounding of its factors is relative.
    """

    singular: Sequence[float] = ()
    energy: float = 0.0
    size: float = 0.0

    def error(self, rank: int) -> float:
        """Returns the relative Frobenius error of the best product of a rank among the known singular values."""
        kept = sum(value**2 for value in self.singular[:rank])
        return math.sqrt(max(0.0, self.energy - kept) / self.energy) if self.energy > 0 else 0.0

    def rank_for(self, error: float) -> int:
        """Returns the smallest rank that can have this relative error; beyond the known singular values a lower bound."""
        rest = self.energy * (1 - error**2)
        for rank, value in enumerate(self.singular):
            if rest <= 0:
                return rank
            rest -= value**2
        last = self.singular[-1] if self.singular else 0.0
        return len(self.singular) + (math.ceil(rest / last**2) if rest > 0 and last > 0 else 0)


EXACT = Spectrum()
"""Spectrum of a product that is the matrix itself: it has no error."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Factors of a product, and the spectrum of the matrix that it approximates.

    Attributes:
        a: Float32 of shape (r, columns).
        b: Float32 of shape (rows, r).
    """

    a: torch.Tensor
    b: torch.Tensor
    spectrum: Spectrum = EXACT

    def summed(self, size: float) -> "Factors":
        """Returns the factors of a matrix that is a sum, with the norm of its summands."""
        return replace(self, spectrum=replace(self.spectrum, size=size))


def factorize(matrix: Matrix, rank: int) -> Factors:
    """Returns the best product of a rank for a matrix; a smaller matrix gives factors that are filled up with zeros.

    Peak memory: blocks and a few times (rows + columns) x (rank + OVERSAMPLING) values of float64; for matrices of up to EXACT_SIZE
    rows or columns the matrix.
    """
    if min(matrix.shape) <= max(EXACT_SIZE, rank + OVERSAMPLING):
        left, singular, right = torch.linalg.svd(matrix.whole(), full_matrices=False)
        return _factors(left, singular, right, rank, float(singular.square().sum()))
    return _iterated(matrix, rank)


def factorize_product(b: torch.Tensor, a: torch.Tensor, rank: int) -> Factors:
    """Returns the best product of a rank for B @ A, exactly and without computing the product: two QR and one small SVD.

    Args:
        b: Shape (rows, k).
        a: Shape (k, columns).
    """
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    inner, singular, outer = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _factors(left @ inner, singular, outer @ right.T, rank, float(singular.square().sum()))


def _factors(
    left: torch.Tensor, singular: torch.Tensor, right: torch.Tensor, rank: int, energy: float
) -> Factors:
    kept = min(rank, len(singular))
    roots = singular[:kept].sqrt()
    b, a = left[:, :kept] * roots, roots[:, None] * right[:kept]
    at = b.abs().argmax(dim=0)
    signs = torch.where(b[at, torch.arange(kept)] < 0, -1.0, 1.0)
    filled_b, filled_a = torch.zeros(b.shape[0], rank), torch.zeros(rank, a.shape[1])
    filled_b[:, :kept], filled_a[:kept] = b * signs, a * signs[:, None]
    return Factors(filled_a, filled_b, Spectrum(singular.tolist(), energy))


def _iterated(matrix: Matrix, rank: int) -> Factors:
    size = min(rank + max(OVERSAMPLING, rank // 2), *matrix.shape)
    generator = torch.Generator().manual_seed(START_SEED)
    returned = torch.randn(matrix.shape[1], size, generator=generator, dtype=torch.float64)
    captured = -1.0
    for _ in range(MAX_STEPS):
        subspace = torch.linalg.qr(returned).Q
        image, returned, energy = _step(matrix, subspace)
        left, singular, turned = torch.linalg.svd(image, full_matrices=False)
        found = float(singular[:rank].square().sum())
        if found - captured <= GAIN * energy:
            break
        captured = found
    return _factors(left, singular, turned @ subspace.T, rank, energy)


def _step(matrix: Matrix, subspace: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns M X, M^T M X and the sum of squares of M, in one pass over its blocks."""
    images, returned, energy = [], torch.zeros_like(subspace), 0.0
    for block in matrix.blocks():
        image = block @ subspace
        returned += block.T @ image
        energy += float(block.square().sum())
        images.append(image)
    return torch.cat(images), returned, energy
