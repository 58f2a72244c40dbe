"""Rows of a KV cache by their lengths: a short row is not as wide as the longest one, in memory and in the attention."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    Slots grow on demand, by at least half. Columns that a row has not reached yet are masked and kept at zero: a masked NaN
    would still corrupt the row's attention.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[int] = []  # the batch's row in each slot
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def add(self, row: int, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        """Appends a row with copies of its keys and values, (kv heads, tokens, head_dim) for each layer."""
        if not self.keys:
            self.keys, self.values = (
                [one.new_zeros((1, one.shape[0], self.columns, one.shape[2])) for one in side]
                for side in (keys, values)
            )
        self.reserve(len(self.rows) + 1, keys[0].shape[1])
        for mine, other in zip((*self.keys, *self.values), (*keys, *values), strict=True):
            mine[len(self.rows), :, : other.shape[1]] = other
        self.rows.append(row)

    def remove(self, row: int) -> None:
        """Frees the slot of a row: the last one takes its place."""
        slot, last = self.rows.index(row), len(self.rows) - 1
        for tensor in (*self.keys, *self.values):
            tensor[slot] = tensor[last]
            tensor[last] = 0
        self.rows[slot] = self.rows[last]
        self.rows.pop()

    def states(self, row: int, length: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns views of the keys and values of a row, (kv heads, length, head_dim) for each layer."""
        slot = self.rows.index(row)
        keys, values = ([one[slot, :, :length] for one in side] for side in (self.keys, self.values))
        return keys, values

    def reserve(self, slots: int, columns: int) -> None:
        """Makes space for as many slots and columns."""
        have, _, wide, _ = self.keys[0].shape
        if slots <= have and columns <= wide:
            return
        slots = have if slots <= have else max(slots, have * 3 // 2)
        self.columns = max(columns, wide)
        for side in (self.keys, self.values):
            for layer, old in enumerate(side):
                new = old.new_zeros((slots, old.shape[1], self.columns, old.shape[3]))
                new[:have, :, :wide] = old
                side[layer] = new


@dataclass(slots=True)
class GroupStep:
    """A group in one decoding step: rows of the batch, their new columns, and the width that they see."""

    group: RowGroup
    rows: torch.Tensor
    columns: torch.Tensor
    width: int

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes the new token of the rows of the group; takes (rows of the batch, kv heads, 1, head_dim)."""
        for side, states in ((self.group.keys, keys), (self.group.values, values)):
            # In a model over several GPUs, the keys of a layer are on its GPU.
            rows, columns = self.rows.to(states.device), self.columns.to(states.device)
            slots = torch.arange(len(rows), device=states.device)
            side[layer][slots, :, columns] = states[rows, :, 0]

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


def attention_name(model_type: str) -> str:
    """Returns the attention of a model type for transformers, which knows it from then on."""
    AttentionInterface.register(GROUPED, attend)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    return GROUPED if model_type in GROUPED_TYPES else "sdpa"


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor | GroupedStates,
    value: torch.Tensor | GroupedStates,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Returns transformers' scaled dot product attention, (rows, tokens, heads, head_dim), group by group if there are several."""
    if isinstance(key, torch.Tensor) and isinstance(value, torch.Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    assert isinstance(key, GroupedStates) and isinstance(value, GroupedStates) and attention_mask is not None
    rows, heads, tokens, size = query.shape
    output = query.new_empty(rows, tokens, heads, size)
    for step, keys, values in zip(key.steps, key.states, value.states, strict=True):
        chosen = step.rows.to(query.device)
        mask = attention_mask[chosen, :, :, : step.width]
        output[chosen] = sdpa_attention_forward(module, query[chosen], keys, values, mask, **kwargs)[0]
    return output, None
