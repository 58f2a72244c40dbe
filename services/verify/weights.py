"""Weights of the two models whose logits are compared: the stored one, and the base with its adapters on the fly.

A projection on the fly is `x @ W.T + s * (x @ A.T) @ B.T`: the adapters' products are never added to a weight, so nothing
of the merge's arithmetic is used.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from services.adapters.stack import merged_tensors
from services.architectures.checkpoint import Checkpoint, TensorSource
from services.checkpoints.blocks import row_slices
from services.checkpoints.readback import StoredModel
from services.checkpoints.tensor_reader import TensorReader
from services.merge import ScaledAdapter, changes_of, release_tensor
from services.merge.delta import Change, changed_blocks
from services.merge.factors import pair_factors
from services.merge.peft_layers import layer_model
from services.verify.expected import expected_rows
from services.verify.projections import Projection, product_of, weight_product


class ModelWeights(Protocol):
    """Weights of one of the two models that are compared."""

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix: float32 of shape (rows, columns)."""

    def vector(self, name: str) -> torch.Tensor | None:
        """Returns a norm or a bias in float32 of shape (n,), None if the model has none of this name."""

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""

    def release(self) -> None:
        """Releases the pages that were read since the last call."""


class StoredWeights:
    """Weights of a model as it is stored."""

    def __init__(self, reader: TensorReader, stored: StoredModel) -> None:
        self._reader = reader
        self._tensors = stored.tensors
        self._read: list[TensorSource] = []

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
        if not stored.by_blocks:
            return Projection(weight_product(self._reader.joined(stored.source)), bias=added)

        numbers = torch.arange(stored.shape[0])
        blocks = [numbers[rows] for rows in row_slices(*stored.shape)]

        def decoded() -> Iterator[torch.Tensor]:
            return (stored.rows(self._reader, rows)[0] for rows in blocks)

        return Projection(product_of(stored.shape[0], decoded), bias=added)


class UnmergedWeights:
    """Weights of a base with adapters that are applied on the fly."""

    def __init__(self, reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter]) -> None:
        self._reader = reader
        self._base = base
        self._adapters = adapters
        self._read: list[str] = []

    def release(self) -> None:
        """Releases the pages that were read since the last call."""
        while self._read:
            name = self._read.pop()
            changes = changes_of(self._adapters, name)
            release_tensor(self._reader, self._source(name), changes)

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows of a matrix: float32 of shape (rows, columns)."""
        return self._expected(name, rows)

    def vector(self, name: str) -> torch.Tensor | None:
        """Returns a norm or a bias in float32 of shape (n,), as the last adapter that replaces it has it."""
        source = self._base.tensors.get(name)
        return None if source is None else self._expected(name, torch.arange(source.shape[0]))

    def projection(self, weight: str, bias: str | None) -> nn.Module:
        """Returns the linear module of a weight and a bias."""
        self._read.append(weight)
        added = None if bias is None else self.vector(bias)
        changes = changes_of(self._adapters, weight)
        if any(change.rows is not None for change in changes):
            return Projection(self._expected_product(weight), bias=added)
        last = max((i for i, change in enumerate(changes) if change.layer is not None), default=None)
        if last is not None:
            return self._around_layer(weight, changes, last, added)
        start = max((i for i, change in enumerate(changes) if change.replaced is not None), default=0)
        replaced = changes[start].replaced if changes else None
        values = (
            self._reader.joined(self._source(weight)) if replaced is None else self._reader.view(replaced)
        )
        return Projection(weight_product(values), self._factors(changes[start:]), added)

    def _source(self, name: str) -> TensorSource:
        """Returns a tensor of the base; a head that the adapters untie is its embedding."""
        return self._base.tensors.get(name) or self._base.tensors[self._base.embeddings]

    def _factors(self, changes: Sequence[Change]) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        found = []
        for change in changes:
            if change.pair is not None:
                a, b = pair_factors(self._reader, change.pair)
                halves = (b.T, a.T) if change.pair.transposed else (a, b)
                found.append((*halves, change.pair.scaling * change.scale))
        return found

    def _around_layer(
        self, name: str, changes: Sequence[Change], last: int, bias: torch.Tensor | None
    ) -> nn.Module:
        """Returns PEFT's own layer around the weight as it was before the last such tuner, plus the later adapters."""
        weight = self._reader.load(self._source(name))
        if last:
            weight = torch.cat(list(changed_blocks(self._reader, weight, changes[:last], once=True)))
        layer = changes[last].layer
        assert layer is not None
        model = layer_model(self._reader, changes[last].adapter, layer, weight.float())
        inner = model.get_submodule(f"base_model.model.{layer.module}")
        return Projection(inner, self._factors(changes[last + 1 :]), bias)

    def _expected(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return expected_rows(self._reader, self._base, self._adapters, name, rows)[0].float()

    def _expected_product(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        shape = merged_tensors(self._base, [item.adapter for item in self._adapters])[name][1]
        numbers = torch.arange(shape[0])
        blocks = [numbers[rows] for rows in row_slices(*shape)]
        return product_of(shape[0], lambda: (self._expected(name, rows) for rows in blocks))
