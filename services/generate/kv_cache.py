"""KV cache for sequences that decode together: one row per sequence, which may join and leave at any token.

Each sequence occupies a row from column 0 on, independent of the lengths of the others: there is no left padding, no row moves
within its columns when another joins or leaves, and a sequence finds its keys at the same positions alone and in a
batch. Prompts are computed one at a time. The only remaining effect of a batch is the rounding of matrix products with
more rows (about 1e-6 of a logit in float32).
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from services.generate.adapter_stack import AdapterStack

_BLOCK = 64


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
        self._width = 0

    def join(self, prompt: Cache) -> None:
        """Appends a row with a copy of a prompt's keys and values."""
        keys, values = _tensors(prompt)
        if not self._keys:
            self._keys, self._values = ([tensor[:0] for tensor in tensors] for tensors in (keys, values))
        row, length = len(self.lengths), keys[0].shape[2]
        self._reserve(row + 1, length)
        for mine, other in zip((*self._keys, *self._values), (*keys, *values), strict=True):
            mine[row, :, :length] = other[0]
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
        # Rounded up, because kernels for CUDA need the mask's rows aligned.
        self._width = _rounded_up(max(self.lengths) + 1, 8)
        self._reserve(len(self.lengths), self._width)
        self._rows = torch.arange(len(self.lengths), device=device)
        self._columns = torch.tensor(self.lengths, device=device)
        return self._columns[:, None]

    def mask(self, dtype: torch.dtype, window: int | None = None) -> torch.Tensor:
        """Returns the additive mask (rows, 1, 1, columns) of the step that has begun.

        Args:
            window: Number of tokens that are seen, the new one included; None for all.
        """
        columns = torch.arange(self._width, device=self._columns.device)[None]
        unseen = columns > self._columns[:, None]
        if window is not None:
            unseen |= columns <= self._columns[:, None] - window
        mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
        mask.masked_fill_(unseen, torch.finfo(dtype).min)
        return mask[:, None, None]

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
        return keys[:rows, :, : self._width], values[:rows, :, : self._width]

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
            columns = _rounded_up(max(columns, have_columns * 3 // 2), _BLOCK)
        for tensors in (self._keys, self._values):
            for number, old in enumerate(tensors):
                new = old.new_zeros((rows, old.shape[1], columns, old.shape[3]))
                new[:have_rows, :, :have_columns] = old
                tensors[number] = new


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _tensors(cache: Cache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Returns keys and values of each layer, (rows, kv heads, columns, head_dim)."""
    layers: list[Any] = list(cache.layers)
    return [layer.keys for layer in layers], [layer.values for layer in layers]


MASK_BY_LAYER = ("gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3")
"""Model types that take one mask for each type of layer in `layer_types`."""

ONE_MASK = ("mistral", "phi3", "starcoder2")
"""Model types all of whose layers have the window `sliding_window`."""


def window_of(config: Any) -> int | None:
    """Returns the window of a model's sliding layers, None if it has none or is not among the types above."""
    known = config.model_type in (*MASK_BY_LAYER, *ONE_MASK)
    window = getattr(config, "sliding_window", None)
    return int(window) if known and window else None


class BatchRunner:
    """Runs the forward passes of one model for the sequences in its KV cache.

    All keys and values are kept, also those that a sliding layer no longer sees: the masks leave them out. `stacks` has the
    adapters of each row, None for the base alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = KVCache()
        self._window = window_of(model.config)
        self.stacks: list[AdapterStack | None] = []

    def __len__(self) -> int:
        return len(self._cache.lengths)

    @torch.inference_mode()
    def read_prompt(
        self, token_ids: Sequence[int], stack: AdapterStack | None = None
    ) -> tuple[torch.Tensor, Cache]:
        """Returns the logits (vocabulary,) after a prompt in float32 on the CPU, and the prompt's own cache."""
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        cache = DynamicCache()
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self._forward(ids, None, positions, cache)[0], cache

    @torch.inference_mode()
    def join(self, prompt: Cache, stack: AdapterStack | None = None) -> None:
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
        logits = self._forward(ids, self._masks(), positions, self._cache)
        self._cache.end_step()
        return logits

    def _masks(self) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns the mask of a step; one for each type of layer where the model takes them so."""
        dtype = self._model.dtype
        windowed = self._cache.mask(dtype, self._window)
        if self._model.config.model_type not in MASK_BY_LAYER:
            return windowed
        return {"full_attention": self._cache.mask(dtype), "sliding_attention": windowed}

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor] | None,
        positions: torch.Tensor,
        cache: Cache,
    ) -> torch.Tensor:
        outcome: Any = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = outcome.logits[:, -1]
        return logits.to("cpu", torch.float32)
