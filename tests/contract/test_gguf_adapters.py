"""Adapters as GGUF: what llama.cpp computes of the file, `W x + alpha / r * B (A x)`, is what PEFT merges."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel

from services.convert import ADAPTER_FILE, convert_adapter
from services.errors import GraftwerkError, UnsupportedAdapter, UnsupportedOption
from services.kinds.convert import ConvertRequest
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.gguf_models import interleaved
from tests.job_context import job_context
from tests.reference.families import save_tiny, save_tiny_adapter
from worker.models import convert as convert_job


def written(folder: Path) -> tuple[dict[str, np.ndarray[Any, Any]], gguf.GGUFReader]:
    reader = gguf.GGUFReader(folder / ADAPTER_FILE)
    return {tensor.name: tensor.data for tensor in reader.tensors}, reader


def delta(tensors: dict[str, np.ndarray[Any, Any]], name: str, alpha: float) -> torch.Tensor:
    """llama.cpp's change of a matrix: the rank is that of the pair (src/llama-adapter.h, get_scale)."""
    a, b = (torch.from_numpy(tensors[f"{name}.lora_{half}"].copy()) for half in "ab")
    return alpha / a.shape[0] * (b @ a)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True}],
)  # fmt: skip
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_files_changes_are_pefts(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    base = save_tiny(model_type, tmp_path / "base", dtype=torch.float32)
    save_tiny_adapter(tmp_path / "adapter", base, **options)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    after = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    (tmp_path / "target").mkdir()

    convert_adapter(tmp_path / "base", ("adapter", tmp_path / "adapter"), tmp_path / "target", None)

    tensors, reader = written(tmp_path / "target")
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None
    parts = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    for part, module in parts.items():
        name = f"model.layers.1.{module}.weight"
        expected = after[name] - before[name]
        heads = {"attn_q": 4, "attn_k": 2}.get(part, 0) if model_type == "llama" else 0
        expected = interleaved(expected, heads) if heads else expected
        found = delta(tensors, f"blk.1.{part}.weight", alpha.contents())
        assert float(expected.abs().max()) > 0.01
        assert torch.allclose(found, expected, atol=1e-6), part
    kinds = {key: reader.get_field(key) for key in ("general.type", "adapter.type", "general.architecture")}
    assert [field.contents() for field in kinds.values() if field] == ["adapter", "lora", model_type]
    assert len(tensors) == 2 * 2 * 7


def request_of(**options: Any) -> ConvertRequest:
    return ConvertRequest(
        kind="convert", source="adapter", base="base", target="new", output_format="gguf", **options
    )


def test_a_job_publishes_a_file_of_the_planned_size(tmp_path: Path) -> None:
    save_tiny_adapter(tmp_path / "adapter", save_tiny("llama", tmp_path / "base"))
    plan = preflight(request_of(dtype="float16"), ModelStore(tmp_path), {})

    result = convert_job.run(request_of(dtype="float16"), job_context(tmp_path))

    tensors, _ = written(tmp_path / "new")
    assert plan.output_bytes == result.bytes_written == sum(data.nbytes for data in tensors.values())
    manifest = read_manifest(tmp_path / "new")
    assert manifest is not None
    assert [(entry.role, entry.name) for entry in manifest.inputs] == [
        ("source", "adapter"),
        ("base", "base"),
    ]
    assert {entry.dtype for entry in manifest.tensors.values()} == {"F16"}
    assert result.model.kind == "gguf"


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules that are saved whole ('lm_head.weight' the first)"),
        ({"use_dora": True}, "layers of another kind than LoRA"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "pairs of an embedding ('model.embed_tokens.weight' the first)"),
    ],
)  # fmt: skip
def test_what_a_gguf_adapter_cannot_hold_is_refused(
    tmp_path: Path, options: dict[str, Any], phrase: str
) -> None:
    base = save_tiny("llama", tmp_path / "base", tied=False)
    save_tiny_adapter(tmp_path / "adapter", base, **options)
    (tmp_path / "target").mkdir()
    for door in (
        lambda: preflight(request_of(), ModelStore(tmp_path), {}),
        lambda: convert_adapter(
            tmp_path / "base", ("adapter", tmp_path / "adapter"), tmp_path / "target", None
        ),
    ):
        with pytest.raises(GraftwerkError) as caught:
            door()
        assert isinstance(caught.value, UnsupportedAdapter)
        assert phrase in caught.value.message
    assert list((tmp_path / "target").iterdir()) == []


def test_blocks_and_other_layouts_are_refused(tmp_path: Path) -> None:
    save_tiny_adapter(tmp_path / "adapter", save_tiny("llama", tmp_path / "base"))
    store = ModelStore(tmp_path)
    with pytest.raises(UnsupportedOption, match="not stored as Q8_0"):
        preflight(request_of(dtype="q8_0"), store, {})
    for options in ({"output_format": "gguf"}, {"output_format": "huggingface"}):
        request = ConvertRequest(kind="convert", source="adapter", target="new", **options)  # type: ignore[arg-type]
        with pytest.raises(
            UnsupportedOption, match="adapters are converted to GGUF only, and with their base"
        ):
            preflight(request, store, {})
