"""Figures of a verification, collected from the tensors that were checked."""

import torch

from services.kinds.computed_checks import ComputedChecks, LogitsComparison
from services.verify.scales import ScaleTest


class Observations:
    """Observed differences between found and expected values: the largest of them, and the number of rows and tensors.

    `errors` has the norm of each tensor's tolerances, relative to that of its values.
    """

    def __init__(self) -> None:
        self.tensors = 0
        self.errors: dict[str, float] = {}
        self.scales = ScaleTest()
        self.logits: LogitsComparison | None = None
        self._rows = 0
        self._difference = 0.0
        self._share = 0.0
        self._name: str | None = None

    def observe(
        self, name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor
    ) -> float:
        """Adds values of a tensor, all float64 of one shape; returns the largest difference as a share of its tolerance."""
        difference = (found - expected).abs()
        share = float((difference / tolerance).max())
        self._rows += len(found) if found.dim() > 1 else 1
        self._add_largest(name, float(difference.max()), share)
        size = float(expected.norm())
        self.errors[name] = float(tolerance.expand_as(expected).norm()) / size if size else 0.0
        return share

    def add_tensor(self, tensor: "Observations") -> None:
        """Adds the observations of one tensor, made in a thread of its own."""
        self.tensors += 1
        self._rows += tensor._rows
        self.errors |= tensor.errors
        self.scales.add(tensor.scales)
        self._add_largest(tensor._name, tensor._difference, tensor._share)

    def _add_largest(self, name: str | None, difference: float, share: float) -> None:
        self._difference = max(self._difference, difference)
        if share > self._share:
            self._share, self._name = share, name

    def as_checks(self, *, vocabulary_size: int, tokenizer_size: int | None) -> ComputedChecks:
        """Returns the figures for a job's result."""
        return ComputedChecks(
            tensors=self.tensors, rows_recomputed=self._rows, largest_difference=self._difference,
            largest_share_of_tolerance=self._share, largest_difference_at=self._name,
            vocabulary_size=vocabulary_size, tokenizer_size=tokenizer_size, logits=self.logits,
        )  # fmt: skip
