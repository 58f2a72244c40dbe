"""The check of a finished merge: what lies on the disk is what was computed, and what was computed is right.

Three proofs: the output is read again by its headers and every tensor's digest compared with what was written; sampled rows of
every changed tensor are computed again in float64 and must lie within the rounding of the output's dtype; the
configuration and the tokenizer must load and agree with the tensors.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from services.checkpoints.huggingface import Watch
from services.checkpoints.reading import TORCH_DTYPES, TensorReader
from services.checkpoints.writer import tensor_bytes
from services.errors import VerificationFailed
from services.formats.checkpoint import Checkpoint, TensorSource, read_checkpoint
from services.merge import Merged, MergeOptions, ScaledAdapter
from services.progress import Progress

SAMPLED_ROWS = 16
"""Rows of each changed tensor that are computed again, spread evenly, first and last among them."""


def verify_merge(merged: Merged, options: MergeOptions, watch: Watch) -> dict[str, Any]:
    """The report of the check.

    Raises:
        VerificationFailed: which tensor, what was found, what was expected.
    """
    output = read_checkpoint(merged.written.folder)
    if set(output.tensors) != set(merged.written.digests):
        raise VerificationFailed("the output's headers do not list the tensors that were written")
    largest = _Largest()
    total, done = output.size_bytes, 0
    with TensorReader() as reader:
        for source in output.tensors.values():
            watch.check_canceled()
            _check_digest(reader, merged, source)
            _check_rows(reader, merged, options, source, largest)
            reader.release(source)
            done += source.size_bytes
            watch.report(Progress("verifying tensors", done, total))
    return {
        "passed": True, "tensors": len(output.tensors), "digests_equal": len(output.tensors),
        "rows_recomputed": largest.rows, "largest_difference": largest.difference,
        "largest_share_of_tolerance": largest.share, "largest_difference_at": largest.name,
        "vocabulary_size": output.config.vocab_size,
        "tokenizer_size": output.vocabulary.size if output.vocabulary else None,
    }  # fmt: skip


class _Largest:
    """The largest difference seen so far."""

    def __init__(self) -> None:
        self.difference = 0.0
        self.share = 0.0
        self.name: str | None = None
        self.rows = 0

    def see(self, name: str, difference: float, share: float, rows: int) -> None:
        self.rows += rows
        self.difference = max(self.difference, difference)
        if share > self.share:
            self.share, self.name = share, name


def _check_digest(reader: TensorReader, merged: Merged, source: TensorSource) -> None:
    found = hashlib.sha256(tensor_bytes(reader.view(source.parts[0]))).hexdigest()
    if found != merged.written.digests[source.name]:
        raise VerificationFailed(
            f"{source.name!r} on the disk has SHA-256 {found}, written was {merged.written.digests[source.name]}",
            "The disk or the memory of this machine may be faulty: check them, then merge again.",
        )


def _check_rows(
    reader: TensorReader, merged: Merged, options: MergeOptions, source: TensorSource, largest: _Largest
) -> None:
    rows = (
        torch.linspace(0, source.shape[0] - 1, min(SAMPLED_ROWS, source.shape[0]), dtype=torch.float64)
        .round()
        .long()
    )
    found = reader.view(source.parts[0])[rows].double()
    expected, tolerance = expected_rows(reader, merged.base, merged.adapters, source.name, rows)
    tolerance = tolerance + rounding(expected, TORCH_DTYPES[source.dtype])
    difference = (found - expected).abs()
    share = difference / tolerance
    largest.see(source.name, float(difference.max()), float(share.max()), len(rows))
    if not float(share.max()) <= 1:
        raise VerificationFailed(
            f"{source.name!r} differs from float64 arithmetic by {float(difference.max()):.3g}, which is "
            f"{float(share.max()):.2f} times what rounding to {options.dtype or source.dtype} explains",
            "This is a fault of Graftwerk or of this machine: please report it with the job's log.",
        )


def rounding(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One unit in the last place of `dtype` at each value, the smallest normal number's at least."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(values.abs().clamp(min=info.smallest_normal)))) * info.eps


def expected_rows(
    reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter], name: str, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one merged tensor in float64 without any rounding, and how far rounding may take the merge from them.

    Each step may be off by one rounding of the base's dtype at the value it reached, and the product by the float32 error
    of a sum of r terms, r * eps * sum|B||A| (Higham 2002, eq. 3.5).
    """
    source = base.tensors[name]
    dtype = TORCH_DTYPES[source.dtype]
    last = max((i for i, item in enumerate(adapters) if name in item.adapter.replaced), default=None)
    used = adapters if last is None else adapters[last:]  # what a later adapter replaces whole does not count
    whole = reader.load(source) if last is None else reader.view(used[0].adapter.replaced[name])
    weight = whole[rows].double()
    tolerance = rounding(weight, dtype)
    for item in used:
        pair = item.adapter.pairs.get(name)
        if pair is not None:
            a, b = reader.view(pair.a).double(), reader.view(pair.b).double()
            left, right = (a[:, rows].T, b.T) if pair.transposed else (b[rows], a)
            scaling = pair.scaling * item.scale
            delta = left @ right * scaling
            weight = weight + delta
            tolerance = (
                tolerance + rounding(weight, dtype) + (rounding(delta, dtype) if pair.transposed else 0)
            )
            tolerance += (
                left.abs() @ right.abs() * abs(scaling) * (pair.rank + 2) * torch.finfo(torch.float32).eps
            )
    return weight, tolerance
