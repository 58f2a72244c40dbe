"""Rows of a KV cache by their lengths: a short row is not as wide as the longest one, in memory and in the attention."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_by_group"
"""Name of the attention below among those of transformers."""

GROUPED_TYPES = ("gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2")
"""Model types that hand what the cache returns to the attention as it is."""


class RowGroup:
    """Rows with space for the same number of columns: two tensors (slots, kv heads, columns, head_dim) per layer.

    There is one slot for each row. Columns that a row has not reached yet are masked and kept at zero: a masked NaN would still corrupt
    the row's attention.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[int] = []  # the batch's row in each slot
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def add(self, rows: Sequence[int], keys: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
        """Appends rows with copies of their keys and values, (rows, kv heads, tokens, head_dim) for each layer, one by one."""
        first = len(self.rows)
        self.rows.extend(rows)
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            for layer, other in enumerate(theirs):
                _, heads, tokens, size = other.shape
                if layer == len(mine):
                    mine.append(other.new_zeros((0, heads, self.columns, size)))
                mine[layer] = _resized(mine[layer], len(self.rows), self.columns)
                mine[layer][first:, :, :tokens] = other

    def remove(self, rows: Sequence[int]) -> None:
        """Frees the slots of rows: the last ones take their places."""
        kept = list(range(len(self.rows)))
        for slot in sorted(map(self.rows.index, rows), reverse=True):
            kept[slot] = kept[-1]
            kept.pop()
        self.rows = [self.rows[slot] for slot in kept]
        for side in (self.keys, self.values):
            for layer, tensor in enumerate(side):
                side[layer] = tensor[kept]

    def states(
        self, rows: Sequence[int], length: int
    ) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
        """Returns copies of the keys and values of rows of one length, (rows, kv heads, length, head_dim) for each layer."""
        slots = [self.rows.index(row) for row in rows]
        keys, values = ((one[slots, :, :length] for one in side) for side in (self.keys, self.values))
        return keys, values

    def resize(self, columns: int) -> None:
        """Gives each row a slot of this many columns, layer by layer."""
        self.columns = columns
        for side in (self.keys, self.values):
            for layer, tensor in enumerate(side):
                side[layer] = _resized(tensor, len(self.rows), columns)


def _resized(tensor: torch.Tensor, slots: int, columns: int) -> torch.Tensor:
    """Returns a tensor with the content of the first slots and columns of (slots, kv heads, columns, head_dim), else zeros."""
    have, heads, wide, size = tensor.shape
    if (have, wide) == (slots, columns):
        return tensor
    kept, seen = min(have, slots), min(wide, columns)
    new = tensor.new_zeros((slots, heads, columns, size))
    new[:kept, :, :seen] = tensor[:kept, :, :seen]
    return new


@dataclass(slots=True)
class GroupStep:
    """A group in one decoding step: its rows of the batch in the order of its slots, their new columns, and the width that they see.

    `is_whole` is True if the group has all rows of the batch in their order.
    """

    group: RowGroup
    rows: torch.Tensor
    columns: torch.Tensor
    width: int
    is_whole: bool
    _places: dict[int, torch.Tensor] = field(default_factory=dict)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes the new token of the rows of the group; takes (rows of the batch, kv heads, 1, head_dim)."""
        for side, states in ((self.group.keys, keys), (self.group.values, values)):
            # In a model over several GPUs, the keys of a layer are on its GPU.
            own = states if self.is_whole else states[self.rows.to(states.device)]
            heads, size = own.shape[1], own.shape[3]
            side[layer].view(-1, size).index_copy_(
                0, self._places_of(heads).to(states.device), own.reshape(-1, size)
            )

    def _places_of(self, heads: int) -> torch.Tensor:
        """Returns where the vectors of the new token of each row and head are among (slots x kv heads x columns)."""
        if heads not in self._places:
            device = self.rows.device
            slots = torch.arange(len(self.rows), device=device)[:, None] * heads
            first = (slots + torch.arange(heads, device=device)) * self.group.columns
            self._places[heads] = (first + self.columns[:, None]).flatten()
        return self._places[heads]

    def seen(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values of the group's rows, (slots, kv heads, width, head_dim)."""
        slots = len(self.rows)
        return (
            self.group.keys[layer][:slots, :, : self.width],
            self.group.values[layer][:slots, :, : self.width],
        )


@dataclass(frozen=True, slots=True)
class GroupedStates:
    """Keys or values of one layer, as a cache with several groups returns them."""

    steps: Sequence[GroupStep]
    states: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class PackedStates:
    """Keys or values of one layer for each of several prompts, (1, kv heads, columns, head_dim), and the numbers of their new tokens."""

    counts: Sequence[int]
    states: Sequence[torch.Tensor]


def attention_name(model_type: str) -> str:
    """Returns the attention of a model type for transformers, which knows it from then on."""
    AttentionInterface.register(GROUPED, attend)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    return GROUPED if model_type in GROUPED_TYPES else "sdpa"


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor | GroupedStates | PackedStates,
    value: torch.Tensor | GroupedStates | PackedStates,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Returns transformers' scaled dot product attention, (rows, tokens, heads, head_dim).

    Several groups of rows are computed one by one, and so are several prompts in one row.
    """
    if isinstance(key, torch.Tensor) and isinstance(value, torch.Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if isinstance(key, PackedStates) and isinstance(value, PackedStates):
        return _attend_packed(module, query, key, value, attention_mask, **kwargs), None
    assert isinstance(key, GroupedStates) and isinstance(value, GroupedStates) and attention_mask is not None
    rows, heads, tokens, size = query.shape
    output = query.new_empty(rows, tokens, heads, size)
    for step, keys, values in zip(key.steps, key.states, value.states, strict=True):
        chosen = step.rows.to(query.device)
        mask = attention_mask[chosen, :, :, : step.width]
        output[chosen] = sdpa_attention_forward(module, query[chosen], keys, values, mask, **kwargs)[0]
    return output, None


def _attend_packed(
    module: Any,
    query: torch.Tensor,
    key: PackedStates,
    value: PackedStates,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    assert attention_mask is not None
    counts = list(key.counts)
    parts = zip(
        torch.split(query, counts, dim=2),
        key.states,
        value.states,
        torch.split(attention_mask, counts, dim=2),
        strict=True,
    )
    outputs = [
        sdpa_attention_forward(module, own, keys, values, mask[..., : keys.shape[2]], **kwargs)[0]
        for own, keys, values, mask in parts
    ]
    return torch.cat(outputs, dim=1)
