"""Proof that a model is the merge that it is said to be: digests, recomputed rows and the logits of the whole model."""

from services.verify.expected import ExpectedMerge, expected_merge
from services.verify.importance import CalibrationText, compute_importance
from services.verify.measure import measure
from services.verify.norms import ChangeNorms, change_norms, nothing_changed
from services.verify.precisions import compare_precisions
from services.verify.report import ModelVerification, verify_merge, verify_model

__all__ = [
    "CalibrationText",
    "ChangeNorms",
    "ExpectedMerge",
    "ModelVerification",
    "change_norms",
    "compare_precisions",
    "compute_importance",
    "expected_merge",
    "measure",
    "nothing_changed",
    "verify_merge",
    "verify_model",
]
