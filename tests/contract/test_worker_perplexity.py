"""Perplexity jobs on the resident worker: base, adapters on the fly and merged, beside answers that are written."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from services.errors import InvalidRequest, SourceNotFound
from services.jobs.queue import JobQueue
from services.jobs.status import Job
from services.kinds.perplexity import PerplexityRequest
from services.merge import merge
from services.models.store import ModelStore
from services.preflight import preflight
from services.preflight.perplexity import SCORED_TEXT_BYTES
from services.tokenizers import load_tokenizer
from tests.contract.test_worker_generate import (
    ADAPTERS,
    LONG,
    QUESTIONS,
    ask,
    ended,
    queue,
    start_worker,
    volume,
)
from tests.redis_server import until
from tests.results import result_json

__all__ = ["queue", "start_worker", "volume"]  # fixtures

ANSWERS = "\n".join(f"{entry['question']}\n{entry['answer']}" for entry in QUESTIONS)


def request_of(**fields: Any) -> PerplexityRequest:
    return PerplexityRequest.model_validate({"kind": "perplexity", "model": "base", **fields})


def submit(queue: JobQueue, **fields: Any) -> str:
    return queue.submit(request_of(**fields))[0].id


def result(job: Job) -> dict[str, Any]:
    return result_json(job)


@pytest.fixture(scope="module")
def merged(volume: Path) -> str:
    (volume / "merged").mkdir()
    merge(volume / "base", [(name, volume / name, 1.0) for name in ADAPTERS], volume / "merged")
    return "merged"


def test_a_short_text_has_the_loss_of_transformers(queue: JobQueue, volume: Path) -> None:
    text = "The capital of France is Paris. 你好，世界！"
    found = result(ended(queue, submit(queue, text=text)))
    ids = torch.tensor([load_tokenizer(volume / "base").encode(text)])
    model: Any = LlamaForCausalLM.from_pretrained(volume / "base", dtype=torch.float32)
    with torch.inference_mode():
        loss = float(model(ids, labels=ids).loss)
    scored = ids.shape[1] - 1
    assert found["negative_log_likelihood"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    bits = loss * scored / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / len(text.encode()), rel=1e-5)
    assert (found["tokens"], found["windows"], found["device"], found["dtype"]) == (
        scored, 1, "cpu", "float32",
    )  # fmt: skip
    assert (found["context"], found["stride"]) == (2048, 1024)
    assert found["seconds"] > 0


def test_base_and_adapters_score_as_the_merged_model_and_better_than_the_base(
    queue: JobQueue, volume: Path, merged: str
) -> None:
    (volume / "incoming").mkdir(exist_ok=True)
    (volume / "incoming" / "answers.txt").write_text(ANSWERS, encoding="utf-8")
    windows = {"context": 128, "stride": 64, "text_file": "incoming/answers.txt"}
    base, unmerged, whole = (
        result(ended(queue, submit(queue, **windows, **choice)))
        for choice in ({}, {"adapters": ADAPTERS}, {"model": merged})
    )
    assert whole["windows"] > 3
    assert unmerged["tokens"] == whole["tokens"]
    assert unmerged["perplexity"] == whole["perplexity"]
    # the merged vocabulary is larger, so only the bits a byte compare
    assert whole["bits_per_byte"] < 0.5 * base["bits_per_byte"]


def test_answers_go_on_between_the_windows_and_cancel_comes_within_them(queue: JobQueue) -> None:
    scored = submit(queue, text=ANSWERS * 60, context=512, stride=8)
    until(lambda: (progress := queue.get(scored).progress) is not None and progress.done > 0, 60)
    answer = ended(queue, ask(queue, prompt="The", sampling=LONG | {"max_new_tokens": 20}))
    assert answer.status == "succeeded"
    job = queue.get(scored)
    assert job.status == "running"
    assert job.progress is not None
    assert (job.progress.stage, job.progress.unit) == ("scoring", "tokens")
    assert 0 < job.progress.done < job.progress.total
    queue.cancel(scored)
    assert ended(queue, scored, 5).status == "canceled"


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"text": "Hello there", "context": 100_000}, "invalid_request"), ({"text_file": "incoming/gbk.txt"}, "unreadable_file")],
)  # fmt: skip
def test_what_only_the_model_or_the_file_can_tell_fails_the_job(
    queue: JobQueue, volume: Path, fields: dict[str, Any], code: str
) -> None:
    (volume / "incoming").mkdir(exist_ok=True)
    (volume / "incoming" / "gbk.txt").write_bytes("中文文本".encode("gbk"))
    job = ended(queue, submit(queue, **fields))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", code)


def test_what_the_request_alone_can_tell_is_refused_at_once(volume: Path) -> None:
    store = ModelStore(volume)
    (volume / "incoming").mkdir(exist_ok=True)
    (volume / "incoming" / "folder").mkdir()
    with (volume / "incoming" / "huge.txt").open("wb") as file:
        file.truncate(SCORED_TEXT_BYTES + 1)
    for fields, error in [
        ({"text_file": "incoming/none.txt"}, SourceNotFound),
        ({"text_file": "incoming/huge.txt"}, InvalidRequest),
        ({"text_file": "incoming/folder"}, InvalidRequest),
    ]:
        with pytest.raises(error):
            preflight(request_of(**fields), store, {})
    for fields in ({}, {"text": "a", "text_file": "incoming/a"}, {"text": "a", "context": 8, "stride": 8}):
        with pytest.raises(ValueError, match=r"exactly one|must be below"):
            request_of(**fields)
