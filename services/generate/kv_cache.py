"""KV caches: one for sequences that decode together, a row each, and one for a prompt that is being read.

Each sequence occupies a row from column 0 on, independent of the lengths of the others: there is no left padding, no row moves
within its columns when another joins or leaves, and a sequence finds its keys at the same positions alone and in a
batch. Prompts are read one at a time. The only remaining effect of a batch is the rounding of matrix products with
more rows (about 1e-6 of a logit in float32).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from services.generate.adapted_model import AdaptedModel
from services.generate.adapter_stack import AdapterStack, LoadedAdapter
from services.generate.masks import ALIGNMENT, Masks, masks_of, rounded_up

_BLOCK = 64


class PromptCache(Cache):
    """Keys and values of one prompt: two tensors (1, kv heads, columns, head_dim) per layer with space for all of it."""

    def __init__(self, tokens: int) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.length = 0
        self._columns = rounded_up(tokens, _BLOCK)

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


class KVCache(Cache):
    """Keys and values of the running sequences: two tensors (rows, kv heads, columns, head_dim) per layer.

    Rows and columns grow on demand, by at least half. Columns that a row has not reached yet are masked and kept at
    zero: a masked NaN would still corrupt the row's attention.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self.lengths: list[int] = []
        self._rows = self._columns = torch.empty(0)
        self.width = 0

    def join(self, prompt: PromptCache) -> None:
        """Appends a row with a copy of a prompt's keys and values."""
        if not self._keys:
            self._keys, self._values = (
                [tensor[:0] for tensor in tensors] for tensors in (prompt.keys, prompt.values)
            )
        row, length = len(self.lengths), prompt.length
        self._reserve(row + 1, length)
        for mine, other in zip((*self._keys, *self._values), (*prompt.keys, *prompt.values), strict=True):
            mine[row, :, :length] = other[0, :, :length]
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Frees a row: the last one takes its place."""
        last = len(self.lengths) - 1
        for tensor in (*self._keys, *self._values):
            tensor[row] = tensor[last]
            tensor[last] = 0
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def begin_step(self, device: torch.device) -> torch.Tensor:
        """Makes space for one more token in each row; returns its position ids (rows, 1)."""
        self.width = rounded_up(max(self.lengths) + 1, ALIGNMENT)
        self._reserve(len(self.lengths), self.width)
        self._rows = torch.arange(len(self.lengths), device=device)
        self._columns = torch.tensor(self.lengths, device=device)
        return self._columns[:, None]

    def end_step(self) -> None:
        """Counts the token that the model has appended to each row."""
        self.lengths = [length + 1 for length in self.lengths]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model: takes (rows, kv heads, 1, head_dim), returns all keys and values of the mask's width."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        # In a model over several GPUs, the keys of a layer are on its GPU.
        at_rows, at_columns = self._rows.to(keys.device), self._columns.to(keys.device)
        keys[at_rows, :, at_columns] = key_states[:, :, 0]
        values[at_rows, :, at_columns] = value_states[:, :, 0]
        rows = len(self.lengths)
        return keys[:rows, :, : self.width], values[:rows, :, : self.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.lengths, default=0)

    def _reserve(self, rows: int, columns: int) -> None:
        have_rows, _, have_columns, _ = self._keys[0].shape
        if rows <= have_rows and columns <= have_columns:
            return
        rows = have_rows if rows <= have_rows else max(rows, have_rows * 3 // 2)
        if columns <= have_columns:
            columns = have_columns
        else:
            columns = rounded_up(max(columns, have_columns * 3 // 2), _BLOCK)
        for tensors in (self._keys, self._values):
            for number, old in enumerate(tensors):
                new = old.new_zeros((rows, old.shape[1], columns, old.shape[3]))
                new[:have_rows, :, :have_columns] = old
                tensors[number] = new


class BatchRunner:
    """Runs the forward passes of one model for the sequences in its KV cache.

    All keys and values are kept, also those that a sliding layer no longer sees: the masks leave them out. `stacks` has the
    adapters of each row, None for the base alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = KVCache()
        self._adapted = AdaptedModel(model)
        self.stacks: list[AdapterStack | None] = []

    def __len__(self) -> int:
        return len(self._cache.lengths)

    @torch.inference_mode()
    def read_chunk(
        self, token_ids: Sequence[int], cache: PromptCache, *, kept: int, stack: AdapterStack | None = None
    ) -> torch.Tensor:
        """Appends tokens to a prompt's cache; returns the logits (kept, vocabulary) after the last in float32 on the CPU."""
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        positions = torch.arange(cache.length, cache.length + ids.shape[1], device=ids.device)[None]
        masks = masks_of(self._model.config, positions, cache.width(ids.shape[1]), self._model.dtype)
        with self._adapted.applied(stack):
            logits = self._forward(ids, masks, positions, cache, kept=kept)
        cache.length += ids.shape[1]
        return logits[0]

    def applied(self, stack: AdapterStack | None) -> AbstractContextManager[None]:
        """Applies adapters to forward passes of the model that others run within the block."""
        return self._adapted.applied(stack)

    def free(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Releases adapters that no row has any more."""
        self._adapted.free(adapters)

    @torch.inference_mode()
    def join(self, prompt: PromptCache, stack: AdapterStack | None = None) -> None:
        """Appends the prompt's sequence, which these adapters have read, as the last row."""
        self._cache.join(prompt)
        self.stacks.append(stack)

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Frees the row of a finished sequence; the last row takes its number."""
        self._cache.leave(row)
        self.stacks[row] = self.stacks[-1]
        self.stacks.pop()

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Appends one token to each row and returns the next logits in float32 on the CPU.

        Their shape is (rows, widest vocabulary of the rows); a row's own vocabulary comes first, the rest is minus infinity.
        """
        ids = torch.tensor(token_ids, device=self._model.device)[:, None]
        positions = self._cache.begin_step(self._model.device)
        masks = masks_of(self._model.config, positions, self._cache.width, self._model.dtype)
        with self._adapted.applied_to_rows(self.stacks):
            logits = self._forward(ids, masks, positions, self._cache, kept=1)
        self._cache.end_step()
        return self._within_vocabularies(logits[:, -1])

    def _within_vocabularies(self, logits: torch.Tensor) -> torch.Tensor:
        """Sets the logits beyond each row's own vocabulary to minus infinity; what the model does after its head may change them."""
        model: Any = self._model
        head = model.get_output_embeddings()
        for row, stack in enumerate(self.stacks):
            weight = head.weight if stack is None or stack.head is None else stack.head
            if weight.shape[0] < logits.shape[1]:
                logits[row, weight.shape[0] :] = -torch.inf
        return logits

    def _forward(
        self, ids: torch.Tensor, masks: Masks, positions: torch.Tensor, cache: Cache, *, kept: int
    ) -> torch.Tensor:
        outcome: Any = self._model(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: torch.Tensor = outcome.logits
        return logits.to("cpu", torch.float32)
