"""The KV cache of sequences that decode together, a row each, and the forward passes of a model.

Each sequence occupies a row from column 0 on, independent of the lengths of the others: there is no left padding, no row moves
within its columns when another joins or leaves, and a sequence finds its keys at the same positions alone and in a
batch. Short prompts are read in one pass, each with attention of its own. The only remaining effect of others is the rounding of
matrix products with more rows (about 1e-6 of a logit in float32).
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from services.generate.adapted_model import AdaptedModel
from services.generate.adapter_stack import AdapterStack, LoadedAdapter
from services.generate.masks import ALIGNMENT, Masks, masks_of, rounded_up
from services.generate.prompt_cache import BLOCK, PackedPrompts, PromptCache
from services.generate.row_groups import GROUPED, GroupedStates, GroupStep, RowGroup
from services.generate.row_linear import MOST_ROWS, RowLinear


class KVCache(Cache):
    """Keys and values of the running sequences, in groups of rows with space for the same number of columns.

    A row moves to the next group, of twice as many columns, once it is full. Models whose attention takes one tensor for all
    rows have one group, as wide as its longest row needs. `most_columns` is the widest group, None without a limit. No slot or
    column is kept for rows that are not there.
    """

    def __init__(self, *, grouped: bool) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self.width = 0
        self.most_columns: int | None = None
        self.is_grouped = grouped
        self._groups: list[RowGroup] = []
        self._steps: list[GroupStep] = []

    def join(self, prompt: PromptCache, *, last: bool = False) -> None:
        """Appends a row with a copy of a prompt's keys and values; the last one empties the prompt's cache layer by layer."""
        keys, values = prompt.states(last=last)
        self._group_for(prompt.length + 1).add([len(self.lengths)], keys, values)
        self.lengths.append(prompt.length)

    def leave(self, row: int) -> None:
        """Frees a row: the last one takes its number."""
        last = len(self.lengths) - 1
        self._group_of(row).remove([row])
        if row != last:
            moved = self._group_of(last)
            moved.rows[moved.rows.index(last)] = row
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._groups = [group for group in self._groups if group.rows]
        if not self.is_grouped and self.lengths:
            self._groups[0].resize(columns_for(max(self.lengths) + 1, self.most_columns))

    def begin_step(self, device: torch.device) -> torch.Tensor:
        """Makes space for one more token in each row; returns its position ids (rows, 1)."""
        for group in list(self._groups):
            self._make_space(group)
        self.width = rounded_up(max(self.lengths) + 1, ALIGNMENT)
        columns = torch.tensor(self.lengths, device=device)
        self._steps = []
        for group in self._groups:
            rows = torch.tensor(group.rows, device=device)
            width = rounded_up(max(self.lengths[row] for row in group.rows) + 1, ALIGNMENT)
            is_whole = group.rows == list(range(len(self.lengths)))
            self._steps.append(GroupStep(group, rows, columns[rows], width, is_whole))
        return columns[:, None]

    def end_step(self, waiting: Collection[int] = ()) -> None:
        """Counts the token that the model has appended to each row, except to those that wait: they write it again later."""
        self.lengths = [length + (row not in waiting) for row, length in enumerate(self.lengths)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Called by the model: takes (rows, kv heads, 1, head_dim), returns all keys and values of the mask's width.

        They are tensors if all rows are in one group, in order, and else `GroupedStates`.
        """
        for step in self._steps:
            step.write(layer_idx, key_states, value_states)
        seen = [step.seen(layer_idx) for step in self._steps]
        if self._steps[0].is_whole:
            return seen[0]
        return tuple(GroupedStates(self._steps, side) for side in zip(*seen, strict=True))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.lengths, default=0)

    def _make_space(self, group: RowGroup) -> None:
        """Moves the full rows of a group to the next one, or gives all of them more columns if it is the only one."""
        full = [row for row in group.rows if self.lengths[row] >= group.columns]
        if not full:
            return
        if not self.is_grouped:
            group.resize(columns_for(max(self.lengths) + 1, self.most_columns))
            return
        self._group_for(group.columns + 1).add(full, *group.states(full, group.columns))
        group.remove(full)
        self._groups = [group for group in self._groups if group.rows]

    def _group_of(self, row: int) -> RowGroup:
        return next(group for group in self._groups if row in group.rows)

    def _group_for(self, columns: int) -> RowGroup:
        """Returns the group of rows of this many columns, which may be a new one."""
        space = columns_for(columns, self.most_columns)
        fitting = [group for group in self._groups if not self.is_grouped or group.columns == space]
        if not fitting:
            fitting = [RowGroup(space)]
            self._groups += fitting
        elif fitting[0].columns < space:
            fitting[0].resize(space)
        return fitting[0]


