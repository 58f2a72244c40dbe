"""The line about a succeeded job."""

from typing import Any

import pytest
from graftwerk.models import Job
from graftwerk.outcome import outcome_line
from graftwerk.quantities import adapter_label, duration, local_time, magnitude


def job(kind: str, request: dict[str, Any], result: dict[str, Any], seconds: float = 4.125) -> Job:
    return Job.model_validate(
        {
            "id": "j1",
            "kind": kind,
            "status": "succeeded",
            "started_at": "2026-01-02T03:04:00Z",
            "finished_at": f"2026-01-02T03:04:{seconds:06.3f}Z",
            "request": request,
            "result": result,
        }
    )


def made(kind: str, name: str = "ab", **more: Any) -> dict[str, Any]:
    return {
        "model": {"name": name, "kind": kind, "size_bytes": 9, **more},
        "bytes_read": 1,
        "bytes_written": 1_400_000,
    }


CHECK = {"passed": True, "digests_equal": 3, "rows_recomputed": 1234}
LOGITS = {
    "passed": True, "positions": 36, "largest_difference": 0.0, "relative_difference": 0.0, "tolerance": 1e-4,
    "greedy_agreement": 1.0,
}  # fmt: skip
MERGED = {**made("huggingface"), "tensors": 30, "adapters": [], "vocabulary_size": 5, "device": "cpu"}
MERGE = {"base": "llama-hf", "adapters": ["a", {"name": "b", "scale": 0.5}], "target": "ab"}
ADAPTER = {
    **made("adapter"),
    "rank": 8,
    "error": 0.0125,
    "errors": [],
    "pairs": 3,
    "replaced": 0,
    "tensors": 6,
}


