"""Mapping from RQ's statuses to ours, and records of other versions."""

import math

import pytest
from rq.job import JobStatus

from services.jobs.status import JobProgress, UnknownRequest, read_request, read_result, status_of
from services.kinds import parse_result
from services.kinds.embed import EmbedResult
from services.kinds.merge import MergeResult
from services.kinds.verify import VerifyResult
from worker.lifecycle import result_as_json


@pytest.mark.parametrize(
    ("rq_status", "code", "expected"),
    [
        ("created", None, "queued"),
        ("queued", None, "queued"),
        ("deferred", None, "queued"),
        ("scheduled", None, "queued"),
        ("rate_limited", None, "queued"),
        ("ready_to_enqueue", None, "queued"),
        ("started", None, "running"),
        ("finished", None, "succeeded"),
        ("failed", None, "failed"),
        ("failed", "adapter_mismatch", "failed"),
        ("failed", "canceled", "canceled"),
        ("stopped", None, "canceled"),
        ("canceled", None, "canceled"),
        ("canceled", "canceled", "canceled"),
        ("canceled", "upstream_failed", "failed"),
        ("started", "canceled", "canceled"),
        ("queued", "not_ready", "queued"),
    ],
)
def test_each_status_of_rq_is_one_of_ours(rq_status: str, code: str | None, expected: str) -> None:
    assert status_of(rq_status, code) == expected


def test_no_status_of_rq_is_left_out() -> None:
    assert all(status_of(status.value, None) for status in JobStatus)


def progress(**changed: float | None) -> JobProgress:
    fields = {"stage": "s", "done": 86, "total": 100, "unit": "bytes", "fraction": 0.86, "eta_seconds": 4.2}
    return JobProgress.model_validate(fields | changed)


def test_a_job_that_has_succeeded_is_complete() -> None:
    assert progress().completed() == progress(done=100, fraction=1.0, eta_seconds=None)
    without_total = progress(total=0, fraction=None).completed()
    assert (without_total.done, without_total.fraction, without_total.eta_seconds) == (86, 1.0, None)


def test_a_result_with_fields_of_another_version_is_read_as_its_kinds() -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    stored = {
        "embeddings": [[0.5]],
        "usage": usage,
        "seconds": 1.0,
        "device": "cpu",
        "dtype": "float32",
        "new": 1,
    }
    result = read_result("embed", stored)
    assert isinstance(result, EmbedResult)
    assert result.model_dump(exclude_unset=True) == stored


def test_a_result_that_does_not_fit_its_kind_keeps_its_fields() -> None:
    result = read_result("embed", {"vectors": [1, 2]})
    assert result is not None
    assert result.model_dump(exclude_unset=True) == {"vectors": [1, 2]}


def test_a_request_of_another_version_keeps_its_fields() -> None:
    stored = {"kind": "transmute", "after": [], "metadata": {}, "lead": "x"}
    request = read_request(stored)
    assert isinstance(request, UnknownRequest)
    assert request.model_dump(mode="json", exclude_unset=True) == stored


LOGITS = {"passed": False, "positions": 36, "largest_difference": math.nan, "relative_difference": math.nan,
          "tolerance": math.inf, "greedy_agreement": math.nan}  # fmt: skip


def test_a_report_with_nan_is_read_back_with_null() -> None:
    report = {"model": "m", "against": ["b"], "passed": False, "differences": [], "logits": LOGITS}
    stored = result_as_json(VerifyResult.model_validate({**report, "largest_difference": math.nan}))
    result = parse_result("verify", stored)
    assert isinstance(result, VerifyResult)
    assert result.logits is not None
    assert (result.largest_difference, result.logits.largest_difference, result.logits.tolerance) == (
        None,
    ) * 3
    assert result.model_dump(mode="json", exclude_unset=True) == stored


def test_the_result_of_a_merge_with_nan_is_read_back_with_null() -> None:
    counts = {
        "tensors": 2,
        "merged": 1,
        "replaced": 0,
        "rows_replaced": 0,
        "change_norms": {"q_proj": math.nan},
    }
    figures = {"bytes_read": 1, "bytes_written": 1, "tensors": 1, "vocabulary_size": 8, "device": "cpu"}
    model = {"name": "m", "kind": "huggingface", "size_bytes": 1}
    verification = {"passed": True, "digests_equal": 1, "logits": LOGITS}
    adapters = [{"adapter": "a", "scale": 1.0, **counts}]
    made = MergeResult.model_validate(
        {**figures, "model": model, "adapters": adapters, "verification": verification}
    )
    result = parse_result("merge", result_as_json(made))
    assert isinstance(result, MergeResult)
    assert result.adapters[0].change_norms == {"q_proj": None}
