"""Memory of `extract` and `combine`, by the arithmetic of `services/adapter_tools`."""

from collections.abc import Iterable

BLOCK_BYTES = 64 * 2**20
"""Blocks of rows in float64, of both models and their difference."""

KEPT_BYTES = 256 * 2**20
"""Largest combined change that `ties` and `dare` keep in memory."""

FLOAT64 = 8

FACTOR_COPIES = 4
"""Factors in memory at once: images, their products, and the singular vectors of both sides."""


def factor_bytes(shapes: Iterable[tuple[int, int]], rank: int) -> int:
    """Returns the bytes to compute the factors of the largest of some matrices, which follow more directions than the rank."""
    directions = rank + max(16, rank // 2)
    largest = max((rows + columns for rows, columns in shapes), default=0)
    return BLOCK_BYTES + FACTOR_COPIES * FLOAT64 * directions * largest
