"""Jobs on GGUF models: plans, refusals, the real scheduler with llama.cpp's processes, adapters, damaged files."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gguf
import pytest
import torch

from services.architectures.checkpoint_reader import read_checkpoint
from services.convert import ConvertOptions, convert, convert_adapter
from services.errors import (
    AdapterMismatch,
    GraftwerkError,
    NotReady,
    UnsupportedAdapter,
    UnsupportedOption,
    WrongModelKind,
)
from services.generate import GenerationRequest, load_model
from services.generate_engines import Engines, GgufLimits
from services.kinds import parse_request
from services.kinds.generate import GenerateResult
from services.kinds.tokenize import TokenizeRequest, TokenizeResult
from services.merge import merge
from services.models.store import ModelStore
from services.models.summary import describe_folder
from services.preflight import preflight
from services.preflight.plan import PROCESS_BYTES, Plan, Servers
from services.sampling import Sampling
from services.settings import Settings
from tests.contract.engines.processes import all_end, descendants, is_alive
from tests.contract.engines.worker_driver import EngineWorker
from tests.contract.generate.engine_driver import alone
from tests.job_context import job_context
from tests.reference.families import save_tiny, save_tiny_adapter
from worker.inference.llama_cpp_engine import LlamaCppEngine
from worker.inference.llama_cpp_models import LlamaCppModels
from worker.inference.session import open_session

SAMPLING = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 16}
END = 268  # <|im_end|>
ADAPTERS = ("first", "second", "third")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, adapters and their merges; the GGUF files `g`, `first-gguf` and so on."""
    root = tmp_path_factory.mktemp("volume")
    model = save_tiny("llama", root / "base", dtype=torch.float32, eos_token_id=END)
    to_gguf(root / "base", root / "g")
    for seed, name in enumerate(ADAPTERS, start=1):
        save_tiny_adapter(root / name, model, seed=seed)
        (root / f"{name}-gguf").mkdir()
        convert_adapter(root / "base", (name, root / name), root / f"{name}-gguf", None)
        (root / f"{name}-merged").mkdir()
        merge(root / "base", [(name, root / name, 1.0)], root / f"{name}-merged")
    return root


