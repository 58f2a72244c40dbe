"""The check of a merged model: what lies on the disk is what was computed, and what was computed is right.

Four proofs: the output is read again by its headers and every tensor's digest compared with what was written; sampled rows of
every tensor are computed again in float64 and must lie within the rounding of the output's dtype; the configuration and
the tokenizer must load and agree with the tensors; and the logits of the whole model must be those of the base with its
adapters on the fly (logits.py). All but the first hold for any model that claims to be such a merge, whoever made it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from services.adapters.adapter import read_adapter
from services.adapters.stack import Stack, check_stack
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import OutputFormat, OutputSpec
from services.checkpoints.readback import StoredModel, StoredTensor, read_stored
from services.checkpoints.streaming import in_threads
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import VerificationFailed
from services.merge import Merged, MergeOptions, ScaledAdapter, changes_of, merged_output, release_tensor
from services.merge.delta import changed_blocks
from services.merge.peft_layers import layer_model
from services.progress import Progress
from services.verify.expected import expected_rows, rounding
from services.verify.forward_pass import LogitsReport, compare_logits

LAYER_TOLERANCE = 1e-5
"""What a layer's forward pass in float32 may differ from its merge, relative to the largest value: orthogonal tuners solve
linear systems."""

SAMPLED_ROWS = 16
"""Rows of each changed tensor that are computed again, spread evenly, first and last among them."""

FAULT = "This is a fault of Graftwerk or of this machine: please report it with the job's log."

MOST_FINDINGS = 100
"""Beyond so many differences a model is another one."""


@dataclass(frozen=True, slots=True)
class ExpectedMerge:
    """What a stored model is said to be: a base with adapters merged in, in this order."""

    base: Checkpoint
    adapters: Sequence[ScaledAdapter]
    stack: Stack
    output: OutputSpec
    once: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A tensor that is not as claimed, and what that may come from."""

    name: str
    message: str
    hint: str = ""


def expected_merge(
    base: Path, adapters: Sequence[tuple[str, Path, float]], output_format: OutputFormat
) -> ExpectedMerge:
    """The claim that a model of this format is the base with these adapters (name, folder, scale).

    Raises:
        Whatever `read_checkpoint`, `read_adapter` and `check_stack` refuse: such a merge does not exist.
    """
    checkpoint = read_checkpoint(base)
    scaled = [ScaledAdapter(read_adapter(folder, name), scale) for name, folder, scale in adapters]
    stack = check_stack(checkpoint, [item.adapter for item in scaled])
    options = MergeOptions(output_format=output_format)
    return ExpectedMerge(checkpoint, scaled, stack, merged_output(checkpoint, scaled, stack, options))


def verify_merge(merged: Merged, options: MergeOptions, hooks: WriteHooks) -> dict[str, Any]:
    """The report on what a merge has written.

    Raises:
        VerificationFailed: which tensor, what was found, what was expected.
    """
    claim = ExpectedMerge(
        merged.base, merged.adapters, merged.stack, merged.output, options.rounding == "once"
    )
    report = _Report()
    for finding in _examine(merged.written.folder, claim, hooks, report, digests=merged.written.digests):
        raise VerificationFailed(finding.message, finding.hint)
    return {"passed": True, **report.figures, "digests_equal": report.tensors}


def verify_model(folder: Path, claim: ExpectedMerge, hooks: WriteHooks) -> dict[str, Any]:
    """The report on a model that somebody made: `passed`, the figures, and `differences` by tensor, MOST_FINDINGS at most.

    Raises:
        Whatever the model's headers are refused for.
    """
    report = _Report()
    found = list(islice(_examine(folder, claim, hooks, report), MOST_FINDINGS))
    differences = [{"tensor": finding.name, "message": finding.message} for finding in found]
    return {"passed": not found, **report.figures, "differences": differences}


class _Report:
    """What has been seen so far: the largest difference among it."""

    def __init__(self) -> None:
        self.difference = 0.0
        self.share = 0.0
        self.name: str | None = None
        self.rows = 0
        self.rounding_square = 0.0
        self.tensors = 0
        self.sizes: dict[str, int | None] = {}
        self.logits: LogitsReport | None = None

    def see(self, name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor) -> float:
        """Takes in some values of a tensor; gives the largest share of the tolerance that a difference takes."""
        difference = (found - expected).abs()
        share = float((difference / tolerance).max())
        self.rows += len(found)
        self.difference = max(self.difference, float(difference.max()))
        if share > self.share:
            self.share, self.name = share, name
        size = float(expected.norm())
        if size:
            self.rounding_square += (float(tolerance.expand_as(expected).norm()) / size) ** 2
        return share

    def add(self, tensor: "_Report") -> None:
        """Takes in what was seen of one tensor."""
        self.tensors += 1
        self.rows += tensor.rows
        self.rounding_square += tensor.rounding_square
        self.difference = max(self.difference, tensor.difference)
        if tensor.share > self.share:
            self.share, self.name = tensor.share, tensor.name

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors, "rows_recomputed": self.rows, "largest_difference": self.difference,
            "largest_share_of_tolerance": self.share, "largest_difference_at": self.name, **self.sizes,
            "logits": self.logits.as_json() if self.logits else None,
        }  # fmt: skip


