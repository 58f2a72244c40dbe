"""A loaded base whose forward passes apply adapters next to its weights, which stay as they are.

The low-rank products are computed in the dtype of the module's weight. For rows with different adapters the factors of all of them
are joined (services/generate/adapter_group.py); rows with embeddings or a head of their own are computed apart.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from services.errors import InternalError
from services.generate.adapter_group import AdapterGroup, RowWeights
from services.generate.adapter_stack import AdapterStack, LoadedAdapter
from services.generate.row_linear import product

Forward = Callable[[torch.Tensor], torch.Tensor]


class Application(Protocol):
    """The adapters of one forward pass."""

    def add(self, path: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds the changes of the module at this path to its output y (…, out), in place; x is (…, in)."""

    def embed(self, module: nn.Module, base: Forward, ids: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of ids (rows, tokens)."""

    def head(self, module: nn.Module, base: Forward, path: str, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of x (rows, tokens, hidden), as wide as the widest vocabulary, others end with minus infinity."""


@dataclass(frozen=True, slots=True)
class OneStack:
    """All rows have the same adapters."""

    stack: AdapterStack

    def add(self, path: str, x: torch.Tensor, y: torch.Tensor) -> None:
        rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for adapter, scale in self.stack.adapters:
            factors = adapter.factors.get(path)
            if factors is not None:
                out.addmm_(product(rows, factors.a), factors.b, alpha=scale)

    def embed(self, module: nn.Module, base: Forward, ids: torch.Tensor) -> torch.Tensor:
        return _with_weight(module, self.stack.embeddings, base, ids)

    def head(self, module: nn.Module, base: Forward, path: str, x: torch.Tensor) -> torch.Tensor:
        logits = _with_weight(module, self.stack.head, base, x)
        if self.stack.head is None:
            self.add(path, x, logits)
        return logits


@dataclass(slots=True)
class StackPerRow:
    """Each row has its own adapters, or none."""

    stacks: Sequence[AdapterStack | None]
    group: AdapterGroup
    weights: RowWeights = field(init=False)

    def __post_init__(self) -> None:
        self.weights = RowWeights(self.group, self.stacks)

    def add(self, path: str, x: torch.Tensor, y: torch.Tensor) -> None:
        self._add(path, x, y, None)

    def embed(self, module: nn.Module, base: Forward, ids: torch.Tensor) -> torch.Tensor:
        own = [None if stack is None else stack.embeddings for stack in self.stacks]
        return self._by_weight(own, ids, lambda weight, part, _: _with_weight(module, weight, base, part))

    def head(self, module: nn.Module, base: Forward, path: str, x: torch.Tensor) -> torch.Tensor:
        def logits(
            weight: torch.Tensor | None, part: torch.Tensor, rows: torch.Tensor | None
        ) -> torch.Tensor:
            found = _with_weight(module, weight, base, part)
            if weight is None:
                self._add(path, part, found, rows)
            return found

        return self._by_weight([None if stack is None else stack.head for stack in self.stacks], x, logits)

    def _add(self, path: str, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Adds the changes; `rows` are the numbers of the rows that x has, None for all."""
        joined = self.group.modules.get(path)
        if joined is None:
            return
        flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        weights = self.weights.by_rank(joined.ranks, flat.device)
        weights = weights if rows is None else weights[rows]
        tokens, rest = divmod(len(flat), len(weights))
        if rest:
            raise InternalError(f"{path}: {len(flat)} vectors for {len(weights)} rows with adapters.")
        if tokens > 1:
            weights = weights.repeat_interleave(tokens, dim=0)
        # In place: the product with a float32 scale is rounded once, to the dtype of the base.
        out.addmm_(product(flat, joined.a).mul_(weights), joined.b)

    def _by_weight(
        self,
        own: Sequence[torch.Tensor | None],
        x: torch.Tensor,
        compute: Callable[[torch.Tensor | None, torch.Tensor, torch.Tensor | None], torch.Tensor],
    ) -> torch.Tensor:
        """Returns the outputs (rows, tokens, width) for x (rows, tokens, …), computed apart for each of the weights."""
        rows_of: dict[int, list[int]] = {}
        for row, weight in enumerate(own):
            rows_of.setdefault(id(weight), []).append(row)
        if len(rows_of) == 1:
            return compute(own[0], x, None)
        parts = []
        for rows in rows_of.values():
            numbers = torch.tensor(rows, device=x.device)
            parts.append((numbers, compute(own[rows[0]], x[numbers], numbers)))
        width = max(part.shape[-1] for _, part in parts)
        first = parts[0][1]
        whole = first.new_full((*x.shape[:2], width), -torch.inf)
        for numbers, part in parts:
            whole[numbers.to(whole.device), :, : part.shape[-1]] = part.to(whole.device)
        return whole


class AdaptedModel:
    """The modules of a base that adapters change. Until one does, the model is untouched."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._application: Application | None = None
        self._wrapped: set[str] = set()
        self._head_path: str | None = None
        self._group = AdapterGroup()
        self._rows: StackPerRow | None = None  # of the last step

    @contextmanager
    def applied(self, stack: AdapterStack | None) -> Iterator[None]:
        """Applies a stack to all rows of the forward passes within the block."""
        if stack is None:
            yield
            return
        self._wrap(stack)
        with self._applying(OneStack(stack)):
            yield

    @contextmanager
    def applied_to_rows(self, stacks: Sequence[AdapterStack | None]) -> Iterator[None]:
        """Applies a stack to each row of the forward passes within the block."""
        if len(set(stacks)) == 1:
            with self.applied(stacks[0]):
                yield
            return
        with self._applying(self._per_row(stacks)):
            yield

    def free(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Releases adapters that no row has any more, and the stacks of the last step."""
        self._rows = None
        if set(adapters) & set(self._group.adapters):
            self._regroup([adapter for adapter in self._group.adapters if adapter not in adapters])

    def _per_row(self, stacks: Sequence[AdapterStack | None]) -> StackPerRow:
        if self._rows is not None and list(self._rows.stacks) == list(stacks):
            return self._rows
        present = dict.fromkeys(stack for stack in stacks if stack is not None)
        for stack in present:
            self._wrap(stack)
        needed = dict.fromkeys(adapter for stack in present for adapter, _ in stack.adapters)
        if not self._group.serves(needed.keys()):
            self._regroup(list(needed))
        self._rows = StackPerRow(list(stacks), self._group)
        return self._rows

    def _regroup(self, adapters: Sequence[LoadedAdapter]) -> None:
        self._group.release(adapter for adapter in self._group.adapters if adapter not in adapters)
        self._group = (
            AdapterGroup()
        )  # the joined tensors are freed module by module while the next ones are made
        self._group = AdapterGroup(adapters)

    @contextmanager
    def _applying(self, application: Application) -> Iterator[None]:
        self._application = application
        try:
            yield
        finally:
            self._application = None

    def _wrap(self, stack: AdapterStack) -> None:
        """Makes the modules that a stack changes apply adapters."""
        model: Any = self._model
        head = model.get_output_embeddings()
        if self._head_path is None:
            self._head_path = next(path for path, module in model.named_modules() if module is head)
            _replace_forward(head, partial(self._head, self._head_path))
            _replace_forward(model.get_input_embeddings(), self._embed)
        for adapter, _ in stack.adapters:
            for path in adapter.factors.keys() - self._wrapped:
                self._wrapped.add(path)
                module = model.get_submodule(path)
                if module is not head:
                    _replace_forward(module, partial(self._linear, path))

    def _linear(self, path: str, module: nn.Module, base: Forward, x: torch.Tensor) -> torch.Tensor:
        y = base(x)
        if self._application is not None:
            self._application.add(path, x, y)
        return y

    def _embed(self, module: nn.Module, base: Forward, ids: torch.Tensor) -> torch.Tensor:
        application = self._application
        return base(ids) if application is None else application.embed(module, base, ids)

    def _head(self, path: str, module: nn.Module, base: Forward, x: torch.Tensor) -> torch.Tensor:
        application = self._application
        return base(x) if application is None else application.head(module, base, path, x)


def _replace_forward(
    module: nn.Module, forward: Callable[[nn.Module, Forward, torch.Tensor], torch.Tensor]
) -> None:
    module.forward = partial(forward, module, module.forward)


def _with_weight(
    module: nn.Module, weight: torch.Tensor | None, base: Forward, x: torch.Tensor
) -> torch.Tensor:
    """Returns the module's output with another weight, which may have more rows; None for its own."""
    if weight is None:
        return base(x)
    parameters: dict[str, Any] = module._parameters
    own = parameters["weight"]
    parameters["weight"] = weight
    try:
        return base(x)
    finally:
        parameters["weight"] = own