def to_gguf(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    convert(source, target, ConvertOptions(output_format="gguf", dtype="F32", **options))
    return target


class Worker(EngineWorker[LlamaCppModels]):
    """A worker with llama.cpp."""

    defaults: ClassVar[dict[str, Any]] = {"sampling": SAMPLING, "return_token_ids": True}

    def __init__(self, volume: Path) -> None:
        settings = Settings(models_dir=volume, device="cpu", generate_slots=4, llama_cpp_context=96)
        super().__init__("llama.cpp", settings, lambda notify: LlamaCppModels(settings, notify))


@pytest.fixture(scope="module")
def worker(volume: Path) -> Iterator[Worker]:
    worker = Worker(volume)
    yield worker
    worker.close()


def plan_of(volume: Path, engines: Engines = Engines(), **fields: Any) -> Plan:  # noqa: B008
    request = parse_request({"kind": "generate", "prompt": "abc", **fields})
    return preflight(request, ModelStore(volume), (), servers=Servers(engines=engines))


# ---- results ----------------------------------------------------------------------------------------------


def test_a_gguf_model_answers_as_its_hugging_face_model_does(volume: Path, worker: Worker) -> None:
    loaded = load_model(volume / "base")
    prompts = ["the and in", "中文", "abc"]
    result: GenerateResult = worker.result(model="g", prompts=prompts)

    assert (result.engine, result.device, result.dtype) == ("llama.cpp", "cpu", "float32")
    for prompt, outputs in zip(prompts, result.outputs, strict=True):
        expected = alone(
            loaded, GenerationRequest(loaded.tokenizer.encode(prompt), Sampling.model_validate(SAMPLING))
        )[0]
        assert outputs.prompt_token_ids == loaded.tokenizer.encode(prompt)
        assert (outputs.token_ids, outputs.text) == (expected.token_ids, expected.text)
        assert outputs.usage.completion_tokens == len(expected.token_ids)


def test_adapters_give_the_merged_models_tokens_in_a_mixed_crowd(volume: Path, worker: Worker) -> None:
    """Requests of four stacks at once, twice: keys and values of one stack never serve another."""
    prompts = ["the and in the", "abc the and in the"]
    expected = {}
    for name in (None, *ADAPTERS):
        loaded = load_model(volume / (f"{name}-merged" if name else "base"))
        expected[name] = [
            alone(
                loaded, GenerationRequest(loaded.tokenizer.encode(prompt), Sampling.model_validate(SAMPLING))
            )[0].token_ids
            for prompt in prompts
        ]
    assert len({str(tokens) for tokens in expected.values()}) == 4
    jobs = [
        (name, worker.add(model="g", prompts=prompts, adapters=[f"{name}-gguf"] if name else []))
        for name in (None, *ADAPTERS) * 2
    ]
    worker.run(*(job for _, job in jobs))

    for name, job in jobs:
        assert isinstance(job.result, GenerateResult), job.error
        assert [output.token_ids for output in job.result.outputs] == expected[name]


def test_a_scale_is_the_factor_of_an_adapters_change(volume: Path, worker: Worker, tmp_path: Path) -> None:
    merge(volume / "base", [("first", volume / "first", 0.5), ("second", volume / "second", -2.0)], tmp_path)
    loaded = load_model(tmp_path)
    adapters = [{"name": "first-gguf", "scale": 0.5}, {"name": "second-gguf", "scale": -2.0}]
    result = worker.result(model="g", prompt="the and in", adapters=adapters)
    request = GenerationRequest(loaded.tokenizer.encode("the and in"), Sampling.model_validate(SAMPLING))

    assert result.outputs[0].token_ids == alone(loaded, request)[0].token_ids
    assert result.adapters == "unmerged"


def test_engines_are_compared(volume: Path, worker: Worker) -> None:
    variants = [{"model": "g"}, {"model": "base"}, {"model": "g", "adapters": ["first-gguf"]}]
    result = worker.result(kind="compare", variants=variants, prompt="the and in", sampling=SAMPLING)

    assert [variant.engine for variant in result.variants] == ["llama.cpp", "graftwerk", "llama.cpp"]
    assert [(pair.equal, pair.compared) for pair in result.pairs] == [(1, 1), (0, 1), (0, 1)]


def test_a_gguf_models_texts_are_tokenized(volume: Path) -> None:
    loaded = load_model(volume / "base")
    texts = ["the and in", "中文 <|im_end|>"]
    for model, adapters in (("g", []), ("g", ["first-gguf"])):
        request = TokenizeRequest.model_validate(
            {"kind": "tokenize", "model": model, "adapters": adapters, "texts": texts}
        )
        preflight(request, ModelStore(volume), ())
        session = open_session(request, job_context(volume))
        while not session.done:
            session.step()
        result = session.result()
        assert isinstance(result, TokenizeResult)
        assert result.token_ids == [loaded.tokenizer.encode(text) for text in texts]
        assert result.tokenizer.eos_token == "<|im_end|>"


def test_the_context_is_the_settings(worker: Worker) -> None:
    error = worker.error(model="g", prompt_token_ids=[5] * 81)
    assert (
        error.message == "The prompt has 81 tokens and 16 new ones are requested; the model's context is 96."
    )


# ---- plans ------------------------------------------------------------------------------------------------


def test_a_plan_names_the_engine_and_its_memory(volume: Path) -> None:
    plan = plan_of(volume, Engines(gguf=GgufLimits(3, 64)), model="g", adapters=["first-gguf"])
    other = plan_of(volume, Engines(gguf=GgufLimits(6, 64)), model="g", adapters=["first-gguf"])
    config = read_checkpoint(volume / "g").config
    cache = 3 * 64 * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 2

    assert plan.engine == "llama.cpp"
    assert [(read.name, read.role) for read in plan.reads] == [("g", "model"), ("first-gguf", "adapter")]
    assert other.peak_memory_bytes - plan.peak_memory_bytes == cache
    assert plan.peak_memory_bytes > PROCESS_BYTES + cache + (volume / "g" / "model.gguf").stat().st_size


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"quantization": "8bit"}, "quantization"),
        ({"rope_alpha": 2.0}, "rope_alpha"),
        ({"score_prompt": True}, "score_prompt"),
        ({"sampling": {"num_beams": 2}}, "num_beams"),
        ({"sampling": {"presence_penalty": 1}}, "presence_penalty"),
        ({"kind": "perplexity", "prompt": None, "text": "abc"}, "perplexity"),
        ({"kind": "embed", "prompt": None, "inputs": ["abc"]}, "embed"),
    ],
)
def test_what_llama_cpp_does_not_do_is_refused_with_the_request(
    volume: Path, fields: dict[str, Any], name: str
) -> None:
    given = {key: value for key, value in {"prompt": "abc", **fields}.items() if value is not None}
    request = parse_request({"kind": "generate", "model": "g", **given})
    with pytest.raises(UnsupportedOption, match=name) as caught:
        preflight(request, ModelStore(volume), ())
    assert "huggingface" in caught.value.hint or "graftwerk convert g g-hf" in caught.value.hint


