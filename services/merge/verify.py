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
        "largest_difference_in_roundings": largest.roundings, "largest_difference_at": largest.name,
        "vocabulary_size": output.config.vocab_size,
        "tokenizer_size": output.vocabulary.size if output.vocabulary else None,
    }  # fmt: skip


class _Largest:
    """The largest difference seen so far."""

    def __init__(self) -> None:
        self.difference = 0.0
        self.roundings = 0.0
        self.name: str | None = None
        self.rows = 0

    def see(self, name: str, difference: float, roundings: float, rows: int) -> None:
        self.rows += rows
        self.difference = max(self.difference, difference)
        if roundings > self.roundings:
            self.roundings, self.name = roundings, name


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
    expected, steps = expected_rows(reader, merged.base, merged.adapters, source.name, rows)
    dtypes = {TORCH_DTYPES[merged.base.tensors[source.name].dtype], TORCH_DTYPES[source.dtype]}
    difference = (found - expected).abs()
    roundings = difference / _rounding(expected, dtypes)
    allowed = float(1 if options.rounding == "once" else max(1, steps)) + len(dtypes) - 1
    largest.see(source.name, float(difference.max()), float(roundings.max()), len(rows))
    if float(roundings.max()) > allowed:
        raise VerificationFailed(
            f"{source.name!r} differs from float64 arithmetic by {float(difference.max()):.3g}, which is "
            f"{float(roundings.max()):.2f} roundings of {source.dtype}; at most {allowed:g} are right",
            "This is a fault of Graftwerk or of this machine: please report it with the job's log.",
        )


def _rounding(values: torch.Tensor, dtypes: set[torch.dtype]) -> torch.Tensor:
    """One unit in the last place at each value, of the coarsest dtype; subnormal numbers have the smallest one's."""
    units = []
    for dtype in dtypes:
        info = torch.finfo(dtype)
        exponent = torch.floor(torch.log2(values.abs().clamp(min=info.smallest_normal)))
        units.append(torch.exp2(exponent) * info.eps)
    return torch.stack(units).amax(0) * (1 + 1e-3)


def expected_rows(
    reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter], name: str, rows: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Rows of one merged tensor in float64 without any rounding, and how many roundings the merge makes."""
    weight, steps = None, 0
    source = base.tensors[name]
    last = max((i for i, item in enumerate(adapters) if name in item.adapter.replaced), default=0)
    for item in adapters[last:]:  # what a later adapter replaces whole does not count
        if name in item.adapter.replaced:
            weight = reader.view(item.adapter.replaced[name])[rows].double()
            steps += 1
        pair = item.adapter.pairs.get(name)
        if pair is not None:
            weight = reader.load(source)[rows].double() if weight is None else weight
            a, b = reader.view(pair.a).double(), reader.view(pair.b).double()
            delta = (a[:, rows].T @ b.T) if pair.transposed else b[rows] @ a
            weight = weight + delta * (pair.scaling * item.scale)
            steps += 1
    return (reader.load(source)[rows].double() if weight is None else weight), steps
