"""Adapters extracted from models of every family: merged again they give the fine-tuned model."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from services.adapter_tools import ExtractOptions, extract
from services.adapter_tools.difference import difference
from services.adapters.extraction import TensorPair
from services.architectures.checkpoint import TensorSource
from services.checkpoints.tensor_reader import TensorReader
from services.errors import UnsupportedFormat
from services.files.safetensors_header import read_safetensors_header
from services.merge import merge
from tests.reference.families import OPTIONS, save_tiny, save_tiny_adapter

RANK = 4


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()
    }


def merged(base: Path, adapter: Path, target: Path) -> dict[str, torch.Tensor]:
    target.mkdir()
    merge(base, [(adapter.name, adapter, 1.0)], target)
    return state_of(target)


MIXTURES = ["mixtral", "qwen3_moe"]


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_mixture_of_experts_is_refused_by_name(tmp_path: Path, model_type: str) -> None:
    save_tiny(model_type, tmp_path / "base", seed=1)
    save_tiny(model_type, tmp_path / "tuned", seed=2)
    (tmp_path / "found").mkdir()
    with pytest.raises(UnsupportedFormat, match=rf"base is a mixture of experts \({model_type}\)"):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(4, "base"))
    assert not list((tmp_path / "found").iterdir())


@pytest.mark.parametrize("model_type", sorted(set(OPTIONS) - set(MIXTURES)))
def test_what_was_merged_is_extracted(tmp_path: Path, model_type: str) -> None:
    model = save_tiny(model_type, tmp_path / "base", dtype=torch.float32)
    adapter = save_tiny_adapter(tmp_path / "adapter", model, r=RANK)
    expected = merged(tmp_path / "base", adapter, tmp_path / "tuned")
    (tmp_path / "found").mkdir()

    result = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(RANK, "base"))

    assert result.error < 1e-4
    again = merged(tmp_path / "base", tmp_path / "found", tmp_path / "again")
    assert again.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(again[name], tensor, atol=1e-5), name
    if model_type != "gemma3":  # tensors of its vision tower go along whole
        keys = load_file(adapter / "adapter_model.safetensors").keys()
        assert load_file(tmp_path / "found/adapter_model.safetensors").keys() == keys


def test_a_parameter_that_peft_cannot_replace_is_refused(tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path / "base", seed=1)
    save_tiny("gemma3", tmp_path / "tuned", seed=2)
    (tmp_path / "found").mkdir()
    with pytest.raises(
        UnsupportedFormat, match="mm_input_projection_weight' differs and is not the weight or bias"
    ):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(4, "base"))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma2", "phi3"])
def test_every_tensor_that_differs_is_carried(tmp_path: Path, model_type: str) -> None:
    """All tensors are drawn again, embeddings, norms and biases among them; the rank is that of the largest weight."""
    save_tiny(model_type, tmp_path / "base", dtype=torch.float32, seed=1)
    save_tiny(model_type, tmp_path / "tuned", dtype=torch.float32, seed=2)
    (tmp_path / "found").mkdir()

    result = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(48, "base"))

    assert result.unchanged == 0
    again = merged(tmp_path / "base", tmp_path / "found", tmp_path / "again")
    for name, tensor in state_of(tmp_path / "tuned").items():
        assert torch.allclose(again[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
def test_peft_loads_every_tensor(tmp_path: Path, model_type: str) -> None:
    save_tiny(model_type, tmp_path / "base", dtype=torch.float32, seed=1)
    tuned = save_tiny(model_type, tmp_path / "tuned", dtype=torch.float32, seed=2)
    (tmp_path / "found").mkdir()
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(48, "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    found = PeftModel.from_pretrained(base, tmp_path / "found").merge_and_unload()
    for name, tensor in tuned.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, atol=1e-5), name


def test_a_tied_base_is_untied_by_a_model_with_a_head(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "base", dtype=torch.float32, tied=True)
    save_tiny("llama", tmp_path / "tuned", dtype=torch.float32, tied=False)
    (tmp_path / "found").mkdir()
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(48, "base"))
    again = merged(tmp_path / "base", tmp_path / "found", tmp_path / "again")
    expected = state_of(tmp_path / "tuned")
    assert again.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(again[name], tensor, atol=1e-5), name
    assert json.loads((tmp_path / "again/config.json").read_text())["tie_word_embeddings"] is False


def test_a_tied_model_on_a_base_with_a_head_has_its_embedding_as_head(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "base", dtype=torch.float32, tied=False)
    save_tiny("llama", tmp_path / "tuned", dtype=torch.float32, tied=True)
    (tmp_path / "found").mkdir()
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "found", ExtractOptions(48, "base"))
    again = merged(tmp_path / "base", tmp_path / "found", tmp_path / "again")
    expected = state_of(tmp_path / "tuned")
    assert torch.allclose(again["lm_head.weight"], expected["model.embed_tokens.weight"], atol=1e-5)


def test_the_difference_of_a_transposed_weight_is_that_of_the_transpose(tmp_path: Path) -> None:
    """As PEFT has it for Conv1D: its product B @ A is (out, in), the weight (in, out)."""
    before, after = torch.randn(5, 7), torch.randn(5, 7)
    save_file({"before": before, "after": after}, tmp_path / "weights.safetensors")
    headers = read_safetensors_header(tmp_path / "weights.safetensors")
    one, two = (TensorSource(name, "F32", (5, 7), (headers[name],)) for name in ("before", "after"))
    pair = TensorPair("h.0.c_attn", "weight", one, two, low_rank=True, transposed=True)
    with TensorReader() as reader:
        found = difference(reader, pair)
        assert found.shape == pair.shape == (7, 5)
        assert torch.equal(found.whole(), (after.double() - before.double()).T)
