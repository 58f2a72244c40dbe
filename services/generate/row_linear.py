"""Linear layers for a few rows on a CPU: the product is computed as weight times columns.

For `x @ weight.T` with a few rows, oneMKL rearranges the whole weight each time. In the other order it reads the weight as it is.
"""

from typing import Any

import torch
from torch import nn

LEAST_ROWS, MOST_ROWS = 4, 48
"""Numbers of rows for which this order is used: with fewer or 64 it takes as long or longer (measured, docs/benchmarks.md)."""


def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns `rows @ weight.T`, (rows, out) for (rows, in) and (out, in), in the faster order; it may be a transposed view."""
    if LEAST_ROWS <= len(rows) <= MOST_ROWS and rows.is_cpu and rows.dtype == torch.float32:
        return torch.mm(weight, rows.t()).t()
    return rows @ weight.t()


class RowLinear(nn.Linear):
    """A linear layer in float32 on a CPU.

    `returns_view` is True if the output may be a transposed view: who adds it or multiplies it needs no copy.
    """

    returns_view = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (…, out) for (…, in)."""
        shape = input.shape
        rows = shape[:-1].numel()
        if not LEAST_ROWS <= rows <= MOST_ROWS:
            return super().forward(input)
        weight, bias = self.weight, self.bias  # another weight may be in its place for a forward pass
        output = product(input.reshape(rows, shape[-1]), weight)
        if not self.returns_view:
            output = output.contiguous()
        if bias is not None:
            output += bias
        return output.view(*shape[:-1], weight.shape[0])


def use_row_linear(model: nn.Module) -> None:
    """Computes the plain linear layers of a model in this order, if its weights are float32 on a CPU."""
    for module in model.modules():
        anything: Any = module
        if type(module) is nn.Linear and anything.weight.dtype == torch.float32 and anything.weight.is_cpu:
            anything.__class__ = RowLinear
