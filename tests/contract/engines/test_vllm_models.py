"""Jobs on servers of vLLM: which servers run, which adapters they apply, and what results say."""

import json
import math
import time
from collections.abc import Callable, Iterator
from os import kill
from signal import SIGKILL
from typing import Any

import pytest

from services.kinds.compare import CompareResult
from services.progress import Progress
from tests.contract.engines.conftest import FakeVllm, tokens_after
from tests.contract.engines.processes import all_end, is_alive
from tests.contract.engines.vllm_worker import PROMPT, SAMPLING, VllmWorker
from tests.reference.peft_merge import make_adapter
from worker.inference.vllm_engine import VllmEngine
from worker.inference.vllm_models import CPU_CACHE_BYTES


@pytest.fixture
def workers(fake: FakeVllm) -> Iterator[Callable[..., VllmWorker]]:
    started: list[VllmWorker] = []

    def start(*arguments: Any, **settings: Any) -> VllmWorker:
        started.append(VllmWorker(fake.volume, *arguments, **settings))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def worker(workers: Callable[..., VllmWorker]) -> VllmWorker:
    return workers()


def copy_of_base(fake: FakeVllm, name: str) -> None:
    for file in (fake.volume / "base").iterdir():
        (fake.volume / name).mkdir(exist_ok=True)
        (fake.volume / name / file.name).write_bytes(file.read_bytes())
    (fake.volume / f"{name}.json").write_bytes((fake.volume / "base.json").read_bytes())


def test_a_result_names_the_engine(worker: VllmWorker) -> None:
    result = worker.result()
    assert result.outputs[0].token_ids == tokens_after(PROMPT, 6)
    assert (result.engine, result.device, result.dtype, result.adapters) == ("vllm", "cpu", "float32", None)


def test_progress_says_that_the_server_starts(worker: VllmWorker, fake: FakeVllm) -> None:
    fake.behave(start_seconds=0.3)
    stages: list[str] = []

    def report(progress: Progress) -> None:
        stages.append(progress.stage)

    worker.run(worker.add(report))
    assert list(dict.fromkeys(stages)) == ["starting vLLM", "generating"]


def test_other_jobs_go_on_while_a_server_starts(worker: VllmWorker, fake: FakeVllm) -> None:
    copy_of_base(fake, "other")
    (fake.volume / "other.json").write_text(json.dumps({"start_seconds": 600}))
    waiting, running = worker.add(model="other"), worker.add()
    worker.run(running)
    assert running.error is None
    assert (waiting.result, waiting.error) == (None, None)


def test_an_adapter_is_applied_to_the_base_of_the_same_server(worker: VllmWorker, fake: FakeVllm) -> None:
    assert worker.result().adapters is None
    result = worker.result(adapters=["a"])
    assert result.outputs[0].token_ids == tokens_after(PROMPT, 6, shift=5)
    assert result.adapters == "unmerged"
    assert len(fake.heard("start")) == 1
    (loaded,) = fake.heard("/v1/load_lora_adapter")
    assert loaded["lora_path"] == str(fake.volume / "a")
    assert loaded["lora_name"].startswith("a@")


def test_an_adapter_whose_files_have_changed_is_another_one(worker: VllmWorker, fake: FakeVllm) -> None:
    worker.result(adapters=["a"])
    file = fake.volume / "a" / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 5', '"lora_alpha": 11'))
    result = worker.result(adapters=["a"])
    assert result.outputs[0].token_ids == tokens_after(PROMPT, 6, shift=11)
    names = [body["lora_name"] for body in fake.heard("/v1/load_lora_adapter")]
    assert len(set(names)) == 2


def unlike(fake: FakeVllm, name: str, **options: Any) -> list[str]:
    make_adapter(fake.volume / name, seed=9, **options)
    return [name]


MERGED: dict[str, Callable[[FakeVllm], list[Any]]] = {
    "two adapters": lambda _: ["a", "b"],
    "a scale": lambda _: [{"name": "a", "scale": 0.5}],
    "a rank above the limit": lambda fake: unlike(fake, "c", r=16),
    "DoRA": lambda fake: unlike(fake, "c", use_dora=True),
    "saved modules": lambda fake: unlike(fake, "c", modules_to_save=["embed_tokens", "lm_head"]),
    "pairs of the head": lambda fake: unlike(fake, "c", target_modules=["lm_head"]),
}


@pytest.mark.parametrize("case", MERGED)
def test_what_vllm_does_not_apply_is_served_as_a_merged_copy(
    workers: Callable[..., VllmWorker], fake: FakeVllm, case: str
) -> None:
    worker = workers(vllm_adapter_rank=8)
    result = worker.result(adapters=MERGED[case](fake))
    assert result.adapters == "merged"
    assert result.outputs[0].token_ids == tokens_after(PROMPT, 6)
    assert fake.heard("/v1/load_lora_adapter") == []
    (model,) = worker.models.models
    assert not list(fake.volume.glob(".*/1")), "the copy is removed once the server has read it"
    assert model.adapters == "merged"


