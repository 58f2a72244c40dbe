"""Embed jobs on the resident worker: numbers against transformers', beside answers that are being written."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaModel

from services.jobs.queue import JobQueue
from services.jobs.status import Job
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest
from services.tokenizers import load_tokenizer
from tests.contract.test_worker_generate import LONG, queue, start_worker, volume
from tests.redis_server import until
from tests.results import result_json

__all__ = ["queue", "start_worker", "volume"]  # fixtures

TEXTS = ["What is the capital of China?", "你好", "alpaca alpaca alpaca alpaca alpaca"]


def embed(queue: JobQueue, inputs: list[str], **more: object) -> Job:
    request = EmbedRequest.model_validate({"kind": "embed", "model": "base", "inputs": inputs, **more})
    job_id = queue.submit(request)[0].id
    until(lambda: queue.get(job_id).status in ("succeeded", "failed"), 60)
    return queue.get(job_id)


def vectors(job: Job) -> list[list[float]]:
    found: list[list[float]] = result_json(job)["embeddings"]
    return found


def test_a_vector_is_the_mean_of_the_last_hidden_states_at_length_one(queue: JobQueue, volume: Path) -> None:
    job = embed(queue, TEXTS)
    tokenizer = load_tokenizer(volume / "base")
    model = LlamaModel.from_pretrained(volume / "base", dtype=torch.float32)
    count = 0
    for text, vector in zip(TEXTS, vectors(job), strict=True):
        ids = tokenizer.encode(text)
        count += len(ids)
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), mean / mean.norm(), rtol=1e-4, atol=1e-6)
        assert sum(number**2 for number in vector) == pytest.approx(1, abs=1e-5)
    assert result_json(job)["usage"] == {"prompt_tokens": count, "total_tokens": count}


def test_texts_together_have_the_vectors_that_each_has_alone(queue: JobQueue) -> None:
    assert vectors(embed(queue, TEXTS)) == [vectors(embed(queue, [text]))[0] for text in TEXTS]


def test_dimensions_are_the_first_numbers_at_length_one(queue: JobQueue) -> None:
    whole = torch.tensor(vectors(embed(queue, TEXTS)))
    part = torch.tensor(vectors(embed(queue, TEXTS, dimensions=5)))
    assert part.shape == (len(TEXTS), 5)
    torch.testing.assert_close(
        part, whole[:, :5] / whole[:, :5].norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    assert vectors(embed(queue, TEXTS, dimensions=whole.shape[1])) == vectors(embed(queue, TEXTS))


def test_more_dimensions_than_the_model_has_are_refused(queue: JobQueue) -> None:
    job = embed(queue, ["x"], dimensions=10_000)
    assert job.error is not None
    assert job.error.code == "invalid_request"
    assert "dimensions is 10000, and the vectors of 'base' have " in job.error.message


def test_one_text_that_is_too_long_fails_the_job_and_no_other(queue: JobQueue) -> None:
    asked = {"kind": "generate", "model": "base", "prompt": "The", "sampling": LONG | {"max_new_tokens": 300}}
    neighbour = queue.submit(GenerateRequest.model_validate(asked))[0].id
    job = embed(queue, ["short", "The capital of France is " * 1000])
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "prompt_too_long")
    until(lambda: queue.get(neighbour).status == "succeeded", 60)
