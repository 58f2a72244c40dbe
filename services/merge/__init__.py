"""Merging: adapters are added to a base model in order, tensor by tensor, and every adapter tensor is used once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from services.checkpoints.huggingface import MAX_SHARD_BYTES, Layout, Watch, WrittenModel, write_huggingface
from services.checkpoints.reading import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.writer import TensorPlan
from services.errors import InternalError
from services.formats.adapter import Adapter, read_adapter
from services.formats.checkpoint import Checkpoint, TensorSource, read_checkpoint
from services.formats.config import ModelConfig
from services.formats.stack import Stack, check_stack
from services.merge.delta import Change, changed_blocks


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge; `rounding` is "per_adapter" (as PEFT, one after another) or "once"."""

    rounding: Literal["per_adapter", "once"] = "per_adapter"
    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES


@dataclass(frozen=True, slots=True)
class ScaledAdapter:
    """An adapter and the factor on its changes; replaced tensors are not scaled."""

    adapter: Adapter
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Merged:
    """What went in and what came out."""

    base: Checkpoint
    adapters: Sequence[ScaledAdapter]
    stack: Stack
    written: WrittenModel
    accounts: Sequence[Mapping[str, Any]]


def merge(
    base: Path,
    adapters: Sequence[tuple[str, Path, float]],
    target: Path,
    *,
    options: MergeOptions | None = None,
    watch: Watch | None = None,
) -> Merged:
    """Merges adapters (name, folder, scale) into the base model in `base` and writes it into the empty folder `target`.

    Peak memory: a few blocks of rows (delta.BLOCK_ELEMENTS); from an original base also two of its joined tensors.

    Raises:
        Whatever `read_checkpoint`, `read_adapter` and `check_stack` refuse; NonFiniteTensor, DiskFull, JobCanceled.
    """
    options, watch = options or MergeOptions(), watch or Watch()
    checkpoint = read_checkpoint(base)
    scaled = [ScaledAdapter(read_adapter(folder, name), scale) for name, folder, scale in adapters]
    stack = check_stack(checkpoint, [item.adapter for item in scaled])
    config = merged_config(checkpoint, stack)
    plans = merged_plans(checkpoint, scaled, options.dtype)
    layout = Layout(config, plans, stack.tokenizer_folder, options.max_shard_bytes)
    accounts = _Accounts(scaled)
    with TensorReader() as reader:

        def produce(name: str) -> Iterator[torch.Tensor]:
            yield from merged_blocks(reader, checkpoint.tensors[name], accounts.take(name), options)

        written = write_huggingface(target, layout, produce, watch)
    return Merged(checkpoint, scaled, stack, written, accounts.closed())


def merged_config(base: Checkpoint, stack: Stack) -> ModelConfig:
    """The base's configuration with the rows of the merged embeddings."""
    return replace(base.config, vocab_size=stack.vocabulary_rows)


def merged_plans(
    base: Checkpoint, adapters: Sequence[ScaledAdapter], dtype: str | None
) -> list[TensorPlan]:  # fmt: skip
    """Name, dtype and shape of every merged tensor: the base's dtype, the last replacing adapter's shape."""
    plans = []
    for name, source in base.tensors.items():
        shapes = [item.adapter.replaced[name].shape for item in adapters if name in item.adapter.replaced]
        plans.append(TensorPlan(name, dtype or source.dtype, shapes[-1] if shapes else source.shape))
    return plans


def merged_blocks(
    reader: TensorReader, source: TensorSource, changes: Sequence[Change], options: MergeOptions
) -> Iterator[torch.Tensor]:
    """One tensor of the merged model, as blocks of rows in order.

    Raises:
        NonFiniteTensor: the base, an adapter or the sum holds NaN or infinity.
    """
    base = reader.load(source)
    dtype = TORCH_DTYPES[options.dtype] if options.dtype else base.dtype
    blocks = (
        changed_blocks(reader, base, changes, once=options.rounding == "once") if changes else iter([base])
    )
    for block in blocks:
        result = block.to(dtype)
        if result is not base:
            check_finite(source.name, result)
        yield result
    reader.release(source)
    for change in changes:
        for header in change.headers:
            reader.release_header(header)


class _Accounts:
    """Which adapter tensors have been used: each exactly once, or the merge fails."""

    def __init__(self, adapters: Sequence[ScaledAdapter]) -> None:
        self._adapters = adapters
        self._taken: list[set[str]] = [set() for _ in adapters]

    def take(self, name: str) -> list[Change]:
        """What the adapters change of one tensor, in order."""
        changes = []
        for item, taken in zip(self._adapters, self._taken, strict=True):
            pair, replaced = item.adapter.pairs.get(name), item.adapter.replaced.get(name)
            if pair is not None or replaced is not None:
                taken.add(name)
                changes.append(Change(item.adapter.name, item.scale, pair, replaced))
        return changes

    def closed(self) -> list[dict[str, Any]]:
        """The account of each adapter.

        Raises:
            InternalError: a tensor was not used.
        """
        accounts = []
        for item, taken in zip(self._adapters, self._taken, strict=True):
            left = {*item.adapter.pairs, *item.adapter.replaced} - taken
            if left:
                raise InternalError(f"adapter {item.adapter.name}: {sorted(left)[0]!r} was not used")
            accounts.append({
                "adapter": item.adapter.name, "scale": item.scale, "tensors": item.adapter.tensor_count,
                "merged": len(item.adapter.pairs), "replaced": len(item.adapter.replaced),
            })  # fmt: skip
        return accounts
