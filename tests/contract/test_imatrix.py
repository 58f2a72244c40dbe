"""Importance matrices that are computed from a text, against sums of transformers' own inputs of each linear module."""

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import gguf
import libgguf
import numpy as np
import pytest
import torch
from torch import nn

from services.errors import InvalidRequest, JobCanceled
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.preflight import preflight
from services.progress import Progress
from services.tokenizers import load_tokenizer
from services.verify import importance
from tests.contract.gguf_models import field, tensors_of
from tests.contract.resume_child import run_until_killed
from tests.job_context import job_context
from tests.reference.families import LONGROPE, save_tiny, save_tiny_adapter
from worker.models import convert as convert_job
from worker.models import merge as merge_job

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.contract.resume_child"])  # torch is imported once for all

TEXT = "the and in the, and then the end of the land; " * 60

CHUNK = 128
"""The tiny models' context."""

WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Rows of whole blocks of 32."""

OWN = {"phi3": {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}}
"""Options of a family: factors of half a head of 16."""

FAMILIES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3, "phi3": gguf.MODEL_ARCH.PHI3, "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "gemma3": gguf.MODEL_ARCH.GEMMA3,
}  # fmt: skip


def request_of(**options: Any) -> dict[str, Any]:
    return {
        "kind": "convert", "source": "base", "target": "new", "output_format": "gguf", "dtype": "q4_0",
        "imatrix": {"text_file": "incoming/text.txt"}, **options,
    }  # fmt: skip


def convert_request(**options: Any) -> ConvertRequest:
    return ConvertRequest.model_validate(request_of(**options))


def put_text(root: Path, text: str = TEXT) -> None:
    (root / "incoming").mkdir(exist_ok=True)
    (root / "incoming" / "text.txt").write_text(text)


def chunks_of(folder: Path) -> torch.Tensor:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(TEXT)
    chunks = torch.tensor(ids[: len(ids) // CHUNK * CHUNK]).view(-1, CHUNK)
    if tokenizer.add_bos:
        chunks[:, 0] = int(tokenizer.bos_id or 0)
    return chunks


def hooked(model: Any, ids: torch.Tensor, architecture: gguf.MODEL_ARCH) -> dict[str, np.ndarray[Any, Any]]:
    """Mean squares of the inputs of each linear module of the layers, by GGUF's name."""
    names = gguf.get_tensor_name_map(architecture, 2)
    inputs: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in path and "vision" not in path:
            text = path.replace("model.language_model.", "model.")
            name = f"{names.get_name(text)}.weight"
            module.register_forward_hook(
                lambda _, args, __, name=name: inputs.setdefault(name, []).append(args[0])
            )
    with torch.no_grad():
        for chunk in ids:
            model(chunk[None])
    return {name: torch.cat(found, 1)[0].double().square().mean(0).numpy() for name, found in inputs.items()}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray[Any, Any]]:
    """The importance that a job computes, filled when it does."""
    found: dict[str, Any] = {}

    def keep(origin: str, matrix: str, row: Any) -> None:
        found[matrix] = row

    monkeypatch.setattr(importance, "check_importance", keep)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_importance_is_the_mean_square_of_each_input(
    tmp_path: Path, family: str, computed: dict[str, Any]
) -> None:
    model = save_tiny(family, tmp_path / "base", dtype=torch.float32, **WIDE, **OWN.get(family, {}))
    put_text(tmp_path)
    result = convert_job.run(convert_request(), job_context(tmp_path))
    chunks = chunks_of(tmp_path / "base")
    expected = hooked(model, chunks, FAMILIES[family])
    assert set(computed) == set(expected)
    for name, row in expected.items():
        np.testing.assert_allclose(computed[name], row, rtol=2e-4, err_msg=name)
    assert result.imatrix is not None
    assert result.imatrix.model_dump() == {
        "file": None, "text_file": "incoming/text.txt", "datasets": [], "entries": len(expected),
        "chunks": len(chunks), "chunk_size": CHUNK, "tokens": chunks.numel(),
    }  # fmt: skip


def test_each_matrix_is_encoded_with_its_row_and_the_file_says_so(
    tmp_path: Path, computed: dict[str, Any]
) -> None:
    model = save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    put_text(tmp_path)
    convert_job.run(convert_request(), job_context(tmp_path))
    found, state = tensors_of(tmp_path / "new"), model.state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    weighed = 0
    for name, values in state.items():
        tensor = found.get(str(names.get_name(name, (".weight",))))
        if values.dim() == 2 and tensor is not None:
            row = computed.get(tensor.name)
            expected = libgguf.quantize_rows(values.numpy(), tensor.tensor_type, row)
            assert np.array_equal(tensor.data, expected), name
            weighed += row is not None
    assert weighed == 14
    assert field(tmp_path / "new", "quantize.imatrix.dataset") == "incoming/text.txt"
    assert field(tmp_path / "new", "quantize.imatrix.entries_count") == 14
    assert field(tmp_path / "new", "quantize.imatrix.chunks_count") == len(chunks_of(tmp_path / "base"))