def _examine(
    folder: Path,
    claim: ExpectedMerge,
    hooks: WriteHooks,
    report: _Report,
    *,
    digests: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    """Every tensor that is not as claimed; then, where there is none, whether the logits are."""
    model = read_stored(folder, claim.output)
    report.sizes = {"vocabulary_size": model.vocabulary_size, "tokenizer_size": model.tokenizer_size}
    if digests is not None and model.keys != set(digests):
        yield Finding("", "the output's headers do not list the tensors that were written")
    same = True
    with TensorReader() as reader:
        for finding in _tensor_findings(reader, model, claim, hooks, report, digests):
            same = False
            yield finding
        if not same:
            return
        report.logits = compare_logits(
            reader, model, claim.base, claim.adapters, rounding=math.sqrt(report.rounding_square),
            tokenizer_folder=claim.stack.tokenizer_folder, hooks=hooks,
        )  # fmt: skip
        if not report.logits.passed:
            yield _logits_finding(report.logits)


def _logits_finding(found: LogitsReport) -> Finding:
    return Finding(
        "logits",
        f"the model's logits differ from those of base and adapters by {found.relative_difference:.3g} of their size, "
        f"rounding explains {found.tolerance:.3g}",
        FAULT,
    )


def _tensor_findings(
    reader: TensorReader,
    model: StoredModel,
    claim: ExpectedMerge,
    hooks: WriteHooks,
    report: _Report,
    digests: Mapping[str, str] | None,
) -> Iterator[Finding]:
    yield from _shape_findings(model, claim)
    fitting = [
        stored
        for stored in model.tensors.values()
        if stored.name in claim.output.tensors and stored.shape == claim.output.tensors[stored.name][1]
    ]
    total, done = sum(stored.source.size_bytes for stored in fitting), 0

    def check(stored: StoredTensor) -> tuple[list[Finding], _Report]:
        own = _Report()
        digest = _check_digest(reader, digests[stored.key], stored) if digests is not None else ()
        found = [*digest, *_check_rows(reader, claim, stored, own)]
        _release(reader, claim, stored)
        return found, own

    for stored, (found, own) in zip(fitting, in_threads(check, fitting, hooks.check_canceled), strict=True):
        report.add(own)
        yield from found
        done += stored.source.size_bytes
        hooks.report(Progress("verifying tensors", done, total))


def _release(reader: TensorReader, claim: ExpectedMerge, stored: StoredTensor) -> None:
    """Lets go the pages of a tensor, and of what it was computed from."""
    reader.release(stored.source)
    release_tensor(reader, claim.base.tensors[stored.name], changes_of(claim.adapters, stored.name))


def _shape_findings(model: StoredModel, claim: ExpectedMerge) -> Iterator[Finding]:
    expected = {name: shape for name, (_, shape) in claim.output.tensors.items()}
    for name in sorted(expected.keys() | model.tensors.keys()):
        if name not in model.tensors:
            yield Finding(name, f"{name!r} is missing")
        elif name not in expected:
            yield Finding(name, f"{name!r} is no tensor of base and adapters")
        elif model.tensors[name].shape != expected[name]:
            found = list(model.tensors[name].shape)
            yield Finding(name, f"{name!r} has shape {found}, base and adapters give {list(expected[name])}")


def _check_digest(reader: TensorReader, written: str, stored: StoredTensor) -> Iterator[Finding]:
    found = stored.digest(reader)
    if found != written:
        yield Finding(
            stored.name,
            f"{stored.key!r} on the disk has SHA-256 {found}, written was {written}",
            "The disk or the memory of this machine may be faulty: check them, then merge again.",
        )


def _check_rows(
    reader: TensorReader, claim: ExpectedMerge, stored: StoredTensor, report: _Report
) -> Iterator[Finding]:
    if any(stored.name in item.adapter.layers for item in claim.adapters):
        yield from _check_layer(reader, claim, stored, report)
        return
    rows = _spread(stored.shape[0])
    found, slack = stored.rows(reader, rows)
    expected, tolerance = expected_rows(reader, claim.base, claim.adapters, stored.name, rows)
    tolerance = tolerance + rounding(expected, TORCH_DTYPES[stored.dtype]) + slack
    yield from _judge(stored, found, expected, tolerance, report)


def _judge(
    stored: StoredTensor,
    found: torch.Tensor,
    expected: torch.Tensor,
    tolerance: torch.Tensor,
    report: _Report,
) -> Iterator[Finding]:
    share = report.see(stored.name, found, expected, tolerance)
    if not share <= 1:
        difference = float((found - expected).abs().max())
        yield Finding(
            stored.name,
            f"{stored.name!r} differs from the expected values by {difference:.3g}, which is {share:.2f} times what rounding to {stored.encoding} explains",
            FAULT,
        )


def _spread(count: int) -> torch.Tensor:
    """Indices of up to SAMPLED_ROWS of `count`, the first and the last among them."""
    return torch.linspace(0, count - 1, min(SAMPLED_ROWS, count), dtype=torch.float64).round().long()


def _check_layer(
    reader: TensorReader, claim: ExpectedMerge, stored: StoredTensor, report: _Report
) -> Iterator[Finding]:
    """A module that PEFT's layer merged: sampled columns against that layer's forward pass before merging, in float32.

    Only the last layer is passed through; what came before it is taken as the merge computed it.
    """
    changes = changes_of(claim.adapters, stored.name)
    last = max(i for i, change in enumerate(changes) if change.layer is not None)
    weight = reader.load(claim.base.tensors[stored.name])
    if last:
        weight = torch.cat(list(changed_blocks(reader, weight, changes[:last], once=claim.once)))
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
    dtypes = (TORCH_DTYPES[claim.base.tensors[stored.name].dtype], TORCH_DTYPES[stored.dtype])
    reached = torch.maximum(weight[:, columns].double().abs(), expected.double().abs())
    tolerance = sum(2 * len(changes) * rounding(torch.maximum(reached, step), dtype) for dtype in dtypes)
    tolerance = tolerance + LAYER_TOLERANCE * expected.double().abs().max()
    tolerance = tolerance + (slack[:, columns] if stored.by_blocks else slack)
    yield from _judge(stored, found[:, columns], expected.double(), tolerance, report)
