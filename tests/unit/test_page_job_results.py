"""Results of jobs as their pages draw them, and the figures in them."""

import math
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from flask import render_template

from api import create_app
from api.pages import job_rows
from api.pages.jobs import names
from api.responses import JobResponse
from services.jobs.queue import JobQueue
from services.kinds.adapter_tools import TensorError
from services.settings import Settings

pytestmark = pytest.mark.disable_socket

HOSTILE = "<img src=x onerror=alert(1)>\"&'"
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"

REQUESTS: dict[str, dict[str, Any]] = {
    "merge": {"base": "base", "adapters": ["zh", {"name": "alpaca", "scale": 0.5}], "target": "merged"},
    "verify": {"model": "merged", "base": "base", "adapters": ["zh"]},
    "generate": {"model": "merged", "prompt": HOSTILE},
    "compare": {"variants": [{"model": "a", "label": HOSTILE}, {"model": "b"}], "prompt": "Hello"},
    "embed": {"model": "merged", "inputs": [HOSTILE, "other"]},
    "perplexity": {"model": "merged", "text": "text"},
    "tokenize": {"model": "merged", "texts": [HOSTILE, "two"], "return_pieces": True},
    "convert": {"source": "llama", "target": "q4", "output_format": "gguf", "dtype": "q4_k"},
    "import": {"source": {"path": "incoming/llama"}, "target": "llama"},
    "extract": {"base": "base", "model": "tuned", "rank": 4, "target": "lora"},
    "combine": {"adapters": ["a", "b"], "target": "both"},
    "extend-tokenizer": {"base": "a", "addition": "b", "target": "tok"},
    "publish-to-hub": {"model": "merged", "repository": "org/merged"},
}
MODEL = {"name": "merged", "kind": "huggingface", "size_bytes": 13_476_000_000, "parameters": 6_738_000_000}
WRITTEN = {"model": MODEL, "bytes_read": 2_000_000, "bytes_written": 1_000_000, "tensors": 291}
CHECKS = {
    "tensors": 291, "rows_recomputed": 4000, "largest_difference": 0.1, "largest_share_of_tolerance": 0.25,
    "largest_difference_at": HOSTILE, "vocabulary_size": 32000, "tokenizer_size": 32000,
    "logits": {
        "passed": True, "positions": 36, "largest_difference": 0.1, "relative_difference": 0.002, "tolerance": 0.008,
        "greedy_agreement": 0.75,
    },
}  # fmt: skip
ERRORS = [
    {"tensor": "model.layers.0.self_attn.q_proj", "error": 0.3, "norm": 3.0},
    {"tensor": "model.layers.0.self_attn.k_proj", "error": 0.4, "norm": 4.0},
    {"tensor": "lm_head", "error": 0.1, "norm": 1.0},
]
ADAPTER = {
    **WRITTEN, "rank": 4, "error": 0.25, "errors": ERRORS, "pairs": 2, "replaced": 1, "unchanged": 7,
    "vocabulary_size": 32000,
}  # fmt: skip
OUTPUTS = [
    {"prompt": "Hello", "text": "The capital is Paris.", "finish_reason": "stop"},
    {"prompt": "Hello", "text": "The capital of <b>France</b>", "finish_reason": "length"},
]
RESULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "merge": (
        {
            **WRITTEN, "vocabulary_size": 32000, "device": "cpu",
            "adapters": [
                {"adapter": "zh", "scale": 1, "tensors": 44, "merged": 21, "replaced": 2, "rows_replaced": 0, "rows_added": 496, "change_norms": {"q_proj": 8.0, "v_proj": None}},
                {"adapter": "alpaca", "scale": 0.5, "tensors": 44, "merged": 21, "replaced": 0, "rows_replaced": 0, "change_norms": {"q_proj": 2.0}},
            ],
            "verification": {**CHECKS, "passed": True, "digests_equal": 291},
        },
        ["Passed", 'width="100.00"', 'width="25.00"', "75 %", "4,000 rows of 291 tensors", "13.5 GB", "6.74 B"],
    ),
    "verify": (
        {**CHECKS, "largest_share_of_tolerance": 1813.0, "passed": False, "model": "merged", "against": ["manifest"], "differences": [{"tensor": "x", "message": HOSTILE}]},
        ["Not passed", 'data-look="bad"', "Differences (1)", "1813"],
    ),
    "generate": (
        {"outputs": [{"prompt": HOSTILE, "text": HOSTILE, "usage": {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}}, {"prompt": "x", "error": {"code": "c", "message": "It failed.", "hint": HOSTILE}}, {"prompt": "y", "text": "", "reasoning": "I look.", "tool_calls": [{"id": "1", "name": "weather", "arguments": HOSTILE}], "finish_reason": "tool_calls"}], "seconds": 1, "tokens_per_second": 9.25, "device": "cpu", "dtype": "float32"},
        ["9.25", "7 prompt tokens, 9 new ones", "It failed.", "I look.", "<code>weather</code>", "ended with a call of a tool"],
    ),
    "compare": (
        {
            "seed": 7, "variants": [{"label": "one", "model": "a"}, {"label": "other", "model": "b"}],
            "comparisons": [{"prompt": "Hello", "outputs": OUTPUTS, "differences": [{"variants": ["one", "other"], "token": 2, "character": 12}]}],
            "pairs": [{"variants": ["one", "other"], "equal": 0, "compared": 1}],
        },
        ["The capital <mark", ">is</mark> Paris.", ">of</mark> &lt;b&gt;France", "0 of 1 texts equal"],
    ),
    "embed": (
        {"embeddings": [[0.6, 0.8], [0.8, -0.6]], "usage": {"prompt_tokens": 5, "total_tokens": 5}, "seconds": 1, "device": "cpu", "dtype": "float32"},
        ["Dimensions</dt><dd>2", "1.0000", "0.000"],
    ),
    "perplexity": (
        {"perplexity": 106.669, "negative_log_likelihood": 4.66973, "bits_per_byte": 2.326, "tokens": 2210, "windows": 3, "context": 2048, "stride": 1024, "seconds": 1, "device": "cpu", "dtype": "float32"},
        ["106.7", "4.67", "2,210", "3 windows of 2048 tokens, 1024 apart"],
    ),
    "tokenize": (
        {"token_ids": [[1, 77], [5, 6, 7]], "pieces": [["<s>", HOSTILE], ["a", "b", "c"]], "tokenizer": {"bos_token": "<s>", "eos_token": HOSTILE, "pad_token": None, "vocabulary_size": 49953, "chat_template": None}},
        ["49,953", "Tokens</dt><dd>5", "[1, 77]", "&lt;s&gt;", ESCAPED],
    ),
    "convert": (
        {**WRITTEN, "bits_per_weight": 4.83, "kl_divergence": 0.05, "same_top_token": 0.9},
        ["4.83", "0.05 nat", 'width="25.00"', "90 %", "1.00 MB"],
    ),
    "import": (
        {"model": {**MODEL, "files": [{"path": HOSTILE, "size_bytes": 1500}], "known_as": "LLaMA 7B"}, "bytes_written": 1500, "files": 1},
        ["LLaMA 7B", "1.50 kB"],
    ),
    # of layer 0 the norms of what is missing are 0.9 and 1.6, those of the changes 3 and 4
    "extract": (ADAPTER, ["25 %", f"{100 * math.hypot(0.9, 1.6) / 5:.4g} %", "model.layers.0", "lm_head"]),
    "combine": (ADAPTER, ["What the adapter cannot express"]),
    "extend-tokenizer": (
        {"model": MODEL, "counts": {"base": 32000, "added": 17953, "present": 12, "total": 49953}, "sha256": "ab" * 32, "samples": [{"text": HOSTILE, "tokens_before": 20, "tokens_after": 9, "before": "a", "after": "b"}]},
        ["49,953", "20 tokens before", "9 tokens now"],
    ),
    "publish-to-hub": (
        {"commit": "cd" * 20, "repository": "org/merged", "url": "javascript:alert(1)", "private": True, "files": 9, "size_bytes": 5000},
        ["org/merged", "Private", "5.00 kB"],
    ),
}  # fmt: skip


