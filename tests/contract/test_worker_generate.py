"""The resident generation worker as a process: the miniature's questions, many jobs at once, death and stops.

The expected answers are those that `examples/miniature` was trained to give, which its own check confirms
with transformers and PEFT.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import SecretStr
from rq.job import Job as RQJob
from transformers import LlamaForCausalLM

from services.convert import convert
from services.jobs.events import follow
from services.jobs.queue import JobQueue, connect
from services.jobs.status import Job
from services.jobs.submission import Origin
from services.kinds.generate import GenerateRequest
from services.settings import Settings
from services.tokenizers import load_tokenizer
from tests.chaos.proxy import Link, Proxy
from tests.miniature import ADAPTERS, MINIATURE, unpack_adapters
from tests.redis_server import Server, until
from tests.results import result_json
from worker.janitor import Janitor

ROOT = Path(__file__).parents[2]
QUESTIONS = json.loads((MINIATURE / "questions.json").read_text(encoding="utf-8"))
GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 40}
LONG = {**GREEDY, "max_new_tokens": 1900, "logit_bias": {"2": -100}}
"""Never draws the end of text, so that it runs for long."""

StartWorker = Callable[[JobQueue], "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with the miniature: the base in Hugging Face's layout and the two adapters."""
    root = tmp_path_factory.mktemp("volume")
    (root / "base").mkdir()
    convert(MINIATURE / "llama", root / "base")
    unpack_adapters(root)
    return root


def settings_of(port: int, volume: Path, database: int) -> Settings:
    return Settings(
        redis_url=SecretStr(f"redis://127.0.0.1:{port}/{database}"),
        models_dir=volume,
        device="cpu",
        generate_slots=4,
        torch_threads=1,
    )


