"""Merge: each tensor of the base is read, changed by the adapters in order, cast and written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from services.adapters.stack import Stack, check_scales, merged_tensors
from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import OutputFormat, OutputSpec, plan_output
from services.checkpoints.blocks import source_blocks
from services.checkpoints.folder_spec import MAX_SHARD_BYTES, FolderSpec, WrittenModel
from services.checkpoints.importance import ImportanceMatrix
from services.checkpoints.journal import stamps, work_identity
from services.checkpoints.model_check import check_class
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.writers import write_model
from services.files.gguf_origin import GgufOrigin
from services.kinds.merge import AdapterAccount
from services.merge.accounts import ChangeLedger, ScaledAdapter, release_tensor, scaled_stack
from services.merge.base_precision import BasePrecision, at_precision
from services.merge.delta import Change, changed_blocks
from services.merge.devices import CPU, device_name, exact_products
from services.tokenizers import check_tokenizer


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Options of a merge. Their `repr` identifies the work in journals and manifests: renaming a field disowns old ones.

    Attributes:
        rounding: "per_adapter" (as PEFT merges one after another) or "once".
        dtype: Code of the dtype ("F16", for GGUF also "Q8_0"); None keeps each tensor's own.
        max_shard_bytes: Largest size of a shard in Hugging Face's layout.
        output_format: Layout that is written.
        ranks: Number of ranks of Meta's layout; None keeps the base's.
        template: Name of a prompt template for GGUF's metadata and Modelfile.
        device: "cpu" or "cuda:N", which multiplies and adds. A CPU gives PEFT's bits.
        base_precision: "original", or "dequantized": the base's linear weights are rounded to 4 bits and back first. Absent from the
            `repr`, which journals of versions without it have; `identity` is the whole.
        origin: Name, licence and base models for GGUF's metadata. Absent from the `repr`: no tensor depends on it.
        importance: Importance matrix of a GGUF output. Absent from the `repr` like `base_precision`.
    """

    rounding: Literal["per_adapter", "once"] = "per_adapter"
    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    output_format: OutputFormat = "huggingface"
    ranks: int | None = None
    template: str | None = None
    device: str = "cpu"
    base_precision: BasePrecision = field(default="original", repr=False)
    origin: GgufOrigin | None = field(default=None, repr=False)
    importance: ImportanceMatrix | None = field(default=None, repr=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that distinguishes the work of these options from that of others, by its `repr`."""
        precision = () if self.base_precision == "original" else (self.base_precision,)
        importance = () if self.importance is None else (self.importance.identity,)
        return (self, *precision, *importance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Inputs and output of a merge; `device` is the display name of the device that was used."""

    base: Checkpoint
    adapters: Sequence[ScaledAdapter]
    stack: Stack
    output: OutputSpec
    written: WrittenModel
    accounts: Sequence[AdapterAccount]
    device: str = "cpu"


def merge(
    base: Path,
    adapters: Sequence[tuple[str, Path, float]],
    target: Path,
    *,
    options: MergeOptions | None = None,
    hooks: WriteHooks | None = None,
) -> Merged:
    """Merges adapters (name, folder, scale) into the base model in `base` and writes it into the empty folder `target`.

    With a journal (`WriteHooks`) `target` may hold the files of a killed run, whose finished tensors are reused. Errors of
    `read_checkpoint`, `read_adapter`, `check_stack` and `check_output` are raised as they are.

    Peak memory: a few blocks of rows (delta.BLOCK_ELEMENTS); from an original base also two of its joined tensors; for a
    dequantized base two tensors and three copies of each in float32.

    Raises:
        NonFiniteTensor: The base, an adapter or a sum holds NaN or infinity.
        UnsupportedOption: A dequantized base needs bitsandbytes, which is not installed.
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
    """
    options, hooks = options or MergeOptions(), hooks or WriteHooks()
    dequantized = options.base_precision == "dequantized"
    checkpoint = at_precision(read_checkpoint(base, dequantized=dequantized), options.base_precision)
    stack, scaled = scaled_stack(checkpoint, adapters)
    checkpoint = stack.base
    check_scales([(item.adapter, item.scale) for item in scaled])
    check_class(checkpoint)
    check_tokenizer(stack.tokenizer_folder)
    output = merged_output(checkpoint, scaled, stack, options)
    changes = [(item.scale, stamps([item.adapter.weights, item.adapter.config_file])) for item in scaled]
    spec = FolderSpec(
        output=output, base_folder=checkpoint.folder, tokenizer_folder=stack.tokenizer_folder, max_shard_bytes=options.max_shard_bytes,
        template=options.template, origin=options.origin, importance=options.importance,
        identity=work_identity(
            "merge", *options.identity, output.config, output.tensors, stamps(checkpoint.weight_files), changes
        ),
    )  # fmt: skip
    ledger = ChangeLedger(scaled)
    device = torch.device(options.device)
    with TensorReader() as reader, exact_products(device):

        def produce(name: str) -> Iterator[torch.Tensor]:
            dtype = TORCH_DTYPES[output.tensors[name][0]]
            changes = ledger.use(name)
            once = options.rounding == "once"
            source = checkpoint.tensors[name]
            yield from merged_blocks(reader, source, changes, dtype, once=once, device=device)

        written = write_model(target, spec, produce, hooks)
    for name in written.reused:
        ledger.use(name)
    return Merged(
        base=checkpoint, adapters=scaled, stack=stack, output=output, written=written, accounts=ledger.accounts(),
        device=device_name(device),
    )  # fmt: skip


def merged_output(
    base: Checkpoint, adapters: Sequence[ScaledAdapter], stack: Stack, options: MergeOptions
) -> OutputSpec:
    """Returns the output of a merge: the base's dtypes, the last replacing adapter's shapes, the vocabulary of the stack."""
    return plan_output(
        options.output_format, replace(base.config, vocab_size=stack.vocabulary_rows),
        merged_tensors(base, [item.adapter for item in adapters]), vocabulary=stack.vocabulary,
        dtype=options.dtype, ranks=options.ranks or base.ranks, has_imatrix=options.importance is not None,
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
    """Yields one tensor of the merged model in `dtype`, as blocks of rows in order.

    Args:
        once: Round once after all changes instead of after each.

    Raises:
        NonFiniteTensor: The base, an adapter or the sum holds NaN or infinity.
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