def job_of(kind: str, **changes: Any) -> JobResponse:
    moment = "2026-11-27T10:00:00Z"
    fields = {
        "id": "11111111-1111-4111-8111-111111111111", "kind": kind, "status": "succeeded", "created_at": moment,
        "started_at": moment, "finished_at": "2026-11-27T10:01:15Z", "after": [], "queue_position": None, "progress": None,
        "request": {"kind": kind, **REQUESTS.get(kind, {})}, "result": None, "error": None, "metadata": {}, "links": {},
    }  # fmt: skip
    return JobResponse.model_validate({**fields, **changes})


def rendered(
    tmp_path: Path,
    template: str,
    job: JobResponse,
    path: str = "/jobs",
    headers: dict[str, str] | None = None,
) -> str:
    settings = Settings(models_dir=tmp_path)
    app = create_app(settings, queue=JobQueue(FakeRedis(server=FakeServer()), settings))
    with app.test_request_context(path, headers=headers):
        app.preprocess_request()
        values = {
            "row": job_rows.JobRow(job),
            "job": job,
            "upstream": [],
            "downstream": [],
            "deliveries": [],
            "made": None,
        }
        return render_template(template, **names(), **values, log=[], omitted_lines=0)


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_is_drawn_with_its_figures_and_without_markup_of_others(tmp_path: Path, kind: str) -> None:
    result, texts = RESULTS[kind]
    text = rendered(tmp_path, "jobs/detail.html", job_of(kind, result=result))
    assert [expected for expected in texts if expected not in text] == []
    assert HOSTILE not in text
    assert "<b>France" not in text
    assert 'href="javascript:' not in text


