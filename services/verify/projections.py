"""Linear maps of weights that are read in blocks of rows, each cast to float32 on its own."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from services.checkpoints.blocks import row_slices

PROBES = 2
"""Vectors of random signs that each weight is multiplied with, so that each of its rows is compared and not only samples."""

Product = Callable[[torch.Tensor], torch.Tensor]


class Projection(nn.Module):
    """Linear map of float32 tensors (…, in) to (…, out)."""

    def __init__(
        self, product: Product, bias: torch.Tensor | None, on_probe: Callable[[torch.Tensor], None]
    ) -> None:
        """`on_probe` gets the products of the weight's rows with the probes, of shape (PROBES, out)."""
        super().__init__()
        self._product, self._bias, self._on_probe = product, bias, on_probe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the weight's product and the bias."""
        flat = x.reshape(-1, x.shape[-1])
        out = self._product(torch.cat([flat, random_signs(x.shape[-1])]))
        self._on_probe(out[len(flat) :].clone())
        out = out[: len(flat)].reshape(*x.shape[:-1], out.shape[-1])
        return out if self._bias is None else out + self._bias


def random_signs(columns: int) -> torch.Tensor:
    """Returns the probes for a weight of that width: 1 and -1 in float32, of shape (PROBES, columns)."""
    generator = torch.Generator().manual_seed(columns)
    return torch.randint(0, 2, (PROBES, columns), generator=generator).float() * 2 - 1


def product_of(rows: int, blocks: Callable[[], Iterable[torch.Tensor]]) -> Product:
    """Returns the map `x @ W.T` of a weight of `rows` rows that comes as blocks of rows."""

    def product(x: torch.Tensor) -> torch.Tensor:
        # filled in place: results kept next to the blocks would leave holes that no later block fits into
        out, start = x.new_empty(*x.shape[:-1], rows), 0
        for block in blocks():
            out[..., start : start + len(block)] = x @ block.float().T
            start += len(block)
        return out

    return product


def weight_product(weight: torch.Tensor) -> Product:
    """Returns the map `x @ W.T` of a weight of shape (out, in)."""
    return product_of(len(weight), lambda: (weight[rows] for rows in row_slices(*weight.shape)))
