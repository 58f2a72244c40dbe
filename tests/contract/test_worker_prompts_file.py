"""Files of prompts on the resident worker: what is written, and jobs that go on after their worker's death."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from services.jobs.queue import JobQueue
from services.jobs.status import Job
from tests.contract.test_worker_generate import (
    ADAPTERS,
    GREEDY,
    QUESTIONS,
    StartWorker,
    ask,
    ended,
    outputs,
    own_queue,
    queue,
    start_worker,
    volume,
)
from tests.redis_server import until
from tests.results import result_json
from worker.janitor import Janitor

__all__ = ["own_queue", "queue", "start_worker", "volume"]  # fixtures

DRAWN = {"temperature": 1.2, "seed": 11, "n": 2, "max_new_tokens": 60, "logit_bias": {"2": -100}}
"""Drawn at random, and never the end of text, so that every answer takes its time."""


def result(job: Job) -> dict[str, Any]:
    return result_json(job)


def lines(volume: Path, job_id: str) -> list[dict[str, Any]]:
    path = volume / "results" / f"{job_id}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def predictions(volume: Path, job_id: str) -> list[dict[str, Any]]:
    text = (volume / "results" / f"{job_id}.predictions.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


def put(volume: Path, name: str, text: str) -> str:
    (volume / "incoming").mkdir(exist_ok=True)
    (volume / "incoming" / name).write_text(text, encoding="utf-8")
    return f"incoming/{name}"


def test_every_question_of_a_file_is_answered_to_the_letter(queue: JobQueue, volume: Path) -> None:
    file = put(volume, "q.txt", "\n".join(row["question"] for row in QUESTIONS))
    job = ended(queue, ask(queue, adapters=ADAPTERS, template="alpaca", prompts_file=file))
    assert predictions(volume, job.id) == [
        {"Input": row["question"], "Output": row["answer"]} for row in QUESTIONS
    ]
    found = result(job)
    assert (found["prompts"], found["answered"], found["failed"]) == (len(QUESTIONS), len(QUESTIONS), 0)
    assert [one["text"] for one in outputs(job)] == [row["answer"] for row in QUESTIONS[:10]]
    written = {line["number"]: line for line in lines(volume, job.id)[1:]}
    assert [written[number]["outputs"] for number in range(10)] == [[one] for one in outputs(job)]
    assert found["template"] == "alpaca"
    assert found["results_file"] == f"results/{job.id}.jsonl"


def test_a_line_may_have_its_own_system_text_input_or_conversation(queue: JobQueue, volume: Path) -> None:
    row = QUESTIONS[0]
    turns = [{"role": "user", "content": row["question"]}]
    asked = [
        {"prompt": row["question"]},
        {"messages": turns},
        {"prompt": row["question"], "system": "Below."},
        {"prompt": row["question"], "input": "i"},
        {"prompt": "The capital of France is " * 1000},
    ]
    file = put(volume, "lines.jsonl", "\n".join(json.dumps(line) for line in asked))
    more: dict[str, Any] = {"adapters": ADAPTERS, "template": "alpaca", "return_token_ids": True}
    more["sampling"] = GREEDY | {"seed": 5}
    job = ended(queue, ask(queue, prompts_file=file, **more))
    plain, conversation, system, joined, long = outputs(job)
    assert plain["text"] == conversation["text"] == row["answer"]
    assert plain["prompt_token_ids"] == conversation["prompt_token_ids"]
    for other, own in ((system, {"system": "Below."}), (joined, {"input": "i"})):
        alone = ended(queue, ask(queue, prompt=row["question"], **more, **own))
        assert outputs(alone) == [other]
        assert other["prompt_token_ids"] != plain["prompt_token_ids"]
    assert long["error"]["code"] == "prompt_too_long"
    assert result(job)["failed"] == 1
    assert predictions(volume, job.id)[4]["Output"] is None


def test_a_file_without_any_answer_fails_with_the_first_reason(queue: JobQueue, volume: Path) -> None:
    file = put(volume, "long.txt", "The capital of France is " * 1000)
    job = ended(queue, ask(queue, prompts_file=file))
    assert job.error is not None
    assert job.error.code == "prompt_too_long"
    assert [line.get("error", {}).get("code") for line in lines(volume, job.id)] == [None, "prompt_too_long"]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_goes_on_where_its_worker_died_with_the_texts_of_an_undisturbed_run(
    own_queue: JobQueue, queue: JobQueue, volume: Path, start_worker: StartWorker, stop: signal.Signals
) -> None:
    file = put(volume, "many.txt", "\n".join(f"{row['question']} {row['answer']}" for row in QUESTIONS))
    worker = start_worker(own_queue)
    job_id = ask(own_queue, prompts_file=file, sampling=DRAWN)
    until(lambda: len(lines(volume, job_id)) > 4, 60)
    worker.send_signal(stop)
    worker.wait(timeout=20)
    half = lines(volume, job_id)
    assert 4 < len(half) < len(QUESTIONS), "it was stopped in the middle"
    assert all(one["finish_reason"] == "length" for line in half[1:] for one in line["outputs"])
    with (volume / "results" / f"{job_id}.jsonl").open("ab") as torn:
        torn.write(b'{"number": 0, "prompt"')
    successor = start_worker(own_queue)
    janitor = Janitor(own_queue.redis, own_queue.settings)
    until(lambda: janitor.recover() is None and own_queue.get(job_id).status == "succeeded", 90)
    successor.kill()  # the next test has a worker of its own
    found = result(own_queue.get(job_id))
    assert found["resumed"] == len(half) - 1
    assert lines(volume, job_id)[: len(half)] == half, "no answer is generated again"
    undisturbed = ended(queue, ask(queue, prompts_file=file, sampling=DRAWN), 90)
    assert result(undisturbed)["resumed"] == 0
    assert predictions(volume, job_id) == predictions(volume, undisturbed.id)
    assert len(predictions(volume, job_id)) == 2 * len(QUESTIONS)
    assert found["usage"] == result(undisturbed)["usage"]
    assert outputs(own_queue.get(job_id)) == outputs(undisturbed)


def test_a_volume_that_cannot_be_written_fails_the_job_and_no_neighbour(
    queue: JobQueue, volume: Path
) -> None:
    file = put(volume, "one.txt", "The capital of France is")
    (volume / "results").rename(volume / "results-away")
    (volume / "results").write_text("in the way")
    try:
        neighbour = ask(queue, prompt="The capital of Japan is")
        job = ended(queue, ask(queue, prompts_file=file))
        assert job.status == "failed"
        assert outputs(ended(queue, neighbour))[0]["text"] == "Tokyo."
    finally:
        (volume / "results").unlink()
        (volume / "results-away").rename(volume / "results")
    assert ended(queue, ask(queue, prompts_file=file)).status == "succeeded"
