"""Findings about the tensors of a model: shapes, digests, and sampled rows that are computed again."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from services.checkpoints.readback import StoredModel, StoredTensor
from services.checkpoints.streaming import in_threads
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.merge import changes_of, release_tensor
from services.merge.delta import changed_blocks
from services.merge.peft_layers import layer_model
from services.progress import Progress
from services.verify.expected import ExpectedMerge, expected_rows, rounding
from services.verify.observations import Observations
from services.verify.rounded import rounded_merge, rounded_rows

LAYER_TOLERANCE = 1e-5
"""Difference that a layer's forward pass in float32 may have from its merge, relative to the largest value: orthogonal tuners
solve linear systems."""

SAMPLED_ROWS = 16
"""Rows of each changed tensor that are computed again, spread evenly, first and last among them."""

WEIGHED_ERROR = 0.9
"""Error that a row may have relative to its size if an importance matrix has weighed its columns. Another row of the same size is
off by more than 1.2; found was 0.6 for encodings of one and two bits, 0.35 for others."""

LEAST_ENCODED = 127 * 2.0**-24
"""Largest value that a block whose scale is the smallest float16 holds."""

FAULT = "This is a fault of Graftwerk or of this machine: please report it with the job's log."


@dataclass(frozen=True, slots=True)
class Finding:
    """A tensor that is not as expected, and a hint on the possible cause."""

    name: str
    message: str
    hint: str = ""


def tensor_findings(
    reader: TensorReader,
    model: StoredModel,
    merge: ExpectedMerge,
    hooks: WriteHooks,
    observations: Observations,
    digests: Mapping[str, str] | None,
) -> Iterator[Finding]:
    """Yields every tensor that is not as expected, and adds what was computed to the observations.

    Args:
        digests: SHA-256 of each tensor as it was written; None if they are not known.

    Raises:
        JobCanceled: The caller has canceled the work.
    """
    yield from _shape_findings(model, merge)
    fitting = [
        stored
        for stored in model.tensors.values()
        if stored.name in merge.output.tensors and stored.shape == merge.output.tensors[stored.name][1]
    ]
    total, done = sum(stored.source.size_bytes for stored in fitting), 0

    def check(stored: StoredTensor) -> tuple[list[Finding], Observations]:
        own = Observations()
        digest = _digest_findings(reader, digests[stored.key], stored) if digests is not None else ()
        found = [*digest, *_value_findings(reader, merge, stored, own)]
        _release(reader, merge, stored)
        return found, own

    for stored, (found, own) in zip(fitting, in_threads(check, fitting, hooks.check_canceled), strict=True):
        observations.add_tensor(own)
        yield from found
        done += stored.source.size_bytes
        hooks.report(Progress("verifying tensors", done, total))


def _release(reader: TensorReader, merge: ExpectedMerge, stored: StoredTensor) -> None:
    """Releases the pages of a tensor and of the tensors from which it was computed."""
    reader.release(stored.source)
    release_tensor(reader, merge.base.tensors[stored.name], changes_of(merge.adapters, stored.name))


def _shape_findings(model: StoredModel, merge: ExpectedMerge) -> Iterator[Finding]:
    expected = {name: shape for name, (_, shape) in merge.output.tensors.items()}
    for name in sorted(expected.keys() | model.tensors.keys()):
        if name not in model.tensors:
            yield Finding(name, f"{name!r} is missing.")
        elif name not in expected:
            yield Finding(name, f"{name!r} is not a tensor of base and adapters.")
        elif model.tensors[name].shape != expected[name]:
            found = list(model.tensors[name].shape)
            yield Finding(name, f"{name!r} has shape {found}; base and adapters give {list(expected[name])}.")


def _digest_findings(reader: TensorReader, written: str, stored: StoredTensor) -> Iterator[Finding]:
    found = stored.digest(reader)
    if found != written:
        yield Finding(
            stored.name,
            f"{stored.key!r} on the disk has SHA-256 {found}; {written} was written.",
            "The disk or the memory of this machine may be faulty: check them, then merge again.",
        )


def _value_findings(
    reader: TensorReader, merge: ExpectedMerge, stored: StoredTensor, observations: Observations
) -> Iterator[Finding]:
    if any(change.layer is not None for change in changes_of(merge.adapters, stored.name)):
        yield from _layer_findings(reader, merge, stored, observations)
        return
    rows = _sample(stored.shape[0]) if len(stored.shape) > 1 else torch.arange(stored.shape[0])
    found, slack = stored.rows(reader, rows)
    expected = expected_rows(reader, merge.base, merge.adapters, stored.name, rows)
    tolerance = expected.tolerance + rounding(expected.values, TORCH_DTYPES[stored.dtype]) + slack
    if stored.weighed:
        yield from _compare(stored, *_by_row(found, expected.values), observations)
        return
    yield from _compare(stored, found, expected.values, tolerance, observations)
    if expected.deltas and not stored.by_blocks:
        for once in merge.roundings:
            rounded, _ = rounded_rows(
                reader, rounded_merge(merge, once, {stored.name: stored}), stored.name, rows
            )
            observations.scales.observe(once, found - rounded.double(), expected.deltas)


def _by_row(found: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the norm of each row with that of its error added, the norm, and the tolerance.

    An encoding that weighs columns gives up single values, but not a row.
    """
    norms = expected.norm(dim=1)
    underflow = LEAST_ENCODED * math.sqrt(expected.shape[1])
    return norms + (found - expected).norm(dim=1), norms, WEIGHED_ERROR * norms + underflow