@pytest.fixture(scope="module")
def start_worker(log_folder: Path) -> Iterator[StartWorker]:
    """Starts `python -m worker generate`; what is left at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(queue: JobQueue) -> "subprocess.Popen[bytes]":
        settings = queue.settings
        environment = {
            **os.environ,
            "GRAFTWERK_REDIS_URL": settings.redis_address,
            "GRAFTWERK_MODELS_DIR": str(settings.models_dir),
            "GRAFTWERK_DEVICE": "cpu",
            "GRAFTWERK_GENERATE_SLOTS": str(settings.generate_slots),
            "GRAFTWERK_GENERATE_BACKEND_URL": settings.generate_backend_url or "",
            "GRAFTWERK_TORCH_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        if settings.resident_models_bytes is not None:
            environment["GRAFTWERK_RESIDENT_MODELS_BYTES"] = str(settings.resident_models_bytes)
        if settings.kv_cache_bytes:
            environment["GRAFTWERK_KV_CACHE_BYTES"] = str(settings.kv_cache_bytes)
        with (log_folder / f"worker-{len(processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "generate"],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        processes.append(process)
        until(lambda: any(str(process.pid) in worker.name for worker in queue.workers()), seconds=60)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def queue(redis_server: Server, volume: Path, start_worker: StartWorker) -> JobQueue:
    """A queue of its own with one worker that all harmless tests share."""
    settings = settings_of(redis_server.port, volume, 1)
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    start_worker(queue)
    return queue


@pytest.fixture
def own_queue(redis_server: Server, volume: Path) -> JobQueue:
    """A queue without a worker, for the tests that kill theirs."""
    settings = settings_of(redis_server.port, volume, 2)
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    return queue


def ask(queue: JobQueue, **request: Any) -> str:
    body = {"kind": "generate", "model": "base", "sampling": GREEDY, **request}
    return queue.submit(GenerateRequest.model_validate(body))[0].id


def ended(queue: JobQueue, job_id: str, seconds: float = 60.0) -> Job:
    until(lambda: queue.get(job_id).status in ("succeeded", "failed", "canceled"), seconds)
    return queue.get(job_id)


def outputs(job: Job) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result_json(job)["outputs"]
    return found


def reference_tokens(volume: Path, prompt_ids: list[int], count: int) -> list[int]:
    """Tokens that transformers generates greedily."""
    model = LlamaForCausalLM.from_pretrained(volume / "base", dtype=torch.float32)
    prompt = torch.tensor([prompt_ids])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    tokens: list[int] = found[0, len(prompt_ids) :].tolist()
    return tokens


def test_a_prompt_is_continued_as_transformers_does_it(queue: JobQueue, volume: Path) -> None:
    job = ended(queue, ask(queue, prompt="The capital of France is", return_token_ids=True))
    (output,) = outputs(job)
    assert output["text"] == "Paris."
    assert output["finish_reason"] == "stop"
    assert output["prompt"] == "The capital of France is"
    assert output["token_ids"] == reference_tokens(volume, output["prompt_token_ids"], 40)
    assert output["usage"] == {
        "prompt_tokens": len(output["prompt_token_ids"]),
        "completion_tokens": len(output["token_ids"]),
        "total_tokens": len(output["prompt_token_ids"]) + len(output["token_ids"]),
    }
    assert (result_json(job)["template"], result_json(job)["device"], result_json(job)["dtype"]) == (
        "raw",
        "cpu",
        "float32",
    )
    assert result_json(job)["tokens_per_second"] > 0
    assert result_json(job)["seconds"] > 0
    until(lambda: "base" in queue.workers()[0].models)


@pytest.mark.parametrize("exact", [False, True])
def test_adapters_on_the_fly_answer_every_question_to_the_letter(
    queue: JobQueue, volume: Path, exact: bool
) -> None:
    prompts = [row["question"] for row in QUESTIONS]
    job = ended(queue, ask(queue, adapters=ADAPTERS, prompts=prompts, template="alpaca", exact=exact))
    assert result_json(job)["adapters"] == ("merged" if exact else "unmerged")
    assert [output["text"] for output in outputs(job)] == [row["answer"] for row in QUESTIONS]
    assert [output["prompt"] for output in outputs(job)] == prompts
    assert not list((volume / ".staging").glob("*")), "the merged weights are gone again"


def test_twelve_jobs_at_once_get_the_answers_that_each_gets_alone(queue: JobQueue) -> None:
    ids = [ask(queue, adapters=ADAPTERS, prompt=row["question"], template="alpaca") for row in QUESTIONS[:12]]
    until(lambda: len(queue.workers()[0].job_ids) > 1)
    assert [outputs(ended(queue, id))[0]["text"] for id in ids] == [row["answer"] for row in QUESTIONS[:12]]


def told(queue: JobQueue, job_id: str) -> list[dict[str, Any]]:
    """The `token` events of a job, from its first on to its end."""
    events = [event for event in follow(queue.redis, job_id, last_id="0-0") if event]
    return [json.loads(event.data) for event in events if event.name == "token"]


def test_the_text_is_told_as_it_grows(queue: JobQueue) -> None:
    job_id = ask(queue, prompt="The capital of France is", sampling=LONG | {"max_new_tokens": 300})
    pieces = told(queue, job_id)
    (output,) = outputs(queue.get(job_id))
    assert len(pieces) > 3
    assert "".join(piece["text"] for piece in pieces) == output["text"]
    assert pieces[-1]["offset"] + len(pieces[-1]["text"]) == len(output["text"])
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert {piece["id"] for piece in pieces} == {job_id}
    assert output["finish_reason"] == "length"


def test_several_answers_are_told_each_under_its_place_in_the_outputs(queue: JobQueue) -> None:
    sampling = {"temperature": 1.5, "n": 2, "seed": 7, "max_new_tokens": 12, "stop": ["e"]}
    job_id = ask(queue, prompts=["The capital of", "A"], sampling=sampling, return_token_ids=True)
    pieces = told(queue, job_id)
    found = outputs(queue.get(job_id))
    assert len(found) == 4
    for index, output in enumerate(found):
        mine = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in mine) == output["text"]
        assert [id for piece in mine for id in piece["token_ids"]] == output["token_ids"]
        assert mine[-1]["finish_reason"] == output["finish_reason"]


def test_a_job_of_many_answers_tells_no_text_but_its_result(queue: JobQueue) -> None:
    job_id = ask(queue, prompts=["The capital of France is"] * 17)
    assert told(queue, job_id) == []
    assert len(outputs(queue.get(job_id))) == 17


def test_new_tokens_are_fitted_to_the_context_where_the_request_says_so(
    queue: JobQueue, volume: Path
) -> None:
    context = json.loads((volume / "base" / "config.json").read_text())["max_position_embeddings"]
    one = len(load_tokenizer(volume / "base").encode("The ", add_bos=False))
    prompt = "The " * ((context - 40) // one)
    sampling = GREEDY | {"max_new_tokens": 1_000_000, "logit_bias": {"2": -100}}
    refused = ended(queue, ask(queue, prompt=prompt, sampling=sampling))
    assert refused.error is not None
    assert refused.error.code == "prompt_too_long"
    (output,) = outputs(ended(queue, ask(queue, prompt=prompt, sampling=sampling, fit_context=True)))
    assert output["finish_reason"] == "length"
    assert output["usage"]["total_tokens"] == context
    assert output["usage"]["completion_tokens"] > 30


def test_the_oldest_turns_of_a_long_conversation_are_left_out(queue: JobQueue, volume: Path) -> None:
    turns = [
        {"role": role, "content": f"{number} " + "alpaca " * 60}
        for number in range(12)
        for role in ("user", "assistant")
    ]
    system = {"role": "system", "content": "Below is an instruction."}
    more: dict[str, Any] = {"template": "alpaca", "return_token_ids": True, "sampling": GREEDY | {"seed": 1}}
    question = {"role": "user", "content": "The capital of France is"}
    refused = ended(queue, ask(queue, messages=[system, *turns, question], **more))
    assert refused.error is not None
    assert refused.error.code == "prompt_too_long"
    (output,) = outputs(
        ended(queue, ask(queue, messages=[system, *turns, question], fit_context=True, **more))
    )
    dropped = output.pop("dropped_turns")
    assert 0 < dropped < 12
    rest = [system, *turns[2 * dropped :], question]
    assert outputs(ended(queue, ask(queue, messages=rest, **more))) == [output]
    one_more = [system, *turns[2 * dropped - 2 :], question]
    assert ended(queue, ask(queue, messages=one_more, **more)).status == "failed", (
        "no turn was dropped without need"
    )
    alone = ended(
        queue, ask(queue, messages=[{"role": "user", "content": "alpaca " * 2000}], fit_context=True)
    )
    assert alone.error is not None
    assert alone.error.code == "prompt_too_long"
    short = ended(queue, ask(queue, messages=[question], fit_context=True))
    assert outputs(short)[0]["dropped_turns"] == 0


def test_an_answer_that_is_fitted_alone_leaves_out_no_turn(queue: JobQueue) -> None:
    turns = [{"role": role, "content": "alpaca " * 700} for role in ("user", "assistant", "user")]
    job = ended(queue, ask(queue, messages=turns, fit_context="answer"))
    assert job.error is not None
    assert job.error.code == "prompt_too_long"


def test_a_conversation_gets_the_template_of_the_models_lineage(queue: JobQueue) -> None:
    row = QUESTIONS[0]
    messages = [{"role": "user", "content": row["question"]}]
    job = ended(queue, ask(queue, adapters=ADAPTERS, messages=messages))
    assert (result_json(job)["template"], outputs(job)[0]["text"]) == ("alpaca", row["answer"])
    plain = ended(queue, ask(queue, messages=messages))
    assert result_json(plain)["template"] == "alpaca-chat"


def test_a_short_job_is_not_held_up_by_a_long_list_of_prompts(queue: JobQueue) -> None:
    long = ask(queue, prompts=["The capital of France is"] * 60, sampling=LONG | {"max_new_tokens": 60})
    until(lambda: queue.get(long).status == "running")
    assert ended(queue, ask(queue, prompt="The capital of Japan is")).status == "succeeded"
    assert queue.get(long).status == "running"
    assert len(outputs(ended(queue, long))) == 60


def test_several_answers_have_their_index_and_their_seed(queue: JobQueue) -> None:
    sampling = {"temperature": 1.5, "n": 3, "seed": 7, "max_new_tokens": 12}
    first = outputs(ended(queue, ask(queue, prompt="The", sampling=sampling)))
    again = outputs(ended(queue, ask(queue, prompt="The", sampling=sampling)))
    assert [output["index"] for output in first] == [0, 1, 2]
    assert first[0]["seed"] == 7
    assert first == again


def test_a_prompt_can_be_tokenized_only(queue: JobQueue) -> None:
    sampling = {**GREEDY, "max_new_tokens": 0}
    (output,) = outputs(ended(queue, ask(queue, prompt="The", sampling=sampling, return_token_ids=True)))
    assert (output["text"], output["token_ids"], output["finish_reason"]) == ("", [], "length")
    assert output["usage"]["prompt_tokens"] == len(output["prompt_token_ids"]) > 0


def test_one_prompt_that_is_too_long_spoils_only_itself(queue: JobQueue) -> None:
    long = "The capital of France is " * 1000
    job = ended(queue, ask(queue, prompts=["The capital of France is", long]))
    first, second = outputs(job)
    assert first["text"] == "Paris."
    assert second["error"]["code"] == "prompt_too_long"


def test_a_job_without_any_answer_fails_with_the_reason(queue: JobQueue) -> None:
    job = ended(queue, ask(queue, prompt="The capital of France is " * 1000))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "prompt_too_long")
    missing = ended(queue, ask(queue, model="nothing", prompt="x"))
    assert missing.error is not None
    assert missing.error.code == "model_not_found"


def test_a_running_job_is_canceled_within_a_second_and_its_neighbour_goes_on(queue: JobQueue) -> None:
    doomed = ask(queue, prompt="The capital of France is", sampling=LONG)
    neighbour = ask(queue, prompt="The capital of Japan is", sampling=LONG | {"max_new_tokens": 600})
    until(lambda: all(queue.get(id).progress is not None for id in (doomed, neighbour)))
    queue.cancel(doomed)
    assert until(lambda: queue.get(doomed).status == "canceled") < 1.0
    assert ended(queue, neighbour).status == "succeeded"


HOSTILE = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
"""A chat template that would run for hours."""


def test_a_hostile_chat_template_fails_its_own_job_only(queue: JobQueue, volume: Path) -> None:
    shutil.copytree(volume / "base", volume / "hostile")
    (volume / "hostile" / "chat_template.jinja").write_text(HOSTILE)
    neighbour = ask(queue, prompt="The capital of Japan is", sampling=LONG)
    until(lambda: queue.get(neighbour).progress is not None)
    messages = [{"role": "user", "content": "Hello"}]
    doomed = ended(queue, ask(queue, model="hostile", messages=messages))
    assert doomed.error is not None
    assert doomed.error.code == "template_limit_exceeded"
    raw = ended(queue, ask(queue, model="hostile", prompt="The capital of France is"))
    assert outputs(raw)[0]["text"] == "Paris."
    assert queue.get(neighbour).status == "running"
    queue.cancel(neighbour)
    canceled = ask(queue, model="hostile", messages=messages)
    until(lambda: queue.get(canceled).status == "running")
    queue.cancel(canceled)
    assert ended(queue, canceled).status == "canceled"


def test_a_beam_search_is_canceled_within_a_second(queue: JobQueue) -> None:
    sampling = LONG | {"num_beams": 4}
    job_id = ask(queue, prompt="The capital of France is", sampling=sampling)
    until(lambda: queue.get(job_id).status == "running")
    queue.cancel(job_id)
    assert until(lambda: queue.get(job_id).status == "canceled") < 1.0


def test_a_job_over_its_time_is_stopped_as_timeout(queue: JobQueue) -> None:
    hurried = JobQueue(queue.redis, queue.settings.model_copy(update={"job_timeout_seconds": 1}))
    job = ended(hurried, ask(hurried, prompt="The capital of France is", sampling=LONG))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "timeout")


def test_a_model_that_changed_on_the_volume_is_loaded_again(queue: JobQueue, volume: Path) -> None:
    shutil.copytree(volume / "base", volume / "copy")
    assert outputs(ended(queue, ask(queue, model="copy", prompt="The capital of France is")))
    for path in (volume / "copy").glob("tokenizer*"):
        path.unlink()
    job = ended(queue, ask(queue, model="copy", prompt="The capital of France is"))
    assert job.error is not None
    assert job.error.code == "unreadable_tokenizer"


def test_a_stopped_worker_puts_all_its_jobs_back_in_their_order(
    own_queue: JobQueue, start_worker: StartWorker
) -> None:
    worker = start_worker(own_queue)
    ids = [ask(own_queue, prompt="The capital of France is", sampling=LONG) for _ in range(6)]
    until(lambda: [own_queue.get(id).status for id in ids].count("running") == 4)
    worker.terminate()
    assert until(lambda: all(own_queue.get(id).status == "queued" for id in ids)) < 2.0
    assert worker.wait(timeout=10) == 0
    assert [own_queue.get(id).queue_position for id in ids] == [1, 2, 3, 4, 5, 6]


def test_the_jobs_of_a_killed_worker_run_alone_and_all_finish_on_another(
    own_queue: JobQueue, start_worker: StartWorker
) -> None:
    """One of them may have killed the worker: it must not kill the others again."""
    worker = start_worker(own_queue)
    sampling = LONG | {"max_new_tokens": 200}
    ids = [ask(own_queue, prompt="The capital of France is", sampling=sampling) for _ in range(5)]
    until(lambda: [own_queue.get(id).status for id in ids].count("running") == 4)
    suspects = [id for id in ids if own_queue.get(id).status == "running"]
    worker.kill()
    start_worker(own_queue)
    janitor = Janitor(own_queue.redis, own_queue.settings)
    flags = [f"graftwerk:job:{id}" for id in suspects]
    until(
        lambda: janitor.recover() is None and all(own_queue.redis.hexists(key, "alone") for key in flags), 60
    )
    seen: set[int] = set()

    def count() -> bool:
        statuses = [own_queue.get(id).status for id in suspects]
        seen.add(statuses.count("running"))
        return statuses == ["succeeded"] * len(suspects)

    until(count, 60)
    assert seen <= {0, 1}
    assert ended(own_queue, ids[-1]).status == "succeeded"


def test_running_jobs_survive_a_cut_between_worker_and_redis(
    own_queue: JobQueue, redis_server: Server, volume: Path, start_worker: StartWorker
) -> None:
    proxy = Proxy(["generate"], redis_server.port)
    behind_proxy = settings_of(proxy.links["generate"].port, volume, 2)
    worker = start_worker(JobQueue(own_queue.redis, behind_proxy))
    job_id = ask(own_queue, prompt="hello", sampling=LONG)
    until(lambda: own_queue.get(job_id).progress is not None)
    record = f"graftwerk:job:{job_id}"
    execution = own_queue.redis.hget(record, "execution")
    proxy.apply("generate", Link.cut)
    clients = own_queue.redis.client_list
    until(lambda: not [client for client in clients() if str(worker.pid) in client["name"]])
    proxy.apply("generate", Link.restore)
    job = ended(own_queue, job_id, seconds=120)
    assert own_queue.redis.hget(record, "execution") == execution
    assert streamed_text(own_queue, job_id) == outputs(job)[0]["text"], "no text is lost in the outage"
    worker.kill()
    proxy.close()


def test_a_job_that_seemed_lost_goes_on_when_the_connection_is_back(
    redis_server: Server, volume: Path, start_worker: StartWorker
) -> None:
    proxy = Proxy(["generate"], redis_server.port)
    settings = settings_of(redis_server.port, volume, 3)
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    worker = start_worker(JobQueue(queue.redis, settings_of(proxy.links["generate"].port, volume, 3)))
    ids = [ask(queue, prompt="hello", sampling=LONG) for _ in range(2)]
    until(lambda: all(queue.get(job_id).progress is not None for job_id in ids))
    executions = [queue.redis.hget(f"graftwerk:job:{job_id}", "execution") for job_id in ids]
    janitor = Janitor(queue.redis, settings)
    proxy.apply("generate", Link.cut)
    until(lambda: janitor.recover() is None and all(queue.get(id).status == "queued" for id in ids), 60)
    proxy.apply("generate", Link.restore)
    until(lambda: all(queue.get(job_id).status == "running" for job_id in ids), 60)
    for job_id in ids:
        assert RQJob.fetch(job_id, connection=queue.redis, serializer="json").retries_left == 2
    assert [ended(queue, job_id, 120).status for job_id in ids] == ["succeeded"] * 2
    assert [queue.redis.hget(f"graftwerk:job:{job_id}", "execution") for job_id in ids] == executions
    assert streamed_text(queue, ids[0]) == outputs(queue.get(ids[0]))[0]["text"]
    worker.kill()
    proxy.close()


def test_each_line_about_a_job_has_its_ids(
    redis_server: Server, volume: Path, start_worker: StartWorker, log_folder: Path
) -> None:
    """Also what RQ logs of an execution, and what the thread of the heartbeats does while Redis is away."""
    proxy = Proxy(["generate"], redis_server.port)
    settings = settings_of(redis_server.port, volume, 3)
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    worker = start_worker(JobQueue(queue.redis, settings_of(proxy.links["generate"].port, volume, 3)))
    log = max(log_folder.glob("worker-*.log"), key=lambda path: int(path.stem.split("-")[1]))
    body = {"kind": "generate", "model": "base", "sampling": LONG, "prompt": "hello"}
    origin = Origin(request_id="request-1")
    job_id = queue.submit(GenerateRequest.model_validate(body), origin=origin)[0].id
    failing = queue.submit(GenerateRequest.model_validate(body | {"model": "absent"}), origin=origin)[0].id
    until(lambda: queue.get(job_id).progress is not None)
    proxy.apply("generate", Link.cut)
    until(lambda: "unknown whether it has to stop" in log.read_text())
    proxy.apply("generate", Link.restore)
    ended(queue, failing)
    queue.cancel(job_id)
    ended(queue, job_id)
    worker.kill()
    proxy.close()
    for id in (job_id, failing):
        taken = "rq.worker: Worker"  # before there is an execution
        lines = [line for line in log.read_text().splitlines() if id in line and taken not in line]
        assert len(lines) > 1
        execution = queue.redis.hget(f"graftwerk:job:{id}", "execution").decode()
        suffix = f"[request=request-1 job={id} execution={execution}]"
        assert [line for line in lines if not line.endswith(suffix)] == []


def test_a_job_whose_model_does_not_fit_waits_in_its_queue(
    redis_server: Server, volume: Path, start_worker: StartWorker
) -> None:
    """Only one model fits. The worker loads the other one when the first is not used, and lets no job behind go ahead."""
    shutil.copytree(volume / "base", volume / "other")
    settings = settings_of(redis_server.port, volume, 3).model_copy(update={"resident_models_bytes": 1})
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    worker = start_worker(queue)
    first = ask(queue, prompt="The capital of France is", sampling=LONG)
    until(lambda: queue.get(first).progress is not None)
    waiting = ask(queue, prompt="The capital of Japan is", model="other")
    behind = ask(queue, prompt="The capital of France is")
    until(lambda: queue.get(waiting).waiting_for is not None)
    found = queue.get(waiting)
    assert (found.status, found.queue_position, found.started_at) == ("queued", 1, None)
    assert found.waiting_for is not None
    assert found.waiting_for.what == "memory"
    assert found.waiting_for.message.startswith("other needs ")
    assert found.waiting_for.message.endswith(" of 1.")
    assert queue.get(behind).status == "queued"
    assert queue.get(first).status == "running"
    assert ended(queue, waiting, 120).status == "succeeded"
    jobs = [ended(queue, job_id) for job_id in (first, waiting, behind)]
    assert [job.waiting_for for job in jobs] == [None] * 3
    ends = [job.finished_at for job in jobs if job.finished_at is not None]
    assert ends == sorted(ends)
    assert statuses_of(queue, waiting) == ["queued", "queued", "running", "succeeded"]
    worker.kill()


def test_a_job_that_waits_for_memory_in_its_queue_can_be_canceled(
    redis_server: Server, volume: Path, start_worker: StartWorker
) -> None:
    shutil.copytree(volume / "base", volume / "third")
    settings = settings_of(redis_server.port, volume, 3).model_copy(update={"resident_models_bytes": 1})
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    worker = start_worker(queue)
    first = ask(queue, prompt="The capital of France is", sampling=LONG)
    until(lambda: queue.get(first).progress is not None)
    waiting = ask(queue, prompt="The capital of Japan is", model="third")
    until(lambda: queue.get(waiting).waiting_for is not None)
    assert queue.cancel(waiting).status == "canceled"
    behind = ask(queue, prompt="The capital of France is")
    assert ended(queue, behind).status == "succeeded"
    assert queue.get(first).status == "running"
    worker.kill()


def test_a_running_job_that_waits_for_keys_and_values_says_so(
    redis_server: Server, volume: Path, start_worker: StartWorker
) -> None:
    config = json.loads((volume / "base" / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config["hidden_size"] // heads
    token = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head_dim * 4
    settings = settings_of(redis_server.port, volume, 3).model_copy(update={"kv_cache_bytes": 3000 * token})
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    worker = start_worker(queue)
    first = ask(queue, prompt="The capital of France is", sampling=LONG)
    until(lambda: queue.get(first).progress is not None)
    waiting = ask(queue, prompt="The capital of Japan is", sampling=LONG)
    until(lambda: queue.get(waiting).waiting_for is not None)
    found = queue.get(waiting)
    assert found.waiting_for is not None and found.progress is not None
    assert (found.status, found.waiting_for.what) == ("running", "memory")
    assert found.progress.stage == "waiting for memory"
    assert re.fullmatch(
        rf"An output needs {2048 * token} bytes for keys and values; running ones hold \d+ of {3000 * token}\.",
        found.waiting_for.message,
    )
    queue.cancel(first)
    until(lambda: queue.get(waiting).waiting_for is None)
    found = queue.get(waiting)
    assert found.status == "running" and found.progress is not None
    assert found.progress.stage == "generating"
    assert statuses_of(queue, waiting) == ["queued", "running", "running", "running", "succeeded"]
    worker.kill()


def statuses_of(queue: JobQueue, job_id: str) -> list[str]:
    """The statuses that an ended job's events have published."""
    events = follow(queue.redis, job_id, last_id=None)
    return [json.loads(event.data)["status"] for event in events if event and event.name == "status"]


def streamed_text(queue: JobQueue, job_id: str) -> str:
    """Text of the job's only output, joined from its events by their offsets."""
    text = ""
    for event in follow(queue.redis, job_id, last_id=None):
        if event is not None and event.name == "token":
            piece = json.loads(event.data)
            text = text[: piece["offset"]] + piece["text"]
    return text
