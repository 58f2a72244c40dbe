"""Factors of several adapters side by side, so that one product serves rows with different adapters.

A row has a weight for each adapter of the group: its scale, or 0 for adapters that it does not have.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from services.generate.adapter_stack import AdapterStack, Factors, LoadedAdapter

SPARE = 2
"""A group is made again once its ranks are more than this multiple of those that are needed."""


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Factors of one module: a (ranks, in), b (ranks, out), and the rank of each adapter in order, 0 without a change."""

    a: torch.Tensor
    b: torch.Tensor
    ranks: tuple[int, ...]


class AdapterGroup:
    """Adapters whose factors are joined. Those of each adapter become views of the joined ones: nothing is kept twice."""

    def __init__(self, adapters: Iterable[LoadedAdapter] = ()) -> None:
        self.adapters = tuple(dict.fromkeys(adapters))
        paths = dict.fromkeys(path for adapter in self.adapters for path in adapter.factors)
        self.modules = {path: self._join(path) for path in paths}

    @property
    def ranks(self) -> int:
        """Sum of the ranks of all modules."""
        return sum(sum(joined.ranks) for joined in self.modules.values())

    def serves(self, adapters: Collection[LoadedAdapter]) -> bool:
        """Returns True if the group has all these adapters, and not many others."""
        if not set(adapters) <= set(self.adapters):
            return False
        needed = sum(factors.a.shape[0] for adapter in adapters for factors in adapter.factors.values())
        return self.ranks <= SPARE * needed

    def release(self, kept: Iterable[LoadedAdapter]) -> None:
        """Gives these adapters, which live on without the group, tensors of their own again."""
        for adapter in set(kept) & set(self.adapters):
            for path, factors in adapter.factors.items():
                adapter.factors[path] = Factors(factors.a.clone(), factors.b.clone())

    def _join(self, path: str) -> Joined:
        present = [adapter.factors[path] for adapter in self.adapters if path in adapter.factors]
        a, b = torch.cat([factors.a for factors in present]), torch.cat([factors.b for factors in present])
        ranks, start = [], 0
        for adapter in self.adapters:
            rank = adapter.factors[path].a.shape[0] if path in adapter.factors else 0
            if rank:
                adapter.factors[path] = Factors(a[start : start + rank], b[start : start + rank])
            ranks.append(rank)
            start += rank
        return Joined(a, b, tuple(ranks))


class RowWeights:
    """Weights of the adapters of a group in each row of a batch, float32."""

    def __init__(self, group: AdapterGroup, stacks: Sequence[AdapterStack | None]) -> None:
        numbers = {adapter: number for number, adapter in enumerate(group.adapters)}
        self._weights = torch.zeros(len(stacks), len(numbers))
        for row, stack in enumerate(stacks):
            for adapter, scale in () if stack is None else stack.adapters:
                self._weights[row, numbers[adapter]] = scale
        self._by_rank: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}

    def by_rank(self, ranks: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Returns the weight of each rank of a joined module in each row, (rows, ranks)."""
        key = (ranks, device)
        if key not in self._by_rank:
            spread = self._weights.repeat_interleave(torch.tensor(ranks), dim=1)
            self._by_rank[key] = spread.to(device)
        return self._by_rank[key]
