"""Conversions of every family within Hugging Face's layout, and what other layouts refuse."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.architectures.families import FAMILIES
from services.convert import ConvertOptions, convert
from services.errors import UnsupportedFormat
from tests.reference.families import save_tiny


@pytest.mark.parametrize("model_type", FAMILIES)
def test_dtype_and_shards_change_and_nothing_else(model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path / "base", dtype=torch.float32)
    (tmp_path / "made").mkdir()

    convert(tmp_path / "base", tmp_path / "made", ConvertOptions(dtype="BF16", max_shard_bytes=20_000))

    files = sorted((tmp_path / "made").glob("*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = load_file(tmp_path / "base" / "model.safetensors")
    assert len(files) > 3
    assert set(found) == set(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name].bfloat16())] == []
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3", "olmo2"])
def test_metas_layout_holds_llama_only(model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path / "base")
    (tmp_path / "made").mkdir()

    with pytest.raises(
        UnsupportedFormat, match=f"of type '{model_type}'; Meta's layout holds LLaMA models only"
    ):
        convert(tmp_path / "base", tmp_path / "made", ConvertOptions(output_format="meta"))
    assert list((tmp_path / "made").iterdir()) == []