def _compare(
    stored: StoredTensor,
    found: torch.Tensor,
    expected: torch.Tensor,
    tolerance: torch.Tensor,
    observations: Observations,
) -> Iterator[Finding]:
    share = observations.observe(stored.name, found, expected, tolerance)
    if not share <= 1:  # NaN is a finding too
        difference = float((found - expected).abs().max())
        yield Finding(
            stored.name,
            f"{stored.name!r} differs from the expected values by {difference:.3g}, which is {share:.2f} times what "
            f"rounding to {stored.encoding} explains.",
            FAULT,
        )


def _sample(count: int) -> torch.Tensor:
    """Returns up to SAMPLED_ROWS indices of `count`, int64, the first and the last among them."""
    return torch.linspace(0, count - 1, min(SAMPLED_ROWS, count), dtype=torch.float64).round().long()


def _layer_findings(
    reader: TensorReader, merge: ExpectedMerge, stored: StoredTensor, observations: Observations
) -> Iterator[Finding]:
    """Compares sampled columns of a module that PEFT's layer merged with that layer's forward pass, in float32.

    Only the last layer is passed through; the changes before it are taken as the merge computed them.
    """
    changes = changes_of(merge.adapters, stored.name)
    last = max(i for i, change in enumerate(changes) if change.layer is not None)
    weight = reader.load(merge.base.tensors[stored.name])
    if last:
        weight = torch.cat(list(changed_blocks(reader, weight, changes[:last], once=bool(merge.once))))
    layer = changes[last].layer
    assert layer is not None
    model = layer_model(reader, changes[last].adapter, layer, weight.float())
    columns = _sample(weight.shape[1])
    with torch.no_grad():
        expected = model.get_submodule(f"base_model.model.{layer.module}")(
            torch.eye(weight.shape[1])[columns]
        ).T
    step = expected.double().abs()
    if last + 1 < len(changes):
        rest = list(changed_blocks(reader, weight.float(), changes[last + 1 :], once=True))
        expected = expected + (torch.cat(rest) - weight.float())[:, columns]
    found, slack = stored.rows(reader, torch.arange(stored.shape[0]))
    dtypes = (TORCH_DTYPES[merge.base.tensors[stored.name].dtype], TORCH_DTYPES[stored.dtype])
    reached = torch.maximum(weight[:, columns].double().abs(), expected.double().abs())
    tolerance = sum(2 * len(changes) * rounding(torch.maximum(reached, step), dtype) for dtype in dtypes)
    tolerance = tolerance + LAYER_TOLERANCE * expected.double().abs().max()
    tolerance = tolerance + (slack[:, columns] if stored.by_blocks else slack)
    found, expected = found[:, columns], expected.double()
    if stored.weighed:
        found, expected, tolerance = _by_row(found.reshape(1, -1), expected.reshape(1, -1))
    yield from _compare(stored, found, expected, tolerance, observations)
