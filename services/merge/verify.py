"""The check of a finished merge: what lies on the disk is what was computed, and what was computed is right.

Three proofs: the output is read again by its headers and every tensor's digest compared with what was written; sampled rows of
every changed tensor are computed again in float64 and must lie within the rounding of the output's dtype; the
configuration and the tokenizer must load and agree with the tensors.
"""

from collections.abc import Sequence
from typing import Any

import torch

from services.checkpoints.huggingface import Watch
from services.checkpoints.reading import TORCH_DTYPES, TensorReader
from services.checkpoints.stored import StoredTensor, read_stored
from services.errors import VerificationFailed
from services.formats.checkpoint import Checkpoint
from services.merge import Merged, MergeOptions, ScaledAdapter
from services.merge.delta import Change, changed_blocks
from services.merge.peft_layers import layer_model
from services.progress import Progress

LAYER_TOLERANCE = 1e-5
"""What a layer's forward pass in float32 may differ from its merge, relative to the largest value: orthogonal tuners solve
linear systems."""

SAMPLED_ROWS = 16
"""Rows of each changed tensor that are computed again, spread evenly, first and last among them."""


def verify_merge(merged: Merged, options: MergeOptions, watch: Watch) -> dict[str, Any]:
    """The report of the check.

    Raises:
        VerificationFailed: which tensor, what was found, what was expected.
    """
    output = read_stored(merged.written.folder, merged.output)
    if output.keys != set(merged.written.digests):
        raise VerificationFailed("the output's headers do not list the tensors that were written")
    largest = _Largest()
    total, done = output.size_bytes, 0
    with TensorReader() as reader:
        for stored in output.tensors.values():
            watch.check_canceled()
            _check_digest(reader, merged, stored)
            _check_rows(reader, merged, options, stored, largest)
            reader.release(stored.source)
            done += sum(part.size_bytes for part in stored.source.parts)
            watch.report(Progress("verifying tensors", done, total))
    return {
        "passed": True, "tensors": len(output.tensors), "digests_equal": len(output.tensors),
        "rows_recomputed": largest.rows, "largest_difference": largest.difference,
        "largest_share_of_tolerance": largest.share, "largest_difference_at": largest.name,
        "vocabulary_size": output.vocabulary_size, "tokenizer_size": output.tokenizer_size,
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


def _check_digest(reader: TensorReader, merged: Merged, stored: StoredTensor) -> None:
    found, written = stored.digest(reader), merged.written.digests[stored.key]
    if found != written:
        raise VerificationFailed(
            f"{stored.key!r} on the disk has SHA-256 {found}, written was {written}",
            "The disk or the memory of this machine may be faulty: check them, then merge again.",
        )


def _check_rows(
    reader: TensorReader, merged: Merged, options: MergeOptions, stored: StoredTensor, largest: _Largest
) -> None:
    if any(stored.name in item.adapter.layers for item in merged.adapters):
        _check_layer(reader, merged, options, stored, largest)
        return
    rows = _spread(stored.shape[0])
    found, slack = stored.rows(reader, rows)
    expected, tolerance = expected_rows(reader, merged.base, merged.adapters, stored.name, rows)
    tolerance = tolerance + rounding(expected, TORCH_DTYPES[stored.dtype]) + slack
    _judge(stored, found, expected, tolerance, largest)


def _judge(
    stored: StoredTensor,
    found: torch.Tensor,
    expected: torch.Tensor,
    tolerance: torch.Tensor,
    largest: _Largest,
) -> None:
    difference = (found - expected).abs()
    share = difference / tolerance
    largest.see(stored.name, float(difference.max()), float(share.max()), len(found))
    if not float(share.max()) <= 1:
        raise VerificationFailed(
            f"{stored.name!r} differs from the expected values by {float(difference.max()):.3g}, which is "
            f"{float(share.max()):.2f} times what rounding to {stored.encoding} explains",
            "This is a fault of Graftwerk or of this machine: please report it with the job's log.",
        )


def _spread(count: int) -> torch.Tensor:
    """Indices of up to SAMPLED_ROWS of `count`, the first and the last among them."""
    return torch.linspace(0, count - 1, min(SAMPLED_ROWS, count), dtype=torch.float64).round().long()


def _check_layer(
    reader: TensorReader, merged: Merged, options: MergeOptions, stored: StoredTensor, largest: _Largest
) -> None:
    """A module that PEFT's layer merged: sampled columns against that layer's forward pass before merging, in float32.

    Only the last layer is passed through; what came before it is taken as the merge computed it.
    """
    changes = [c for item in merged.adapters if (c := Change.of(item.adapter, item.scale, stored.name))]
    last = max(i for i, change in enumerate(changes) if change.layer is not None)
    weight = reader.load(merged.base.tensors[stored.name])
    once = options.rounding == "once"
    if last:
        weight = torch.cat(list(changed_blocks(reader, weight, changes[:last], once=once)))
    layer = changes[last].layer
    assert layer is not None
    model = layer_model(reader, changes[last].adapter, layer, weight.float())
    columns = _spread(weight.shape[1])
    with torch.no_grad():
        expected = model.get_submodule(f"base_model.model.{layer.module}")(
            torch.eye(weight.shape[1])[columns]
        ).T
    step = expected.double().abs()
    if last + 1 < len(changes):
        rest = list(changed_blocks(reader, weight.float(), changes[last + 1 :], once=True))
        expected = expected + (torch.cat(rest) - weight.float())[:, columns]
    found, slack = stored.rows(reader, torch.arange(stored.shape[0]))
    dtypes = (TORCH_DTYPES[merged.base.tensors[stored.name].dtype], TORCH_DTYPES[stored.dtype])
    reached = torch.maximum(weight[:, columns].double().abs(), expected.double().abs())
    tolerance = sum(2 * len(changes) * rounding(torch.maximum(reached, step), dtype) for dtype in dtypes)
    tolerance = tolerance + LAYER_TOLERANCE * expected.double().abs().max()
    tolerance = tolerance + (slack[:, columns] if stored.by_blocks else slack)
    _judge(stored, found[:, columns], expected.double(), tolerance, largest)


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
        if name in item.adapter.rows:
            weight = _with_rows(reader, item, name, rows, weight)
        pair = item.adapter.pairs.get(name)
        if pair is not None:
            a, b = reader.view(pair.a).double(), reader.view(pair.b).double()
            left, right = (a[:, rows].T, b.T) if pair.transposed else (b[rows], a)
            scaling = pair.scaling * item.scale
            delta = left @ right * scaling
            weight = weight + delta
            tolerance = tolerance + rounding(weight, dtype) + (rounding(delta, dtype) if pair.rounded else 0)
            tolerance += (
                left.abs() @ right.abs() * abs(scaling) * (pair.rank + 2) * torch.finfo(torch.float32).eps
            )
    return weight, tolerance


def _with_rows(
    reader: TensorReader, item: ScaledAdapter, name: str, rows: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The rows of a weight, those that the adapter trained taken from it."""
    token_rows = item.adapter.rows[name]
    trained = dict(zip(token_rows.indices, reader.view(token_rows.rows).double(), strict=True))
    return torch.stack([trained.get(int(row), kept) for row, kept in zip(rows, weight, strict=True)])
