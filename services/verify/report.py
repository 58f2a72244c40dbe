"""Verification of a merged model: the stored tensors are those that were computed, and they are right.

Four proofs: the output is read again by its headers and every tensor's digest compared with the written one; sampled rows of
every tensor are computed again in float64 and must lie within the rounding of the output's dtype; the configuration and
the tokenizer must load and agree with the tensors; and the logits of the whole model must be the expected
ones (comparison.py). All but the first apply to any model that is said to be a merge, whoever made it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from services.checkpoints.readback import StoredModel, read_stored
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import VerificationFailed
from services.kinds.computed_checks import ComputedChecks, LogitsComparison
from services.kinds.merge import MergeVerification
from services.kinds.verify import Difference
from services.merge import Merged, MergeOptions
from services.verify.comparison import compare_logits
from services.verify.expected import ExpectedMerge
from services.verify.findings import FAULT, Finding, tensor_findings
from services.verify.observations import Observations

MAX_FINDINGS = 100
"""Largest number of differences that are reported; with more of them it is another model."""


@dataclass(frozen=True, slots=True)
class ModelVerification:
    """Report on a model that is said to be a merge: the figures, and the differences by tensor."""

    checks: ComputedChecks
    differences: list[Difference]

    @property
    def passed(self) -> bool:
        """True if there are no differences."""
        return not self.differences


def verify_merge(merged: Merged, options: MergeOptions, hooks: WriteHooks) -> MergeVerification:
    """Verifies the output of a merge and returns the report on it.

    Raises:
        VerificationFailed: A tensor or the logits are not as expected; the first finding is named.
        JobCanceled: The caller has canceled the work.
    """
    merge = ExpectedMerge(
        base=merged.base, adapters=merged.adapters, stack=merged.stack, output=merged.output,
        once=options.rounding == "once",
    )  # fmt: skip
    model, observations = read_stored(merged.written.folder, merge.output), Observations()
    for finding in _findings(model, merge, hooks, observations, digests=merged.written.digests):
        raise VerificationFailed(finding.message, finding.hint)
    checks = _checks(model, observations)
    return MergeVerification(passed=True, **dict(checks), digests_equal=observations.tensors)


def verify_model(folder: Path, merge: ExpectedMerge, hooks: WriteHooks) -> ModelVerification:
    """Verifies that the model in a folder is a merge, and returns the report with at most MAX_FINDINGS differences.

    Errors of `read_stored` are raised as they are.

    Raises:
        JobCanceled: The caller has canceled the work.
    """
    model, observations = read_stored(folder, merge.output), Observations()
    found = list(islice(_findings(model, merge, hooks, observations), MAX_FINDINGS))
    differences = [Difference(tensor=finding.name, message=finding.message) for finding in found]
    return ModelVerification(_checks(model, observations), differences)


def _checks(model: StoredModel, observations: Observations) -> ComputedChecks:
    return observations.as_checks(vocabulary_size=model.vocabulary_size, tokenizer_size=model.tokenizer_size)


def _findings(
    model: StoredModel,
    merge: ExpectedMerge,
    hooks: WriteHooks,
    observations: Observations,
    *,
    digests: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    """Yields every tensor that is not as expected; if there is none, compares the logits of a family's model."""
    if digests is not None and model.keys != set(digests):
        yield Finding("", "The output's headers do not list the tensors that were written.", FAULT)
    as_expected = True
    with TensorReader() as reader:
        for finding in tensor_findings(reader, model, merge, hooks, observations, digests):
            as_expected = False
            yield finding
        for adapter, share in observations.scales.shares().items():
            as_expected = False
            yield _scale_finding(adapter, share)
        if not as_expected or merge.base.config.family is None:  # some dense types have parts of their own
            return
        for name, message in compare_logits(reader, model, merge, observations, hooks):
            yield Finding(name, message, FAULT)
        if observations.logits is not None and not observations.logits.passed:
            yield _logits_finding(observations.logits)


def _scale_finding(adapter: str, share: float) -> Finding:
    return Finding(
        "adapter",
        f"{100 * abs(share):.3g} % of the change by the adapter {adapter} is {'too much' if share > 0 else 'missing'}; rounding "
        "explains none of it.",
        FAULT,
    )


def _logits_finding(found: LogitsComparison) -> Finding:
    return Finding(
        "logits",
        f"The model's logits differ from those of base and adapters by {found.relative_difference:.3g} of their size; "
        f"rounding explains {found.tolerance:.3g}.",
        FAULT,
    )
