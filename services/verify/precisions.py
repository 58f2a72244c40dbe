"""Comparison of a merge into a base as it is with the merge into the base rounded to 4 bits and back."""

import math
from dataclasses import dataclass, replace

import torch

from services.architectures.checkpoint import Checkpoint
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.kinds.merge import PrecisionDifference
from services.merge import Merged, MergeOptions, changes_of
from services.merge.base_precision import at_precision, rounded_weights
from services.merge.merging import merged_blocks
from services.progress import Progress
from services.verify.norms import module_kind


@dataclass
class _Sums:
    difference: float = 0.0
    original: float = 0.0
    differing: int = 0
    elements: int = 0

    def add(self, original: torch.Tensor, dequantized: torch.Tensor) -> None:
        apart = original.double() - dequantized.double()
        self.difference += float(apart.square().sum())
        self.original += float(original.double().square().sum())
        self.differing += int((original != dequantized).sum())
        self.elements += original.numel()

    def as_result(self) -> PrecisionDifference:
        relative = math.sqrt(self.difference / self.original) if self.original else None
        return PrecisionDifference(
            relative_norm=relative, differing_elements=self.differing, elements=self.elements
        )


def compare_precisions(
    merged: Merged, options: MergeOptions, hooks: WriteHooks
) -> dict[str, PrecisionDifference]:
    """Returns the difference between the merges into both forms of a base that is stored in full, by kind of module.

    Each weight that 4 bits change is merged twice. `relative_norm` is the Frobenius norm of the difference relative to that of
    the merge into the original, computed in float64. Peak memory: three copies of the widest weight in float32.

    Raises:
        UnsupportedOption: bitsandbytes is not installed.
        JobCanceled: The caller has canceled the work.
        NonFiniteTensor: A tensor holds NaN or infinity.
    """
    base = replace(
        merged.base, tensors={n: replace(s, four_bit=None) for n, s in merged.base.tensors.items()}
    )
    dequantized = at_precision(base, "dequantized")
    names = rounded_weights(dequantized)
    found: dict[str, _Sums] = {}
    with TensorReader() as reader:
        for number, name in enumerate(names):
            hooks.check_canceled()
            hooks.report(Progress("comparing precisions", number, len(names), "tensors"))
            sums = found.setdefault(module_kind(name), _Sums())
            sums.add(*(_merged(reader, form, merged, options, name) for form in (base, dequantized)))
    return {kind: sums.as_result() for kind, sums in found.items()}


def _merged(
    reader: TensorReader, base: Checkpoint, merged: Merged, options: MergeOptions, name: str
) -> torch.Tensor:
    """Returns one merged tensor in the base's dtype."""
    source, changes = base.tensors[name], changes_of(merged.adapters, name)
    once = options.rounding == "once"
    return torch.cat(list(merged_blocks(reader, source, changes, TORCH_DTYPES[source.dtype], once=once)))
