"""Test of each adapter's scale: the differences between found and expected values must not follow the adapter's change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LARGEST_SHARE = 0.002
"""Share of an adapter's change that may be missing or too much."""

SIGNIFICANCE = 8.0
"""Differences with independent random signs exceed this many times their standard deviation once in 10^13 (Hoeffding 1963)."""


@dataclass(slots=True)
class ScaleSums:
    """Sums over sampled values: of d * delta, of its square, and of delta^2; d is a difference, delta an adapter's change."""

    product: float = 0.0
    variance: float = 0.0
    size: float = 0.0

    def add(self, product: float, variance: float, size: float) -> None:
        """Adds sums of further values."""
        self.product += product
        self.variance += variance
        self.size += size

    @property
    def share(self) -> float:
        """Share of the change that is too much, negative if it is missing; 0 if that is within what chance explains.

        The differences of a right merge are those of roundings. Their signs do not depend on the adapter's change, so their
        product with it has the mean 0 and the standard deviation sqrt(sum (d * delta)^2).
        """
        if abs(self.product) <= SIGNIFICANCE * self.variance**0.5:
            return 0.0
        share = self.product / self.size
        return share if abs(share) > LARGEST_SHARE else 0.0


class ScaleTest:
    """Sums of each adapter for each way of rounding that a merge may have (`once` or not)."""

    def __init__(self) -> None:
        self._sums: dict[tuple[bool, str], ScaleSums] = {}
        self._squares: dict[bool, float] = {}

    def observe(
        self, once: bool, difference: torch.Tensor, deltas: Sequence[tuple[str, torch.Tensor]]
    ) -> None:
        """Adds values of one tensor: the differences for one way of rounding, and the change by each adapter."""
        self._squares[once] = self._squares.get(once, 0.0) + float(difference.square().sum())
        for adapter, delta in deltas:
            product = difference * delta
            sums = self._sums.setdefault((once, adapter), ScaleSums())
            sums.add(float(product.sum()), float(product.square().sum()), float(delta.square().sum()))

    def add(self, other: "ScaleTest") -> None:
        """Adds the sums of another tensor."""
        for once, square in other._squares.items():
            self._squares[once] = self._squares.get(once, 0.0) + square
        for key, sums in other._sums.items():
            self._sums.setdefault(key, ScaleSums()).add(sums.product, sums.variance, sums.size)

    @property
    def once(self) -> bool:
        """The way of rounding that explains the values best."""
        return min(self._squares, key=lambda once: self._squares[once], default=False)

    def shares(self) -> dict[str, float]:
        """Returns the share of each adapter's change that is too much, without those that chance explains."""
        once = self.once
        found = {adapter: sums.share for (way, adapter), sums in self._sums.items() if way == once}
        return {adapter: share for adapter, share in found.items() if share}
