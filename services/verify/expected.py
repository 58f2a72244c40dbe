"""Expected values of a merge, in float64 and without any rounding, and the bound on what rounding may add to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.adapters.lora_tensors import LoraPair
from services.adapters.stack import Stack
from services.adapters.tuners import TokenRows
from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import OutputFormat, OutputSpec
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.merge import MergeOptions, ScaledAdapter, changes_of, merged_output, scaled_stack
from services.merge.base_precision import BasePrecision, at_precision
from services.merge.delta import Change
from services.merge.factors import pair_factors


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMerge:
    """The merge that a stored model is said to be: a base and adapters, in this order.

    `once` says that it was rounded once after all adapters, and not after each; None that this is not known.
    """

    base: Checkpoint
    adapters: Sequence[ScaledAdapter]
    stack: Stack
    output: OutputSpec
    once: bool | None = None

    @property
    def roundings(self) -> tuple[bool, ...]:
        """The values that `once` may have."""
        return (False, True) if self.once is None else (self.once,)


@dataclass(frozen=True, slots=True)
class ExpectedRows:
    """Rows of one merged tensor in float64 without any rounding, the tolerance of each value, and each adapter's change.

    `values` and `tolerance` have shape (rows, in), and so has each of the `deltas`, which are by adapter.
    """

    values: torch.Tensor
    tolerance: torch.Tensor
    deltas: Sequence[tuple[str, torch.Tensor]]


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
) -> ExpectedRows:
    """Returns rows of one merged tensor.

    Each step of the merge may be off by one rounding of the base's dtype at the value it reached, and the product by the
    float32 error of a sum of r terms, r * eps * sum|B||A| (Higham 2002, eq. 3.5).

    Args:
        name: Tensor of shape (out, in), under Hugging Face's name.
        rows: Indices of the rows, int64 of shape (rows,).
    """
    source = base.tensors[name]
    dtype = TORCH_DTYPES[source.dtype]
    used = used_changes(changes_of(adapters, name))
    weight = whole_weight(reader, source, used)[rows].double()
    tolerance, deltas = rounding(weight, dtype), []
    for change in used:
        if change.rows is not None:
            weight = with_rows(reader, change.rows, rows, weight)
        pair = change.pair
        if pair is not None:
            left, right = (half.double() for half in pair_halves(reader, pair, rows))
            scaling = pair.scaling * change.scale
            delta = left @ right * scaling
            deltas.append((change.adapter, delta))
            weight = weight + delta
            tolerance = tolerance + rounding(weight, dtype) + (rounding(delta, dtype) if pair.rounded else 0)
            tolerance += (
                left.abs() @ right.abs() * abs(scaling) * (pair.rank + 2) * torch.finfo(torch.float32).eps
            )
    return ExpectedRows(weight, tolerance, deltas)


def used_changes(changes: Sequence[Change]) -> Sequence[Change]:
    """Returns the changes that count: a tensor that a later adapter replaces whole does not."""
    last = max((i for i, change in enumerate(changes) if change.replaced is not None), default=0)
    return changes[last:]


def whole_weight(reader: TensorReader, source: TensorSource, used: Sequence[Change]) -> torch.Tensor:
    """Returns the tensor that the changes start from: the base's, or the one that replaces it."""
    replaced = used[0].replaced if used else None
    return reader.joined(source) if replaced is None else reader.view(replaced)


def pair_halves(
    reader: TensorReader, pair: LoraPair, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two matrices whose product is the change of some rows of a weight, without its scale."""
    a, b = pair_factors(reader, pair)
    return (a[:, rows].T, b.T) if pair.transposed else (b[rows], a)


def with_rows(
    reader: TensorReader, token_rows: TokenRows, rows: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Returns the rows of a weight, with those that the adapter has trained in their place."""
    trained = dict(zip(token_rows.indices, reader.view(token_rows.rows).to(weight.dtype), strict=True))
    return torch.stack([trained.get(int(row), kept) for row, kept in zip(rows, weight, strict=True)])