def test_that_of_a_merge_is_the_merged_models(tmp_path: Path, computed: dict[str, Any]) -> None:
    base = save_tiny("llama", tmp_path / "base", dtype=torch.float32, **WIDE)
    save_tiny_adapter(tmp_path / "adapter", base)
    put_text(tmp_path)
    request = {"kind": "merge", "base": "base", "adapters": ["adapter"]}
    plain = MergeRequest.model_validate({**request, "target": "plain"})
    merge_job.run(plain, job_context(tmp_path))
    options = {key: value for key, value in request_of().items() if key not in ("kind", "source")}
    weighed = MergeRequest.model_validate({**request, **options})
    result = merge_job.run(weighed, job_context(tmp_path))
    merged = type(base).from_pretrained(tmp_path / "plain").eval()
    expected = hooked(merged, chunks_of(tmp_path / "base"), FAMILIES["llama"])
    original = hooked(base, chunks_of(tmp_path / "base"), FAMILIES["llama"])
    for name, row in expected.items():
        np.testing.assert_allclose(computed[name], row, rtol=2e-3, err_msg=name)
    last = "blk.1.ffn_down.weight"
    assert not np.allclose(expected[last], original[last], rtol=0.1)
    assert result.verification is not None
    assert result.verification.passed


def test_an_unchanged_text_is_reused_and_another_is_not(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    put_text(tmp_path)
    convert_job.run(convert_request(), job_context(tmp_path))
    same = convert_job.run(convert_request(target="same"), job_context(tmp_path))
    assert same.same_as == "new"
    assert same.imatrix is not None
    plain = convert_job.run(convert_request(target="plain", imatrix=None), job_context(tmp_path))
    assert plain.same_as is None
    put_text(tmp_path, TEXT[::-1])
    other = convert_job.run(convert_request(target="other"), job_context(tmp_path))
    assert other.same_as is None
    assert other.tensor_digest != same.tensor_digest


@pytest.mark.parametrize(
    ("text", "message"), [("the and in", "has 4 tokens; at least 128 are needed"), ("", "is empty")]
)
def test_a_text_that_is_too_short_is_refused_and_publishes_nothing(
    tmp_path: Path, text: str, message: str
) -> None:
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    put_text(tmp_path, text)
    with pytest.raises(InvalidRequest, match=message):
        convert_job.run(convert_request(), job_context(tmp_path))
    assert not (tmp_path / "new").exists()


def test_a_job_can_be_canceled_within_the_computation(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    put_text(tmp_path)
    stages: list[tuple[str, int, int]] = []

    def report(progress: Progress) -> None:
        stages.append((progress.stage, progress.done, progress.total))

    def check() -> None:
        if ("computing importance", 1, 2) in stages:
            raise JobCanceled("The job was canceled while it ran.")

    with pytest.raises(JobCanceled):
        convert_job.run(convert_request(), job_context(tmp_path, report=report, check_canceled=check))
    assert stages[-1] == ("computing importance", 1, 2)
    assert not (tmp_path / "new").exists()


def test_a_plan_says_what_the_computation_takes(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    put_text(tmp_path)
    store = job_context(tmp_path).store
    plain = preflight(convert_request(imatrix=None), store, ())
    plan = preflight(convert_request(), store, ())
    assert plan.peak_memory_bytes > plain.peak_memory_bytes
    assert plan.reads[-1].path == "incoming/text.txt"
    assert any("at most 32 chunks of 128 tokens" in line for line in plan.warnings)


# ---- after a kill ----


def killed(root: Path, request: dict[str, Any]) -> None:
    """The first execution of the job, killed once half of the tensors are written."""
    child = SERVER.Process(target=run_until_killed, args=(root, request, "writing tensors", 0.5))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A volume with a conversion that was killed."""
    save_tiny("qwen3", tmp_path / "base", dtype=torch.float32, **WIDE)
    put_text(tmp_path)
    killed(tmp_path, request_of())
    return tmp_path


def test_a_killed_conversion_goes_on_with_the_same_matrix(interrupted: Path) -> None:
    result = convert_job.run(convert_request(), job_context(interrupted, run="2"))
    assert 0 < result.resumed.tensors < result.tensors
    convert_job.run(convert_request(target="whole", force=True), job_context(interrupted, job_id="other"))
    found, whole = tensors_of(interrupted / "new"), tensors_of(interrupted / "whole")
    assert all(np.array_equal(tensor.data, found[name].data) for name, tensor in whole.items())


@pytest.mark.parametrize("changed", ["another text", "no matrix"])
def test_a_killed_conversion_with_another_matrix_is_not_continued(interrupted: Path, changed: str) -> None:
    if changed == "another text":
        put_text(interrupted, TEXT[::-1])
    request = convert_request(**({"imatrix": None} if changed == "no matrix" else {}))
    assert convert_job.run(request, job_context(interrupted, run="2")).resumed.tensors == 0