def test_a_result_of_an_unknown_kind_is_a_list_of_facts(tmp_path: Path) -> None:
    result = {
        "score": 0.123456789,
        "size_bytes": 1500,
        "notes": [HOSTILE, "two"],
        "nested": {"rows": [{"a": 1}]},
    }
    text = rendered(tmp_path, "jobs/detail.html", job_of("future", result=result))
    assert "0.123457" in text
    assert "1.50 kB" in text
    assert ESCAPED in text


def test_a_result_of_another_version_is_a_list_of_facts(tmp_path: Path) -> None:
    text = rendered(tmp_path, "jobs/detail.html", job_of("merge", result={"merged_layers": 32}))
    assert "<code>merged_layers</code>" in text
    assert "Verification" not in text


def test_a_failed_job_keeps_how_far_it_was_and_says_what_to_do(tmp_path: Path) -> None:
    progress = {
        "stage": "writing tensors",
        "done": 250,
        "total": 1000,
        "unit": "bytes",
        "fraction": 0.25,
        "eta_seconds": None,
    }
    error = {"code": "disk_full", "message": f"No space {HOSTILE}", "hint": "Delete models."}
    job = job_of("merge", status="failed", progress=progress, error=error)
    for template in ("jobs/detail.html", "jobs/row.html"):
        text = rendered(tmp_path, template, job)
        assert 'value="0.2500"' in text
        assert "25 % · writing tensors · 250 B of 1.00 kB" in text
        assert ESCAPED in text
    assert "Delete models." in rendered(tmp_path, "jobs/detail.html", job)


def test_a_running_job_shows_rate_and_time_left(tmp_path: Path) -> None:
    progress = {
        "stage": "writing tensors",
        "done": 10**9,
        "total": 3 * 10**9,
        "unit": "bytes",
        "fraction": 1 / 3,
        "eta_seconds": 80,
    }
    job = job_of("merge", status="running", finished_at=None, progress=progress)
    text = rendered(tmp_path, "jobs/row.html", job)
    assert "33 % · writing tensors · 1.00 GB of 3.00 GB · 25.0 MB per second · 1 min 20 s left" in text
    assert "Run again" not in text


# ---- figures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "parts"),
    [
        ("The capital is Paris.", 12, ("The capital ", "is", " Paris.")),
        ("equal", None, ("equal", "", "")),
        ("short", 5, ("short", "", "")),
        ("a b", 1, ("a", " b", "")),
        ("a  ", 1, ("a", "  ", "")),
        ("北京。", 0, ("", "北京。", "")),
    ],
)  # fmt: skip
def test_the_first_difference_is_marked_to_the_end_of_its_word(
    text: str, position: int | None, parts: tuple[str, str, str]
) -> None:
    assert job_rows.marked(text, position) == parts


def test_errors_of_a_layer_are_joined_by_their_norms() -> None:
    found = job_rows.layer_errors([TensorError(**error) for error in ERRORS])
    assert [(one.layer, one.tensors) for one in found] == [("model.layers.0", 2), ("lm_head", 1)]
    assert found[0].error == pytest.approx(math.sqrt(0.9**2 + 1.6**2) / 5)


def test_without_norms_the_error_of_a_layer_is_its_largest() -> None:
    errors = [TensorError(tensor=f"layers.1.{name}", error=error) for name, error in (("a", 0.2), ("b", 0.5))]
    assert [one.error for one in job_rows.layer_errors(errors)] == [0.5]


def test_a_long_prompt_is_shortened_to_one_line() -> None:
    assert job_rows.shortened("one\n two " + "x" * 100_000) == f"one two {'x' * 72}…"
