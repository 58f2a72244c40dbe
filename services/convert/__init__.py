"""Converting: a checkpoint of one layout becomes a model folder of another, every tensor accounted for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.architectures.checkpoint import Checkpoint, read_checkpoint
from services.architectures.output_spec import OutputFormat, plan_output
from services.checkpoints.blocks import source_blocks
from services.checkpoints.huggingface_writer import MAX_SHARD_BYTES, FolderSpec, WriteHooks, WrittenModel
from services.checkpoints.journal import stamps, work_identity
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.writers import write_model
from services.tokenizers import check_tokenizer


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert: `dtype` is a code ("F16", for GGUF also "Q8_0") or None to keep each tensor's own.

    `ranks` counts for Meta's layout, None: as many as the source has; `template` for GGUF's Modelfile.
    """

    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    instruct: bool = False
    output_format: OutputFormat = "huggingface"
    ranks: int | None = None
    template: str | None = None


def convert(
    source: Path, target: Path, options: ConvertOptions | None = None, watch: WriteHooks | None = None
) -> tuple[Checkpoint, WrittenModel]:
    """Writes the checkpoint in `source` in another layout into the empty folder `target`.

    With a journal (`WriteHooks`) `target` may hold what a try that was killed has left: what it finished is kept.

    Peak memory: a few blocks of rows (blocks.BLOCK_ELEMENTS), whatever is joined, permuted or cast.

    Raises:
        Whatever `read_checkpoint` and `check_output` refuse; NonFiniteTensor, ConfigMismatch, DiskFull, JobCanceled.
    """
    options, watch = options or ConvertOptions(), watch or WriteHooks()
    checkpoint = read_checkpoint(source, instruct=options.instruct)
    check_tokenizer(checkpoint.tokenizer_folder)
    output = plan_output(
        options.output_format, checkpoint.config, checkpoint.stored, vocabulary=checkpoint.vocabulary,
        dtype=options.dtype, ranks=options.ranks or checkpoint.ranks,
    )  # fmt: skip
    layout = FolderSpec(
        output, checkpoint.tokenizer_folder, options.max_shard_bytes, options.template,
        work_identity("convert", options, output.config, output.tensors, stamps(checkpoint.weight_files)),
    )  # fmt: skip
    with TensorReader() as reader:

        def produce(name: str) -> Iterator[torch.Tensor]:
            for block in source_blocks(reader, checkpoint.tensors[name]):
                yield cast(name, block, output.tensors[name][0])

        written = write_model(target, layout, produce, watch)
    return checkpoint, written


def cast(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """A block of a tensor in the requested dtype; what overflows there is refused.

    Raises:
        NonFiniteTensor: a value is too large for the dtype.
    """
    if tensor.dtype == TORCH_DTYPES[dtype]:
        return tensor
    converted = tensor.to(TORCH_DTYPES[dtype])
    check_finite(name, converted)
    return converted


def summarize(checkpoint: Checkpoint, written: WrittenModel) -> dict[str, Any]:
    """The figures of a conversion, for its job's result."""
    return {
        "bytes_read": checkpoint.size_bytes,
        "bytes_written": written.size_bytes,
        "tensors": len(written.plans),
        "dropped": list(checkpoint.dropped),
        "ranks": checkpoint.ranks,
        "resumed": written.resumed,
    }