def columns_for(columns: int, most: int | None = None) -> int:
    """Returns the columns of the group of rows that need this many: powers of two times `BLOCK`, or the most."""
    found = BLOCK << (-(-columns // BLOCK) - 1).bit_length()
    return found if most is None or columns > most else min(found, most)


class BatchRunner:
    """Runs the forward passes of one model for the sequences in its KV cache.

    All keys and values are kept, also those that a sliding layer no longer sees: the masks leave them out. `stacks` has the
    adapters of each row, None for the base alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = KVCache(grouped=model.config._attn_implementation == GROUPED)
        self._adapted = AdaptedModel(model)
        self.stacks: list[AdapterStack | None] = []

    def __len__(self) -> int:
        return len(self._cache.lengths)

    @property
    def is_grouped(self) -> bool:
        """True if rows of different lengths take columns of their own, False if all are as wide as the widest."""
        return self._cache.is_grouped

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row whose keys and values are kept."""
        return self._cache.lengths

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, as the model itself makes them."""
        cache = PromptCache(1)
        self.read_chunk([0], cache, kept=1)
        return sum(tensor[:, :, :1].nbytes for tensor in (*cache.keys, *cache.values))

    def limit_tokens(self, limit_bytes: int) -> int:
        """Returns the tokens of the longest row for which this memory is enough; no row gets more columns from then on."""
        self._cache.most_columns = limit_bytes // self.token_bytes // BLOCK * BLOCK
        return self._cache.most_columns

    def row_bytes(self, tokens: int) -> int:
        """Returns the bytes of a row with this many tokens."""
        return columns_for(tokens, self._cache.most_columns) * self.token_bytes

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

    @cached_property
    def packed_tokens(self) -> int:
        """Tokens of several prompts that `read_together` may take, 0 if the model reads each alone.

        As many as `RowLinear` multiplies in less time than those of each prompt alone; this is not measured for GPUs.
        """
        is_faster = any(isinstance(module, RowLinear) for module in self._model.modules())
        return MOST_ROWS if self.is_grouped and is_faster else 0

    @torch.inference_mode()
    def read_together(
        self,
        chunks: Sequence[Sequence[int]],
        caches: Sequence[PromptCache],
        stack: AdapterStack | None = None,
    ) -> torch.Tensor:
        """Appends tokens to the caches of several prompts; returns the logits (prompts, vocabulary) after each, float32 on the CPU."""
        counts = [len(chunk) for chunk in chunks]
        pack, device = PackedPrompts(caches, counts), self._model.device
        ids = torch.tensor([list(chain.from_iterable(chunks))], device=device)
        positions = torch.tensor([pack.positions], device=device)
        masks = masks_of(self._model.config, positions, pack.width, self._model.dtype)
        last = torch.tensor(list(accumulate(counts)), device=device) - 1
        with self._adapted.applied(stack):
            logits = self._forward(ids, masks, positions, pack, kept=last)
        pack.end_step()
        return logits[0]

    def applied(self, stack: AdapterStack | None) -> AbstractContextManager[None]:
        """Applies adapters to forward passes of the model that others run within the block."""
        return self._adapted.applied(stack)

    def free(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Releases adapters that no row has any more."""
        self._adapted.free(adapters)

    @torch.inference_mode()
    def join(self, prompt: PromptCache, stack: AdapterStack | None = None, *, last: bool = False) -> None:
        """Appends the prompt's sequence, which these adapters have read, as the last row; the last one empties its cache."""
        self._cache.join(prompt, last=last)
        self.stacks.append(stack)

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Frees the row of a finished sequence; the last row takes its number."""
        self._cache.leave(row)
        self.stacks[row] = self.stacks[-1]
        self.stacks.pop()

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int], waiting: Collection[int] = ()) -> torch.Tensor:
        """Appends one token to each row, except to those that wait, and returns the next logits in float32 on the CPU.

        Their shape is (rows, widest vocabulary of the rows); a row's own vocabulary comes first, the rest is minus infinity.
        """
        ids = torch.tensor(token_ids, device=self._model.device)[:, None]
        positions = self._cache.begin_step(self._model.device)
        masks = masks_of(self._model.config, positions, self._cache.width, self._model.dtype)
        with self._adapted.applied_to_rows(self.stacks):
            logits = self._forward(ids, masks, positions, self._cache, kept=1)
        self._cache.end_step(waiting)
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
        self,
        ids: torch.Tensor,
        masks: Masks,
        positions: torch.Tensor,
        cache: Cache,
        *,
        kept: int | torch.Tensor,
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
