"""Difference of two models, tensor by tensor: which tensors differ, by how much, and how much of that is rounding."""

import math
from collections.abc import Iterator

import torch

from services.adapter_tools.blocks import Matrix
from services.adapters.extraction import Extraction, TensorPair
from services.checkpoints.blocks import row_slices
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import UnsupportedFormat
from services.progress import Progress


def changed_tensors(reader: TensorReader, extraction: Extraction, hooks: WriteHooks) -> list[TensorPair]:
    """Returns the tensors that an adapter must hold: those that differ, and the rest of a module that is replaced whole.

    Raises:
        NonFiniteTensor: One of the models holds NaN or infinity.
        UnsupportedFormat: A parameter differs that is not the weight or bias of a module.
    """
    changed: set[str] = set()
    done = 0
    for pair in extraction.tensors:
        hooks.check_canceled()
        hooks.report(Progress("comparing tensors", done, extraction.size_bytes))
        if _differs(reader, pair) or pair.required:
            _check_leaf(pair)
            changed.add(pair.name)
        release(reader, pair)
        done += pair.base.size_bytes + pair.model.size_bytes
    linear = {pair.module for pair in extraction.tensors if pair.low_rank}
    whole = {pair.module for pair in extraction.tensors if pair.name in changed} - linear
    return [pair for pair in extraction.tensors if pair.name in changed or pair.module in whole]


def release(reader: TensorReader, pair: TensorPair) -> None:
    """Releases the pages of both tensors."""
    reader.release(pair.base)
    reader.release(pair.model)


def _differs(reader: TensorReader, pair: TensorPair) -> bool:
    before, after = reader.load(pair.base), reader.load(pair.model)
    if before.shape != after.shape:
        return True
    if before.dtype == after.dtype:
        return not torch.equal(before, after)
    blocks = row_slices(before.shape[0], before[0].numel() if before.dim() > 1 else 1)
    return any(not torch.equal(before[rows].double(), after[rows].double()) for rows in blocks)


def _check_leaf(pair: TensorPair) -> None:
    if pair.leaf not in ("weight", "bias"):
        raise UnsupportedFormat(
            f"{pair.name!r} differs and is not the weight or bias of a module: PEFT has no form for it.",
            "Keep the fine-tuned model, or merge its adapters instead.",
        )


def difference(reader: TensorReader, pair: TensorPair) -> Matrix:
    """Returns fine-tuned minus base of a linear weight, of shape (out, in)."""

    def blocks() -> Iterator[torch.Tensor]:
        before, after = reader.joined(pair.base), reader.joined(pair.model)
        if pair.transposed:
            before, after = before.T, after.T
        for rows in row_slices(*pair.shape):
            yield after[rows].double().sub_(before[rows].double())
        release(reader, pair)

    return Matrix(pair.shape, blocks)


def rounding_norm(reader: TensorReader, pair: TensorPair) -> float:
    """Returns the estimated Frobenius norm of the rounding of the fine-tuned weight.

    Rounding to a spacing u is an error of u / sqrt(12) in the root mean square; u is the dtype's epsilon times the power of two
    below the value.
    """
    after = reader.joined(pair.model)
    epsilon, total = torch.finfo(TORCH_DTYPES[pair.model.dtype]).eps, 0.0
    for rows in row_slices(*after.shape):
        block = after[rows].float()
        spacing = torch.ldexp(torch.full_like(block, epsilon), torch.frexp(block).exponent - 1)
        total += float(spacing[block != 0].double().square().sum())
    release(reader, pair)
    return math.sqrt(total / 12)