def test_engines_that_are_missing_or_excluded_are_named(volume: Path) -> None:
    with pytest.raises(NotReady, match=r"no worker has llama\.cpp"):
        plan_of(volume, Engines(available=frozenset({"graftwerk"})), model="g")
    with pytest.raises(WrongModelKind, match="GENERATE_ENGINE is 'vllm'"):
        plan_of(volume, Engines("vllm"), model="g")


def test_adapters_must_be_gguf_files_of_the_base(volume: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongModelKind, match="takes adapters that are GGUF files") as caught:
        plan_of(volume, model="g", adapters=["first"])
    assert "graftwerk convert first first-gguf" in caught.value.hint
    with pytest.raises(WrongModelKind, match="'base' is of kind 'huggingface'"):
        plan_of(volume, model="g", adapters=["base"])
    with pytest.raises(UnsupportedAdapter, match="a LoRA says 'adapter' and 'lora'"):
        plan_of(volume, model="g", adapters=["g"])

    other = save_tiny("llama", tmp_path / "wide", dtype=torch.float32, hidden_size=64, head_dim=16)
    save_tiny_adapter(tmp_path / "a", other)
    for source, name in (("wide", "x"), ("qwen", "y")):
        if source == "qwen":
            save_tiny_adapter(tmp_path / "b", save_tiny("qwen3", tmp_path / "qwen", dtype=torch.float32))
        (tmp_path / name).mkdir()
        adapter = "a" if source == "wide" else "b"
        convert_adapter(tmp_path / source, (adapter, tmp_path / adapter), tmp_path / name, None)
    shutil.copytree(volume / "g", tmp_path / "g")
    with pytest.raises(AdapterMismatch, match="has halves"):
        plan_of(tmp_path, model="g", adapters=["x"])
    with pytest.raises(AdapterMismatch, match="is for 'qwen3'"):
        plan_of(tmp_path, model="g", adapters=["y"])


# ---- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 0), ("llama.block_count", 2**31 - 1), ("llama.context_length", 0), ("llama.embedding_length", 7),
        ("llama.attention.head_count", 0), ("llama.attention.head_count_kv", 3), ("llama.rope.dimension_count", 2**30),
        ("llama.vocab_size", 5), ("tokenizer.ggml.eos_token_id", 2**31), ("llama.rope.freq_base", float("nan")),
    ],
)  # fmt: skip
def test_hostile_metadata_never_reaches_llama_cpp(
    volume: Path, tmp_path: Path, key: str, value: float
) -> None:
    changed(volume / "g" / "model.gguf", tmp_path / "g", key, value)
    with pytest.raises(GraftwerkError):
        plan_of(tmp_path, model="g")
    worker = Worker(tmp_path)
    assert worker.error(model="g", prompt="abc").code != "internal_error"
    assert worker.models.models == []
    assert describe_folder(tmp_path / "g", "g").kind == "gguf"


