"""Jobs with unmerged adapters: the tokens of the merged copy, one base in memory, and the copy where it is needed."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.checkpoints.tensor_reader import TensorReader
from services.errors import NonFiniteTensor
from services.kinds.generate import GenerateRequest, GenerateResult
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.generate.engine_driver import DrivenJob
from tests.job_context import job_context
from tests.reference.peft_merge import make_adapter, random_model, save_model, write_tokenizer
from worker.inference.model_cache import ModelCache
from worker.inference.model_key import key_of
from worker.inference.scheduler import Scheduler
from worker.inference.session import open_session

EMBEDDINGS = ["embed_tokens", "lm_head"]
ATTENTION = ["q_proj", "v_proj"]

ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "rs": {"r": 16, "use_rslora": True, "target_modules": ATTENTION},
    "patterns": {
        "r": 4, "rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"v_proj": 30},
        "target_modules": [*ATTENTION, "down_proj"],
    },
    "head": {"r": 3, "target_modules": ["lm_head", "o_proj"]},
    "embedding": {"r": 3, "target_modules": ["embed_tokens", "k_proj"]},
    "grown": {"vocabulary": 117, "modules_to_save": EMBEDDINGS},
    "after": {"r": 3, "vocabulary": 117, "target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    "tokens": {"r": 2, "target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [5, 17, 60]}},
    "dora": {"r": 2, "target_modules": ATTENTION, "use_dora": True},
    "norm": {"r": 2, "target_modules": ATTENTION, "modules_to_save": ["norm"]},
}  # fmt: skip

STACKS: Sequence[Sequence[str | Mapping[str, Any]]] = (
    ["plain"], ["rs"], ["patterns"], ["head"], ["embedding"], ["grown"], ["tokens"],
    ["plain", {"name": "rs", "scale": 0.5}], ["plain", "grown", {"name": "patterns", "scale": -1.5}],
    [{"name": "plain", "scale": 0.25}], ["grown", "after"], ["embedding", "tokens"], ["rs", "head"],
    [{"name": "embedding", "scale": 2}, "grown"], ["patterns", "grown", {"name": "after", "scale": 3}], [],
)  # fmt: skip
"""Sixteen stacks, one for each request of a batch."""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = tmp_path_factory.mktemp("volume")
    save_model(random_model(torch.float32), volume / "base")
    tied: Any = random_model(torch.float32, tied=True)
    tied.save_pretrained(volume / "tied")
    write_tokenizer(volume / "tied", 101)
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        folder = make_adapter(volume / name, seed=seed, **options)
        if name == "grown":
            write_tokenizer(folder, options["vocabulary"])
    return volume


class Worker:
    """The scheduler and the cache of one worker."""

    def __init__(self, volume: Path, limit_bytes: int = sys.maxsize, slots: int = 16) -> None:
        self.volume, self.runs = volume, count(1)
        self.cache = ModelCache("cpu", limit_bytes, slots)
        self.scheduler: Scheduler[DrivenJob] = Scheduler(
            self.cache, on_success=self._succeed, on_failure=self._fail
        )

    def run(self, requests: Sequence[GenerateRequest]) -> list[DrivenJob]:
        """Runs requests together until all have ended."""
        jobs = [DrivenJob(job_context(self.volume, run=str(next(self.runs)))) for _ in requests]
        for job, request in zip(jobs, requests, strict=True):
            self.scheduler.add(job, open_session(request, job.context))
        while any(job.result is None and job.error is None for job in jobs):
            self.scheduler.step()
        return jobs

    def _succeed(self, job: DrivenJob, result: Any) -> None:
        job.result = result

    def _fail(self, job: DrivenJob, failure: Any) -> None:
        job.error = failure.error


def request(adapters: Sequence[Any], model: str = "base", **fields: Any) -> GenerateRequest:
    sampling = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 20}
    body = {
        "kind": "generate", "model": model, "adapters": adapters, "prompt_token_ids": [1, 9, 40, 33],
        "return_token_ids": True, "sampling": sampling,
    }  # fmt: skip
    return GenerateRequest.model_validate({**body, **fields})


def tokens(job: DrivenJob) -> list[int]:
    assert job.error is None, job.error
    assert isinstance(job.result, GenerateResult)
    (output,) = job.result.outputs
    assert output.token_ids is not None
    return output.token_ids


def uses(jobs: Sequence[DrivenJob]) -> list[str | None]:
    return [job.result.adapters for job in jobs if isinstance(job.result, GenerateResult)]


@pytest.mark.parametrize("model", ["base", "tied"])
def test_sixteen_mixed_requests_have_the_tokens_of_the_merged_copies(volume: Path, model: str) -> None:
    worker = Worker(volume)
    mixed = worker.run([request(stack, model) for stack in STACKS])
    assert uses(mixed) == ["unmerged" if stack else None for stack in STACKS]
    assert len({id(found.loaded.model) for found in worker.cache.models}) == 1
    found = [tokens(job) for job in mixed]
    exact = [Worker(volume).run([request(stack, model, exact=True)])[0] for stack in STACKS]
    assert uses(exact) == ["merged" if stack else None for stack in STACKS]
    assert found == [tokens(job) for job in exact]
    assert len({tuple(ids) for ids in found}) >= 12
    assert max(max(ids) for ids in found) >= 101  # tokens of the grown vocabulary


@pytest.mark.parametrize(
    ("name", "reason"),
    [("dora", "is of type DoRA"), ("norm", "replaces 'model.layers.0.input_layernorm.weight'")],
)
def test_what_is_not_a_low_rank_product_is_merged_and_the_plan_says_so(
    volume: Path, name: str, reason: str
) -> None:
    worker = Worker(volume)
    mixed = worker.run([request([name]), request(["plain"])])
    assert uses(mixed) == ["merged", "unmerged"]
    assert tokens(mixed[0]) == tokens(Worker(volume).run([request([name], exact=True)])[0])
    store = ModelStore(volume)
    expected = f"The adapters are merged into a copy of the model: adapter {name} {reason}."
    assert preflight(request([name]), store, ()).warnings == [expected]
    assert preflight(request([name], exact=True), store, ()).warnings == []


def adapter_bytes(volume: Path, *names: str) -> int:
    """Bytes of the adapters' files in float32, without their headers."""
    files = [volume / name / "adapter_model.safetensors" for name in names]
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


