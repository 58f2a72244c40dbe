"""Matrices that come as blocks of rows and are never in memory whole, and the measure of an error between two of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as a function: each call of `blocks` computes its blocks of rows again, in order and with the same bits.

    Attributes:
        shape: Rows and columns.
        blocks: Gives the blocks, float64 of shape (rows of the block, columns).
    """

    shape: tuple[int, int]
    blocks: Callable[[], Iterator[torch.Tensor]]

    def whole(self) -> torch.Tensor:
        """Returns all of it, for matrices that are small."""
        return torch.cat(list(self.blocks()))


@dataclass(frozen=True, slots=True)
class Deviation:
    """Frobenius norms of an expected matrix and of the deviation from it."""

    norm: float
    deviation: float

    @property
    def error(self) -> float:
        """The deviation relative to the expected matrix, 0 if both are 0."""
        return relative(self.deviation, self.norm)


def relative(deviation: float, norm: float) -> float:
    """Returns a deviation relative to a norm; of a change of 0, 1 for any deviation."""
    if norm == 0:
        return 0.0 if deviation == 0 else 1.0
    return deviation / norm


def deviation_of(expected: Matrix, a: torch.Tensor, b: torch.Tensor) -> Deviation:
    """Returns the deviation of the product B @ A from a matrix, in float64.

    Args:
        a: Shape (r, columns).
        b: Shape (rows, r).
    """
    wide, norm, deviation, start = a.double(), 0.0, 0.0, 0
    for block in expected.blocks():
        product = b[start : start + len(block)].double() @ wide
        norm += float(block.square().sum())
        deviation += float(product.sub_(block).square().sum())
        start += len(block)
    return Deviation(math.sqrt(norm), math.sqrt(deviation))


def overall(deviations: list[Deviation]) -> float:
    """Returns the relative error over several matrices together."""
    norm = math.sqrt(sum(item.norm**2 for item in deviations))
    return relative(math.sqrt(sum(item.deviation**2 for item in deviations)), norm)
