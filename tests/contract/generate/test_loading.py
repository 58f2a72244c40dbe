"""Loading of models: dtypes, devices, and folders that are refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.errors import (
    IncompleteCheckpoint,
    UnsupportedFormat,
    UnsupportedOption,
    VocabularyMismatch,
    WrongModelKind,
)
from services.generate import (
    GenerationRequest,
    LoadedModel,
    load_model,
)
from services.sampling import Sampling
from tests.contract.generate.engine_driver import CONTEXT, VOCABULARY, alone, run


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_loaded_model_has_its_sizes(loaded: LoadedModel, reference: Any) -> None:
    parameters = sum(tensor.numel() for tensor in reference.parameters())
    assert (loaded.dtype, loaded.device) == (torch.float32, torch.device("cpu"))
    assert (loaded.size_bytes, loaded.context_length, loaded.rows) == (4 * parameters, CONTEXT, VOCABULARY)


def test_a_missing_tensor_is_an_error(folder: Path, tmp_path: Path) -> None:
    target = copy_of(folder, tmp_path / "incomplete")
    tensors = load_file(target / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteCheckpoint, match=r"1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(target)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(folder: Path, tmp_path: Path) -> None:
    target = copy_of(folder, tmp_path / "short")
    tensors = load_file(target / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:400].clone()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    with pytest.raises(VocabularyMismatch, match="420 tokens and the model 400 rows"):
        load_model(target)


def test_ntk_scaling_changes_the_rotary_base_and_stretches_the_context(folder: Path, reference: Any) -> None:
    scaled = load_model(folder, rope_alpha=4.0)
    # head_dim is 6: 10000 * 4 ** (6 / 4) = 80000.
    frequencies: Any = scaled.model.model.rotary_emb.inv_freq
    assert frequencies.tolist() == pytest.approx([1.0, 80000 ** (-1 / 3), 80000 ** (-2 / 3)], rel=1e-5)
    assert scaled.context_length == 4 * CONTEXT
    assert reference.model.rotary_emb.inv_freq.tolist() != frequencies.tolist()


def test_other_dtypes_generate(folder: Path, prompts: list[list[int]]) -> None:
    for dtype, expected in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        narrow = load_model(folder, dtype=dtype)  # type: ignore[arg-type]
        assert narrow.dtype == expected
        requests = [GenerationRequest(prompt, Sampling(seed=1, max_new_tokens=12)) for prompt in prompts]
        outputs = run(narrow, requests)
        assert all(
            len(found[0].token_ids) == 12 or found[0].finish_reason == "stop" for found in outputs.values()
        )


def test_the_sampling_defaults_of_a_model_have_no_effect(
    folder: Path, loaded: LoadedModel, prompts: list[list[int]], tmp_path: Path
) -> None:
    target = copy_of(folder, tmp_path / "opinionated")
    (target / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 9.0, "num_beams": 3, "repetition_penalty": 5.0, "eos_token_id": 2}'
    )
    for beams in (1, 2):
        sampling = Sampling(do_sample=False, max_new_tokens=12, num_beams=beams)
        request = GenerationRequest(prompts[0], sampling)
        assert alone(load_model(target), request)[0].token_ids == alone(loaded, request)[0].token_ids


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (["consolidated.00.pth", "params.json"], WrongModelKind, "original checkpoint"),
        (["adapter_config.json"], WrongModelKind, "is an adapter"),
        (["notes.txt"], WrongModelKind, "no config.json"),
    ],
)
def test_a_folder_of_another_kind_is_refused(
    tmp_path: Path, files: list[str], error: type[Exception], message: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(error, match=message):
        load_model(tmp_path)


def test_code_of_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    target = copy_of(folder, tmp_path / "coded")
    (target / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (target / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UnsupportedFormat, match="no model that transformers knows"):
        load_model(target)


def test_devices_that_this_machine_lacks_are_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedOption, match="'tpu'"):
        load_model(folder, device="tpu")
    with pytest.raises(UnsupportedOption, match="cuda:99"):
        load_model(folder, device="cuda:99")


def test_importing_the_package_creates_no_tensor_and_does_not_touch_cuda() -> None:
    code = (
        "import torch\n"
        "def no(*a, **k): raise AssertionError('a tensor at import')\n"
        "for name in ('tensor', 'zeros', 'empty', 'arange', 'ones', 'full'): setattr(torch, name, no)\n"
        "torch.cuda.is_available = torch.cuda.device_count = no\n"
        "import transformers.generation.logits_process\n"
        "import services.generate, services.tokenizers\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)