def test_memory_is_that_of_the_base_and_of_each_adapter_once(volume: Path) -> None:
    worker = Worker(volume)
    stacks = [["plain"], [{"name": "plain", "scale": 0.5}, "rs"], ["rs"], ["grown"], ["rs", "grown"]]
    assert uses(worker.run([request(stack) for stack in stacks])) == ["unmerged"] * 5
    base = sum(tensor.nbytes for tensor in load_file(volume / "base" / "model.safetensors").values())
    in_memory = {part: size for model in worker.cache.models for part, size in model.parts.items()}
    assert sum(in_memory.values()) == base + adapter_bytes(volume, "plain", "rs", "grown")
    planned = [
        preflight(request(stack), ModelStore(volume), ()).peak_memory_bytes for stack in ([], ["rs", "grown"])
    ]
    assert planned[1] - planned[0] == adapter_bytes(volume, "rs", "grown")


def test_another_scale_reads_no_file_and_the_same_scale_gives_the_same_tokens(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(volume)
    at = [[{"name": "plain", "scale": scale}, "grown"] for scale in (1, 0.3, -2)]
    before = [tokens(worker.run([request(stack)])[0]) for stack in at]
    assert len({tuple(ids) for ids in before}) == 3
    assert len(worker.cache.models) == 2  # the base, and the last of the scales

    def refuse(*_: Any) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(TensorReader, "view", refuse)
    assert [tokens(worker.run([request(stack)])[0]) for stack in at] == before


def test_idle_adapters_are_evicted_and_the_base_stays(volume: Path) -> None:
    base = sum(tensor.nbytes for tensor in load_file(volume / "base" / "model.safetensors").values())
    worker = Worker(volume, limit_bytes=base + adapter_bytes(volume, "plain") + 1)
    names = ["plain", "rs", "patterns", "plain"]
    jobs = [worker.run([request([name])])[0] for name in names]
    (loaded,) = [model for model in worker.cache.models if model.base is None]
    assert tokens(jobs[0]) == tokens(jobs[3])
    assert (
        sum(size for model in worker.cache.models for size in model.parts.values())
        <= worker.cache.limit_bytes
    )
    assert loaded.refcount == 0
    worker.cache.evict_unused()
    assert worker.cache.models == []


def test_a_base_and_its_adapter_that_are_larger_than_the_limit_run_alone(volume: Path) -> None:
    worker = Worker(volume, limit_bytes=1)
    (job,) = worker.run([request(["plain", "rs"])])
    assert uses([job]) == ["unmerged"]
    assert tokens(job) == tokens(Worker(volume).run([request(["plain", "rs"])])[0])


def test_an_adapter_with_nan_fails_its_job_and_no_other(volume: Path) -> None:
    folder = volume / "broken"
    shutil.copytree(volume / "plain", folder)
    state = load_file(folder / "adapter_model.safetensors")
    next(iter(state.values()))[0, 0] = torch.nan
    save_file(state, folder / "adapter_model.safetensors")
    worker = Worker(volume)
    broken, fine = worker.run([request(["broken"]), request(["plain"])])
    assert isinstance(broken.error, NonFiniteTensor)
    assert "broken" in broken.error.message
    assert len(tokens(fine)) == 20
    assert [model.refcount for model in worker.cache.models] == [0, 0]


def test_the_identity_of_outputs_tells_merged_and_unmerged_apart_and_older_keys_are_kept(
    volume: Path,
) -> None:
    choice = request(["plain"])
    key = key_of(choice, ModelStore(volume))
    assert key.unmerged
    assert not key_of(request(["plain"], quantization="8bit"), ModelStore(volume)).unmerged
    assert str(key) == str(key_of(request(["plain"], exact=True), ModelStore(volume)))
    assert str(key).startswith("ModelKey(model='base', stamp=((") and str(key).endswith("rope_alpha=None)")