def changed(source: Path, target: Path, key: str, value: float) -> None:
    """Copies a file with another value in its metadata."""
    target.mkdir()
    shutil.copy(source, target / "model.gguf")
    reader = gguf.GGUFReader(target / "model.gguf", "r+")
    field = reader.get_field(key)
    if field is None:
        pytest.fail(f"the file has no {key}")
    field.parts[field.data[0]][0] = value
    reader.data.flush()


def test_a_process_that_dies_fails_its_jobs_alone(volume: Path) -> None:
    worker = Worker(volume)
    try:
        long = {"sampling": {**SAMPLING, "max_new_tokens": 80, "n": 4, "logit_bias": {str(END): -100}}}
        doomed, other = (
            worker.add(model="g", prompt="abc", **long),
            worker.add(model="base", prompts=["abc"] * 12),
        )
        while not any(
            isinstance(model.engine, LlamaCppEngine) and not model.engine.stage
            for model in worker.models.models
        ):
            worker.scheduler.step()
        engine = next(
            model.engine for model in worker.models.models if isinstance(model.engine, LlamaCppEngine)
        )
        pids = [engine.server.pid, *descendants(engine.server.pid)]
        os.kill(pids[1], signal.SIGKILL)
        worker.run(doomed, other)

        assert isinstance(doomed.error, NotReady)
        assert "llama.cpp with g was ended by signal 9" in doomed.error.message
        assert isinstance(other.result, GenerateResult)
        assert all_end(pids)
        assert isinstance(worker.result(model="g", prompt="abc"), GenerateResult)
    finally:
        worker.close()


def test_a_model_is_loaded_while_others_work(volume: Path) -> None:
    worker = Worker(volume)
    try:
        job = worker.add(model="g", prompt="abc")
        worker.scheduler.step()
        [model] = worker.models.models
        assert job.error is None
        assert (model.engine.stage, model.engine.free_slots) == ("loading into llama.cpp", 0)
        assert not worker.scheduler.runs_models
        worker.run(job)
        assert isinstance(job.result, GenerateResult)
    finally:
        worker.close()


def test_a_model_whose_start_timed_out_after_its_job_was_canceled_is_started_again(volume: Path) -> None:
    worker = Worker(volume)
    try:
        settings = worker.loader.settings
        worker.loader.settings = settings.model_copy(update={"llama_cpp_start_seconds": 0})
        canceled = worker.add(model="g", prompt="abc")
        worker.scheduler.step()
        [model] = worker.models.models
        assert isinstance(model.engine, LlamaCppEngine)
        worker.scheduler.remove(canceled)
        with pytest.raises(NotReady, match=r"llama\.cpp was not ready with g after 0 s"):
            while True:
                model.engine.step()
        assert is_alive(model.engine.server.pid)
        worker.loader.settings = settings

        assert isinstance(worker.result(model="g", prompt="abc"), GenerateResult)
        assert all_end([model.engine.server.pid])
    finally:
        worker.close()


def test_an_idle_model_is_evicted_with_its_process(volume: Path) -> None:
    worker = Worker(volume)
    worker.result(model="g", prompt="abc")
    [model] = worker.models.models
    assert isinstance(model.engine, LlamaCppEngine)
    pids = [model.engine.server.pid, *descendants(model.engine.server.pid)]
    worker.models.evict_idle(0)
    worker.models.evict_idle(60)
    assert all(map(is_alive, pids))
    time.sleep(0.02)
    worker.models.evict_idle(0.01)

    assert all_end(pids)
    assert worker.models.models == []
