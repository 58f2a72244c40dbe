"""Weights of the models whose logits are compared: the stored one, the expected one, and the stored one with random errors.

The expected weights are computed by verification's own arithmetic (rounded.py), not by that of the merge.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import nn

from services.architectures.checkpoint import TensorSource
from services.checkpoints.blocks import row_slices
from services.checkpoints.readback import StoredModel, StoredTensor
from services.checkpoints.tensor_reader import TensorReader
from services.merge import changes_of, release_tensor
from services.verify.projections import Projection, product_of, weight_product
from services.verify.rounded import RoundedMerge, rounded_blocks, rounded_rows, row_norms


class ModelWeights(Protocol):
    """Weights of one of the models that are compared."""

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix: float32 of shape (rows, columns)."""

    def vector(self, name: str) -> torch.Tensor | None:
        """Returns a norm or a bias in float32 of shape (n,), None if the model has none of this name."""

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""

    def release(self) -> None:
        """Releases the pages that were read since the last call."""


class StoredWeights:
    """Weights of a model as it is stored.

    `probes` has the products of each weight that was used with the probes (projections.py), `bounds` the bound on the norm of
    the encoding's error in each row.
    """

    def __init__(self, reader: TensorReader, stored: StoredModel) -> None:
        self._reader = reader
        self._tensors = stored.tensors
        self._read: list[TensorSource] = []
        self.probes: dict[str, torch.Tensor] = {}
        self.bounds: dict[str, torch.Tensor] = {}

    def release(self) -> None:
        """Releases the pages that were read since the last call."""
        while self._read:
            self._reader.release(self._read.pop())

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix: float32 of shape (rows, columns)."""
        return self._tensors[name].rows(self._reader, rows)[0].float()

    def vector(self, name: str) -> torch.Tensor | None:
        """Returns a norm or a bias in float32 of shape (n,), None if the model has none of this name."""
        found = self._tensors.get(name)
        return None if found is None else found.rows(self._reader, torch.arange(found.shape[0]))[0].float()

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""
        stored = self._tensors[weight]
        added = None if bias is None else self.vector(bias)
        self._read.append(stored.source)
        if stored.by_blocks:
            product = product_of(stored.shape[0], lambda: self._decoded(stored))
        else:
            product = weight_product(self._reader.joined(stored.source))
        return Projection(product, added, lambda probe: self.probes.update({weight: probe}))

    def _decoded(self, stored: StoredTensor) -> Iterator[torch.Tensor]:
        numbers, bounds = torch.arange(stored.shape[0]), []
        for rows in row_slices(*stored.shape):
            values, slack = stored.rows(self._reader, numbers[rows])
            # an importance matrix gives up values for others: such rows have the bound of findings.py and of the logits
            bounds.append(slack.norm(dim=1) + (math.inf if stored.weighed else 0.0))
            yield values
        self.bounds[stored.name] = torch.cat(bounds)


class ExpectedWeights:
    """Weights of a base with adapters as a right merge stores them.

    `probes` is as in `StoredWeights`, `bounds` the bound on the norm of the roundings in each row, those of
    its product in float32 included (sqrt(n) * eps for a sum of n terms: Higham 2002, section 2.8).
    """

    def __init__(self, reader: TensorReader, merge: RoundedMerge) -> None:
        self._reader, self._merge = reader, merge
        self._read: list[str] = []
        self.probes: dict[str, torch.Tensor] = {}
        self.bounds: dict[str, torch.Tensor] = {}

    def release(self) -> None:
        """Releases the pages that were read since the last call."""
        while self._read:
            name = self._read.pop()
            release_tensor(self._reader, self._merge.source(name), changes_of(self._merge.adapters, name))

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix: float32 of shape (rows, columns)."""
        return rounded_rows(self._reader, self._merge, name, rows)[0].float()

    def vector(self, name: str) -> torch.Tensor | None:
        """Returns a norm or a bias in float32 of shape (n,), as the last adapter that replaces it has it."""
        source = self._merge.base.tensors.get(name)
        return None if source is None else self.rows(name, torch.arange(source.shape[0]))

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""
        self._read.append(weight)
        added = None if bias is None else self.vector(bias)
        product = product_of(self._merge.shape(weight)[0], lambda: self._blocks(weight))
        return Projection(product, added, lambda probe: self.probes.update({weight: probe}))

    def _blocks(self, name: str) -> Iterator[torch.Tensor]:
        bounds = []
        for values, bound in rounded_blocks(self._reader, self._merge, name):
            arithmetic = row_norms(values) * values.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
            bounds.append(bound + arithmetic)
            yield values
        self.bounds[name] = torch.cat(bounds)


class NoisyWeights:
    """Weights of a stored model with independent random errors, which show what roundings do to its logits."""

    def __init__(self, stored: StoredWeights, errors: Mapping[str, float]) -> None:
        """`errors` are the sizes of the errors of each tensor, relative to the tensor's norm."""
        self._stored, self._errors = stored, errors
        self._generator = torch.Generator().manual_seed(0)

    def release(self) -> None:
        """Releases the pages that were read since the last call."""
        self._stored.release()

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix: float32 of shape (rows, columns)."""
        return self._noisy(self._stored.rows(name, rows), name)

    def vector(self, name: str) -> torch.Tensor | None:
        """Returns a norm or a bias in float32 of shape (n,), None if the model has none of this name."""
        found = self._stored.vector(name)
        return None if found is None else self._noisy(found, name)

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""
        return _NoisyProjection(self, self._stored.projection(weight, bias), weight)

    def product_error(self, name: str, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Returns `x @ E.T` for a matrix E of independent errors that has `rows` rows: float32 of shape (…, rows).

        E itself is not drawn: its product is normal with the covariance x @ x.T times the variance of an error.
        """
        flat = x.reshape(-1, x.shape[-1])
        square = (
            float(self._stored.probes[name].double().square().mean()) / x.shape[-1]
        )  # of an element of the weight
        shape = torch.linalg.qr(flat.T, mode="r").R.T
        drawn = shape @ torch.randn(shape.shape[1], rows, generator=self._generator)
        error: torch.Tensor = drawn * (self._error(name) * math.sqrt(square))
        return error.reshape(*x.shape[:-1], rows)

    def _noisy(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return values * (1 + self._error(name) * torch.randn(values.shape, generator=self._generator))

    def _error(self, name: str) -> float:
        return self._errors.get(name, 0.0) + FORWARD_ERROR


FORWARD_ERROR = 2.0**-20
"""Error of each weight that stands for the arithmetic of a forward pass: 16 roundings of float32."""


class _NoisyProjection(nn.Module):
    def __init__(self, weights: NoisyWeights, inner: nn.Module, name: str) -> None:
        super().__init__()
        self._weights, self._inner, self._name = weights, inner, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the projection of x with the errors of the weight."""
        out: torch.Tensor = self._inner(x)
        return out + self._weights.product_error(self._name, x, out.shape[-1])
