"""Expected values of a merge, in float64 and without any rounding, and the bound on what rounding may add to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.adapters.stack import Stack
from services.adapters.tuners import TokenRows
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import OutputFormat, OutputSpec
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.merge import MergeOptions, ScaledAdapter, changes_of, merged_output, scaled_stack
from services.merge.base_precision import BasePrecision, at_precision
from services.merge.factors import pair_factors


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMerge:
    """The merge that a stored model is said to be: a base and adapters, in this order.

    `once` says that it was rounded once after all adapters.
    """

    base: Checkpoint
    adapters: Sequence[ScaledAdapter]
    stack: Stack
    output: OutputSpec
    once: bool = False


def expected_merge(
    base: Path,
    adapters: Sequence[tuple[str, Path, float]],
    output_format: OutputFormat,
    base_precision: BasePrecision = "original",
) -> ExpectedMerge:
    """Returns the merge of a base and adapters (name, folder, scale) in a format.

    Errors of `read_checkpoint`, `read_adapter` and `check_stack` are raised as they are: there can be no such merge.
    """
    found = read_checkpoint(base, dequantized=base_precision == "dequantized")
    stack, scaled = scaled_stack(at_precision(found, base_precision), adapters)
    options = MergeOptions(output_format=output_format)
    output = merged_output(stack.base, scaled, stack, options)
    return ExpectedMerge(base=stack.base, adapters=scaled, stack=stack, output=output)


def rounding(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns one unit in the last place of `dtype` at each value, at least that of the smallest normal number."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(values.abs().clamp(min=info.smallest_normal)))) * info.eps


def expected_rows(
    reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter], name: str, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of one merged tensor in float64 without any rounding, and the tolerance of each value.

    Args:
        name: Tensor of shape (out, in), under Hugging Face's name.
        rows: Indices of the rows, int64 of shape (rows,).

    Returns:
        Two tensors of shape (rows, in). Each step of the merge may be off by one rounding of the base's dtype at the value it reached, and the product by the float32 error
    of a sum of r terms, r * eps * sum|B||A| (Higham 2002, eq. 3.5).
    """
    source = base.tensors[name]
    dtype = TORCH_DTYPES[source.dtype]
    changes = changes_of(adapters, name)
    last = max((i for i, change in enumerate(changes) if change.replaced is not None), default=0)
    used = changes[last:]  # a tensor that a later adapter replaces whole does not count
    replaced = used[0].replaced if used else None
    whole = reader.joined(source) if replaced is None else reader.view(replaced)
    weight = whole[rows].double()
    tolerance = rounding(weight, dtype)
    for change in used:
        if change.rows is not None:
            weight = _with_rows(reader, change.rows, rows, weight)
        pair = change.pair
        if pair is not None:
            a, b = (half.double() for half in pair_factors(reader, pair))
            left, right = (a[:, rows].T, b.T) if pair.transposed else (b[rows], a)
            scaling = pair.scaling * change.scale
            delta = left @ right * scaling
            weight = weight + delta
            tolerance = tolerance + rounding(weight, dtype) + (rounding(delta, dtype) if pair.rounded else 0)
            tolerance += (
                left.abs() @ right.abs() * abs(scaling) * (pair.rank + 2) * torch.finfo(torch.float32).eps
            )
    return weight, tolerance


def _with_rows(
    reader: TensorReader, token_rows: TokenRows, rows: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Returns the rows of a weight, with those that the adapter has trained in their place."""
    trained = dict(zip(token_rows.indices, reader.view(token_rows.rows).double(), strict=True))
    return torch.stack([trained.get(int(row), kept) for row, kept in zip(rows, weight, strict=True)])
