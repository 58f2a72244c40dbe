"""Adapters of a loaded base as plain tensors: rows of one batch may have different stacks of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from services.generate.guide import GuideMaker
from services.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Factors of the change of one linear module, in the dtype and on the device of its weight.

    Attributes:
        a: Shape (rank, in).
        b: Shape (rank, out), with the adapter's own scaling: the change of an output is `(x @ a.T) @ b`.
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter's factors by the path of the module in the model. The engine may move them into tensors that adapters share."""

    name: str
    factors: dict[str, Factors]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors."""
        for factors in self.factors.values():
            yield from (factors.a, factors.b)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AdapterStack:
    """Adapters in order, with their scales, as the engine applies them to the rows of a batch that have them.

    Attributes:
        identity: Identifies what is computed: only stacks with the same one have the same keys and values for a prompt.
        tokenizer: Tokenizer of the base with these adapters.
        guides: Guides of the tokenizer's vocabulary.
        rows: Number of rows of the embeddings with these adapters; logits of later ids are minus infinity.
        adapters: Low-rank changes and their scales.
        embeddings: Input embeddings (rows, hidden) with these adapters, None for the base's.
        head: Weight (rows, hidden) of the output head with these adapters, None for the base's.
    """

    identity: str
    tokenizer: Tokenizer
    guides: GuideMaker
    rows: int
    adapters: tuple[tuple[LoadedAdapter, float], ...] = ()
    embeddings: torch.Tensor | None = None
    head: torch.Tensor | None = None

    @property
    def parts(self) -> Mapping[object, int]:
        """Bytes of each adapter and tensor, which other stacks may have too."""
        sizes: dict[object, int] = {adapter: adapter.size_bytes for adapter, _ in self.adapters}
        for tensor in (self.embeddings, self.head):
            if tensor is not None:
                sizes[tensor] = tensor.nbytes
        return sizes