@pytest.mark.parametrize(
    ("kind", "request_", "result", "line"),
    [
        (
            "merge",
            MERGE,
            {**MERGED, "verification": {**CHECK, "logits": LOGITS}},
            "merged llama-hf + a + b@0.5 → ab in 4.1 s, verified (1,234 rows, logits equal). Next: graftwerk chat ab",
        ),
        (
            "merge",
            MERGE,
            {
                **MERGED,
                "verification": {
                    **CHECK,
                    "logits": {**LOGITS, "largest_difference": 0.1, "relative_difference": 2e-5},
                },
            },
            "merged llama-hf + a + b@0.5 → ab in 4.1 s, verified (1,234 rows, logits within 2e-05 of their size). Next: graftwerk chat ab",
        ),
        (
            "merge",
            MERGE,
            {**MERGED, "verification": None},
            "merged llama-hf + a + b@0.5 → ab in 4.1 s, not verified, 30 tensors, 1.4 MB. Next: graftwerk chat ab",
        ),
        (
            "convert",
            {"source": "llama", "target": "ab"},
            {**made("huggingface"), "tensors": 1, "same_as": "other"},
            "converted llama → ab in 4.1 s, reused from other. Next: graftwerk chat ab",
        ),
        (
            "convert",
            {"source": "llama", "target": "ab"},
            {**made("gguf"), "tensors": 30, "bits_per_weight": 4.5, "same_top_token": 0.985},
            "converted llama → ab in 4.1 s, 30 tensors, 1.4 MB, 4.50 bits per weight, 98.5% of top tokens equal. Next: graftwerk pull ab",
        ),
        (
            "import",
            {"source": {"hub": "org/x"}, "target": "ab"},
            {**made("original"), "files": 1},
            "imported org/x → ab in 4.1 s, 1 file, 1.4 MB. Next: graftwerk convert ab ab-hf",
        ),
        (
            "import",
            {"source": {"upload": ["u"]}, "target": "ab"},
            {**made("adapter"), "files": 2},
            "imported ab in 4.1 s, 2 files, 1.4 MB. Next: graftwerk merge BASE --adapters ab --target NEW-NAME",
        ),
        (
            "extract",
            {"base": "llama", "model": "vicuna", "target": "ab", "rank": 8},
            {**ADAPTER, "unchanged": 0, "vocabulary_size": 5},
            'extracted vicuna - llama → ab in 4.1 s, rank 8, error 0.013, 1.4 MB. Next: graftwerk generate llama -a ab -p "Hello"',
        ),
        (
            "combine",
            {"adapters": ["x", {"name": "y", "scale": -1}], "target": "ab"},
            ADAPTER,
            "combined x + y@-1 → ab in 4.1 s, rank 8, error 0.013, 1.4 MB. Next: graftwerk merge BASE --adapters ab --target NEW-NAME",
        ),
        (
            "verify",
            {"model": "ab"},
            {"model": "ab", "against": ["manifest"], "passed": True, "differences": [], "digests_equal": 30},
            "verified ab against its manifest in 4.1 s, passed (30 digests equal).",
        ),
        (
            "verify",
            {"model": "ab"},
            {"model": "ab", "against": ["manifest"], "passed": False, "differences": [{"message": "m"}]},
            "verified ab against its manifest in 4.1 s, NOT passed: 1 difference.",
        ),
        (
            "publish-to-hub",
            {"model": "ab", "repository": "o/n"},
            {
                "commit": "c", "repository": "o/n", "url": "https://hub.test/o/n", "private": True, "files": 3,
                "size_bytes": 2_000,
            },
            "published ab → https://hub.test/o/n in 4.1 s, 3 files, 2.0 kB, private.",
        ),
        (
            "extend-tokenizer",
            {"base": "llama", "addition": "zh", "target": "ab"},
            {
                **made("tokenizer"), "counts": {"base": 32000, "added": 17953, "present": 2047, "total": 49953},
                "sha256": "f", "samples": [],
            },
            "extended the tokenizer of llama by zh → ab in 4.1 s, 17,953 pieces added, 2,047 present before, 49,953 in all.",
        ),
        (
            "generate",
            {"model": "ab"},
            {
                "outputs": [{"prompt": "p", "text": "t"}], "seconds": 1.0, "tokens_per_second": 12.34, "device": "cpu",
                "dtype": "float32", "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
            },
            "generated 1 output with ab in 4.1 s, 7 tokens, 12.3 tokens/s.",
        ),
        (
            "perplexity",
            {"model": "ab", "adapters": ["zh"]},
            {
                "perplexity": 12.5, "negative_log_likelihood": 2.5, "bits_per_byte": 1.0, "tokens": 7000, "windows": 4,
                "context": 2048, "stride": 1024, "seconds": 1.0, "device": "cpu", "dtype": "float32",
            },
            "perplexity 12.5 of ab + zh in 4.1 s, 7,000 tokens in 4 windows of 2,048.",
        ),
        (
            "tokenize",
            {"model": "ab", "adapters": ["zh"]},
            {
                "token_ids": [[1, 2], [3]],
                "tokenizer": {"bos_token": None, "eos_token": None, "pad_token": None, "vocabulary_size": 9, "chat_template": None},
            },
            "tokenized 2 texts with ab + zh in 4.1 s, 3 tokens.",
        ),
        ("unknown-kind", {"target": "ab"}, {"figure": 1}, "unknown-kind → ab succeeded in 4.1 s."),
    ],
)  # fmt: skip
def test_a_succeeded_job_is_one_line(
    kind: str, request_: dict[str, Any], result: dict[str, Any], line: str
) -> None:
    assert outcome_line(job(kind, request_, result)) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (0.04, "0.04 s"),
        (4.125, "4.1 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(6_738_415_616, "6.7B"), (13_015_864_320, "13B"), (134_515_008, "135M"), (572_432, "572k"), (9, "9")],
)
def test_parameters_are_counted_as_models_are_named(count: int, text: str) -> None:
    assert magnitude(count) == text


def test_an_adapter_shows_its_scale_unless_it_is_one() -> None:
    assert adapter_label("zh") == "zh"
    assert adapter_label({"name": "zh", "scale": 1.0}) == "zh"
    assert adapter_label({"name": "zh", "scale": 0.5}) == "zh@0.5"


def test_times_are_local_with_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time
    from datetime import datetime

    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        now = datetime.fromisoformat("2026-01-02T03:00:00+00:00")
        assert local_time(datetime.fromisoformat("2026-01-02T02:04:05+00:00"), now) == "10:04 CST"
        assert local_time(datetime.fromisoformat("2025-12-31T23:04:05+00:00"), now) == "2026-01-01 07:04 CST"
    finally:
        monkeypatch.undo()
        time.tzset()
