"""Linear maps of weights that are read in blocks of rows, each cast to float32 on its own."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from services.checkpoints.blocks import row_slices


class Projection(nn.Module):
    """Linear map of float32 tensors (…, in) to (…, out), plus the products of adapters."""

    def __init__(
        self,
        product: Callable[[torch.Tensor], torch.Tensor],
        factors: Sequence[tuple[torch.Tensor, torch.Tensor, float]] = (),
        bias: torch.Tensor | None = None,
    ) -> None:
        """`factors` are A of shape (r, in), B of shape (out, r), both in any dtype, and the scale."""
        super().__init__()
        self._product = product
        self._factors = factors
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the weight's product, the factors' products and the bias."""
        out = self._product(x)
        for a, b, scale in self._factors:
            out = out + (x @ a.float().T) @ b.float().T * scale
        return out if self._bias is None else out + self._bias


def product_of(
    rows: int, blocks: Callable[[], Iterable[torch.Tensor]]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the map `x @ W.T` of a weight of `rows` rows that comes as blocks of rows."""

    def product(x: torch.Tensor) -> torch.Tensor:
        # filled in place: results kept next to the blocks would leave holes that no later block fits into
        out, start = x.new_empty(*x.shape[:-1], rows), 0
        for block in blocks():
            out[..., start : start + len(block)] = x @ block.float().T
            start += len(block)
        return out

    return product


def weight_product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the map `x @ W.T` of a weight of shape (out, in)."""
    return product_of(len(weight), lambda: (weight[rows] for rows in row_slices(*weight.shape)))
