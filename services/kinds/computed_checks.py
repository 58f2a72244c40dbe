"""Checks of a model by arithmetic, shared by the results of `merge` and `verify`."""

from services.kinds.shared import Result


class LogitsComparison(Result):
    """Logits of the whole model compared with those of base and adapters, relative to their size; null is NaN or infinity."""

    passed: bool
    positions: int
    largest_difference: float | None
    relative_difference: float | None
    tolerance: float | None
    greedy_agreement: float | None


class ComputedChecks(Result):
    """Rows and logits that were computed again from base and adapters, in float64 and float32.

    `logits` is null if tensors differ, and for types of models without a family.
    """

    tensors: int | None = None
    rows_recomputed: int | None = None
    largest_difference: float | None = None
    largest_share_of_tolerance: float | None = None
    largest_difference_at: str | None = None
    vocabulary_size: int | None = None
    tokenizer_size: int | None = None
    logits: LogitsComparison | None = None