def test_exact_asks_for_a_merged_copy(worker: VllmWorker, fake: FakeVllm) -> None:
    result = worker.result(adapters=["a"], exact=True)
    assert result.adapters == "merged"
    assert fake.heard("/v1/load_lora_adapter") == []


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"quantization": "8bit"}, "quantization"),
        ({"rope_alpha": 2.0}, "rope_alpha"),
        ({"sampling": {**SAMPLING, "num_beams": 2}}, "num_beams"),
    ],
)
def test_what_vllm_does_not_have_fails_with_its_name(worker: VllmWorker, option: Any, name: str) -> None:
    job = worker.add(**option)
    worker.run(job)
    assert job.error is not None
    assert (job.error.code, name in job.error.message) == ("unsupported_option", True)


def test_variants_of_a_comparison_are_generated_by_vllm(worker: VllmWorker) -> None:
    body = {"variants": [{"model": "base"}, {"model": "base", "adapters": ["a"]}], "prompt": "x"}
    job = worker.add(kind="compare", sampling=SAMPLING, **body)
    worker.run(job)
    assert isinstance(job.result, CompareResult), job.error
    assert [variant.engine for variant in job.result.variants] == ["vllm", "vllm"]
    assert [[adapter.name for adapter in variant.adapters] for variant in job.result.variants] == [[], ["a"]]


def test_a_server_that_dies_fails_its_jobs_and_the_next_job_gets_a_new_one(
    worker: VllmWorker, fake: FakeVllm
) -> None:
    fake.behave(crash_on=60)
    fine, fatal = worker.add(), worker.add(prompt_token_ids=[1, 60])
    worker.run(fine, fatal)
    assert fatal.error is not None
    assert fatal.error.transient, "the queue tries it again"
    assert "was ended by signal 9; its last lines: " in fatal.error.message
    assert worker.models.models == []
    assert worker.result().outputs[0].token_ids == tokens_after(PROMPT, 6)
    assert len(fake.heard("start")) == 2


def test_a_server_that_only_answers_errors_is_replaced(worker: VllmWorker, fake: FakeVllm) -> None:
    """vLLM's server outlives the process that has the model for a while: tries on it would all be lost."""
    fake.behave(break_on=60)
    job = worker.add(prompt_token_ids=[1, 60])
    worker.run(job)
    assert job.error is not None
    assert job.error.transient
    assert job.error.message == "vLLM answered 500: EngineCore encountered an issue."
    assert worker.models.models == []
    assert all_end(fake.pids, 1)
    assert worker.result().outputs[0].token_ids == tokens_after(PROMPT, 6)
    assert len(fake.heard("start")) == 2


def test_a_server_that_died_while_no_job_ran_is_replaced(worker: VllmWorker, fake: FakeVllm) -> None:
    worker.result()
    worker.result(adapters=["a"])
    pids = fake.pids
    base, adapted = (model.engine for model in worker.models.models)
    assert isinstance(base, VllmEngine)
    kill(base.server.pid, SIGKILL)
    while not (base.is_lost and adapted.is_lost):
        time.sleep(0.01)
    assert worker.result(adapters=["a"]).adapters == "unmerged"
    assert len(fake.heard("start")) == 2
    assert all_end(pids, 2)


def test_the_least_recently_used_server_is_stopped_for_another(
    workers: Callable[..., VllmWorker], fake: FakeVllm
) -> None:
    worker = workers(CPU_CACHE_BYTES + 2**30)
    worker.result()
    worker.result(adapters=["a"])
    assert worker.models.busy_bytes == 0
    pids = fake.pids
    copy_of_base(fake, "other")
    worker.result(model="other")
    assert [model.key.name for model in worker.models.models] == ["other"]
    assert all_end(pids, 0)


def test_a_busy_server_is_not_stopped_and_the_other_job_waits(
    workers: Callable[..., VllmWorker], fake: FakeVllm
) -> None:
    fake.behave(token_seconds=0.05)
    worker = workers(CPU_CACHE_BYTES + 2**30)
    copy_of_base(fake, "other")
    first = worker.add(sampling={**SAMPLING, "max_new_tokens": 20})
    worker.run_until(lambda: bool(fake.heard("/v1/completions")))
    second = worker.add(model="other")
    assert worker.models.busy_bytes >= CPU_CACHE_BYTES
    worker.run(first, second)
    assert (first.error, second.error) == (None, None)


def test_the_memory_of_a_server_is_shared_by_its_engines(worker: VllmWorker) -> None:
    worker.result()
    alone = sum(model.size_bytes for model in worker.models.models)
    worker.result(adapters=["a"])
    sizes = [model.size_bytes for model in worker.models.models]
    assert len(sizes) == 2
    assert math.isclose(sum(sizes), alone, abs_tol=1)


def test_an_idle_server_is_stopped(worker: VllmWorker, fake: FakeVllm) -> None:
    worker.result()
    worker.models.evict_idle(0)
    worker.models.evict_idle(60)
    assert all(map(is_alive, fake.pids))
    time.sleep(0.02)
    worker.models.evict_idle(0.01)
    assert worker.models.models == []
    assert all_end(fake.pids, 0)


def test_a_canceled_job_closes_its_streams(worker: VllmWorker, fake: FakeVllm) -> None:
    fake.behave(token_seconds=0.02)
    job = worker.add(sampling={**SAMPLING, "max_new_tokens": 50})
    worker.run_until(lambda: bool(fake.heard("/v1/completions")))
    worker.scheduler.remove(job)
    (model,) = worker.models.models
    assert model.refcount == 0
    worker.run_until(lambda: model.engine.step() is not None and model.engine.free_slots == 8)
