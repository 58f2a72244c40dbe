"""KV caches of prompts that are being read: of one, and of several in one forward pass."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache

from services.generate.masks import ALIGNMENT, rounded_up
from services.generate.row_groups import PackedStates

BLOCK = 64
"""Columns of the smallest group of rows, and a divisor of those of every prompt."""


class PromptCache(Cache):
    """Keys and values of one prompt: two tensors (1, kv heads, columns, head_dim) per layer with space for all of it."""

    def __init__(self, tokens: int) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.length = 0
        self._columns = rounded_up(tokens, BLOCK)

    def width(self, new_tokens: int) -> int:
        """Returns the columns that a forward pass with this many new tokens sees."""
        return rounded_up(self.length + new_tokens, ALIGNMENT)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model: takes (1, kv heads, tokens, head_dim), returns all keys and values of the mask's width."""
        new_tokens = key_states.shape[2]
        width = self.width(new_tokens)
        seen = []
        for tensors, states in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx == len(tensors):
                _, heads, _, size = states.shape
                tensors.append(states.new_zeros((1, heads, self._columns, size)))
            tensors[layer_idx][:, :, self.length : self.length + new_tokens] = states
            seen.append(tensors[layer_idx][:, :, :width])
        return seen[0], seen[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def states(self, *, last: bool) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
        """Returns the keys and values of each layer, (1, kv heads, length, head_dim); the last time, each is freed before the next."""
        keys, values = (self._states(side, last) for side in (self.keys, self.values))
        return keys, values

    def _states(self, side: list[torch.Tensor], last: bool) -> Iterator[torch.Tensor]:
        while last and side:
            yield side.pop(0)[:, :, : self.length]
        for tensor in side:
            yield tensor[:, :, : self.length]

    @torch.inference_mode()
    def last(self, tokens: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns copies of the keys and values of the last tokens, (kv heads, tokens, head_dim) for each layer."""
        columns = slice(self.length - tokens, self.length)
        keys, values = (
            [tensor[0, :, columns].clone() for tensor in side] for side in (self.keys, self.values)
        )
        return keys, values

    @torch.inference_mode()
    def append(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        """Appends keys and values as `last` returns them."""
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            self.update(key[None], value[None], layer)
        self.length += keys[0].shape[1]


class PackedPrompts(Cache):
    """The caches of several prompts as that of one row, which has the new tokens of all of them."""

    def __init__(self, caches: Sequence[PromptCache], counts: Sequence[int]) -> None:
        super().__init__(layers=[])
        self._caches, self._counts = caches, counts

    @property
    def width(self) -> int:
        """Columns that the widest of the prompts sees."""
        return max(cache.width(count) for cache, count in zip(self._caches, self._counts, strict=True))

    @property
    def positions(self) -> list[int]:
        """Column of each new token in its own prompt."""
        pairs = zip(self._caches, self._counts, strict=True)
        return [cache.length + place for cache, count in pairs for place in range(count)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Called by the model: takes (1, kv heads, tokens, head_dim) of all prompts, returns all keys and values of each."""
        sides = (torch.split(states, list(self._counts), dim=2) for states in (key_states, value_states))
        seen = [
            cache.update(keys, values, layer_idx)
            for cache, keys, values in zip(self._caches, *sides, strict=True)
        ]
        keys, values = zip(*seen, strict=True)
        return PackedStates(self._counts, keys), PackedStates(self._counts, values)

    def end_step(self) -> None:
        """Counts the tokens that the model has appended to each prompt."""
        for cache, count in zip(self._caches, self._counts, strict=True):
            cache.length += count

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(cache.length for cache in self._caches)
