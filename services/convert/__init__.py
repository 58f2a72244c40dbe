"""Converting: a checkpoint of one layout becomes a model folder of another, every tensor accounted for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.checkpoints.huggingface import MAX_SHARD_BYTES, Layout, Watch, WrittenModel, write_huggingface
from services.checkpoints.reading import TORCH_DTYPES, TensorReader, check_finite
from services.checkpoints.writer import TensorPlan
from services.formats.checkpoint import Checkpoint, read_checkpoint


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert: `dtype` is a safetensors code ("F16") or None to keep each tensor's own."""

    dtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    instruct: bool = False


def convert(
    source: Path, target: Path, options: ConvertOptions | None = None, watch: Watch | None = None
) -> tuple[Checkpoint, WrittenModel]:
    """Writes the checkpoint in `source` as a Hugging Face model into the empty folder `target`.

    Peak memory: two of the largest tensors that need joining, permuting or casting; others are copied from
    mapped pages.

    Raises:
        Whatever `read_checkpoint` refuses; NonFiniteTensor, ConfigMismatch, DiskFull, JobCanceled.
    """
    options, watch = options or ConvertOptions(), watch or Watch()
    checkpoint = read_checkpoint(source, instruct=options.instruct)
    plans = [
        TensorPlan(name, options.dtype or tensor.dtype, tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    ]
    layout = Layout(checkpoint.config, plans, checkpoint.tokenizer_folder, options.max_shard_bytes)
    with TensorReader() as reader:

        def produce(name: str) -> Iterator[torch.Tensor]:
            source = checkpoint.tensors[name]
            yield cast(name, reader.load(source), options.dtype)
            reader.release(source)

        written = write_huggingface(target, layout, produce, watch)
    return checkpoint, written


def cast(name: str, tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    """A tensor in the requested dtype; what overflows there is refused.

    Raises:
        NonFiniteTensor: a value is too large for the dtype.
    """
    if dtype is None or tensor.dtype == TORCH_DTYPES[dtype]:
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
    }
