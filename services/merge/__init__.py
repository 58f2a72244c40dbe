"""Merging: adapters are added to a base model in order, tensor by tensor, and every adapter tensor is used once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from services.adapters.adapter import Adapter, read_adapter
from services.adapters.stack import Stack, check_scales, check_stack, merged_tensors
from services.architectures.checkpoint import Checkpoint, TensorSource, read_checkpoint
from services.architectures.output_spec import OutputFormat, OutputSpec, plan_output
from services.checkpoints.blocks import source_blocks
from services.checkpoints.huggingface_writer import MAX_SHARD_BYTES, FolderSpec, WriteHooks, WrittenModel
from services.checkpoints.journal import stamps, work_identity
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.writers import write_model
from services.errors import InternalError
from services.merge.delta import Change, changed_blocks
from services.merge.devices import CPU, device_name, exact_products
from services.tokenizers import check_tokenizer


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge; `rounding` is "per_adapter" (as PEFT, one after another) or "once".

    `ranks` counts for Meta's layout, None: as many as the base has; `template` for GGUF's Modelfile; `device`, "cpu" or
    "cuda:N", multiplies and adds. A CPU gives PEFT's bits.
    """

    rounding: Literal["per_adapter", "once"] = "per_adapter"
    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    output_format: OutputFormat = "huggingface"
    ranks: int | None = None
    template: str | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class ScaledAdapter:
    """An adapter and the factor on its changes; replaced tensors are not scaled."""

    adapter: Adapter
    scale: float = 1.0


def changes_of(adapters: Sequence[ScaledAdapter], name: str) -> list[Change]:
    """What adapters change of one tensor, in order; those that leave it alone are left out."""
    return [change for item in adapters if (change := Change.of(item.adapter, item.scale, name))]


def release_tensor(reader: TensorReader, source: TensorSource, changes: Sequence[Change]) -> None:
    """Lets go the pages of a base's tensor and of what changes it."""
    reader.release(source)
    for change in changes:
        for header in change.headers:
            reader.release_header(header)


@dataclass(frozen=True, slots=True)
class Merged:
    """What went in and what came out; `device` says for people what computed."""

    base: Checkpoint
    adapters: Sequence[ScaledAdapter]
    stack: Stack
    output: OutputSpec
    written: WrittenModel
    accounts: Sequence[Mapping[str, Any]]
    device: str = "cpu"


def merge(
    base: Path,
    adapters: Sequence[tuple[str, Path, float]],
    target: Path,
    *,
    options: MergeOptions | None = None,
    watch: WriteHooks | None = None,
) -> Merged:
    """Merges adapters (name, folder, scale) into the base model in `base` and writes it into the empty folder `target`.

    With a journal (`WriteHooks`) `target` may hold what a try that was killed has left: what it finished is kept.

    Peak memory: a few blocks of rows (delta.BLOCK_ELEMENTS); from an original base also two of its joined tensors.

    Raises:
        Whatever `read_checkpoint`, `read_adapter`, `check_stack` and `check_output` refuse; NonFiniteTensor, DiskFull, JobCanceled.
    """
    options, watch = options or MergeOptions(), watch or WriteHooks()
    checkpoint = read_checkpoint(base)
    scaled = [ScaledAdapter(read_adapter(folder, name), scale) for name, folder, scale in adapters]
    stack = check_stack(checkpoint, [item.adapter for item in scaled])
    check_scales([(item.adapter, item.scale) for item in scaled])
    check_tokenizer(stack.tokenizer_folder)
    output = merged_output(checkpoint, scaled, stack, options)
    changes = [(item.scale, stamps([item.adapter.weights, item.adapter.config_file])) for item in scaled]
    layout = FolderSpec(
        output, stack.tokenizer_folder, options.max_shard_bytes, options.template,
        work_identity("merge", options, output.config, output.tensors, stamps(checkpoint.weight_files), changes),
    )  # fmt: skip
    accounts = _Accounts(scaled)
    device = torch.device(options.device)
    with TensorReader() as reader, exact_products(device):

        def produce(name: str) -> Iterator[torch.Tensor]:
            dtype = TORCH_DTYPES[output.tensors[name][0]]
            changes = accounts.take(name)
            once = options.rounding == "once"
            source = checkpoint.tensors[name]
            yield from merged_blocks(reader, source, changes, dtype, once=once, device=device)

        written = write_model(target, layout, produce, watch)
    for name in written.kept:
        accounts.take(name)
    return Merged(checkpoint, scaled, stack, output, written, accounts.closed(), device_name(device))


def merged_output(
    base: Checkpoint, adapters: Sequence[ScaledAdapter], stack: Stack, options: MergeOptions
) -> OutputSpec:
    """What a merge writes: the base's dtypes, the last replacing adapter's shapes, the vocabulary of the stack."""
    return plan_output(
        options.output_format, replace(base.config, vocab_size=stack.vocabulary_rows),
        merged_tensors(base, [item.adapter for item in adapters]), vocabulary=stack.vocabulary,
        dtype=options.dtype, ranks=options.ranks or base.ranks,
    )  # fmt: skip


def merged_blocks(
    reader: TensorReader,
    source: TensorSource,
    changes: Sequence[Change],
    dtype: torch.dtype,
    *,
    once: bool,
    device: torch.device = CPU,
) -> Iterator[torch.Tensor]:
    """One tensor of the merged model, as blocks of rows in order.

    Raises:
        NonFiniteTensor: the base, an adapter or the sum holds NaN or infinity.
    """
    blocks = (
        changed_blocks(reader, reader.load(source), changes, once=once, device=device)
        if changes
        else source_blocks(reader, source)
    )
    for block in blocks:
        result = block.to(dtype)
        if changes or result is not block:
            check_finite(source.name, result)
        yield result
    release_tensor(reader, source, changes)


class _Accounts:
    """Which adapter tensors have been used: each exactly once, or the merge fails."""

    def __init__(self, adapters: Sequence[ScaledAdapter]) -> None:
        self._adapters = adapters
        self._taken: list[set[str]] = [set() for _ in adapters]

    def take(self, name: str) -> list[Change]:
        """What the adapters change of one tensor, in order."""
        changes = []
        for item, taken in zip(self._adapters, self._taken, strict=True):
            change = Change.of(item.adapter, item.scale, name)
            if change is not None:
                taken.add(name)
                changes.append(change)
        return changes

    def closed(self) -> list[dict[str, Any]]:
        """The account of each adapter.

        Raises:
            InternalError: a tensor was not used.
        """
        accounts = []
        for item, taken in zip(self._adapters, self._taken, strict=True):
            left = item.adapter.changed - taken
            if left:
                raise InternalError(f"adapter {item.adapter.name}: {sorted(left)[0]!r} was not used")
            accounts.append({
                "adapter": item.adapter.name, "scale": item.scale, "tensors": item.adapter.tensor_count,
                "merged": len(item.adapter.pairs) + len(item.adapter.layers), "replaced": len(item.adapter.replaced),
                "rows_replaced": sum(len(rows.indices) for rows in item.adapter.rows.values()),
            })  # fmt: skip
        return accounts
