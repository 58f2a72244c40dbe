"""Descriptions of adapters of every type, and warnings before they are served."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.models.manifest import Manifest, write_manifest
from services.models.summary import ModelSummary, describe_folder
from tests.reference.tensor_files import embedding_shapes, pair_shapes, write_adapter

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def described(folder: Path, shapes: Any = None, **config: Any) -> ModelSummary:
    write_adapter(folder, shapes, **config)
    return describe_folder(folder, folder.name)


def test_a_plain_lora_adapter_has_nothing_to_be_told(tmp_path: Path) -> None:
    found = described(tmp_path / "plain")
    assert (found.problems, found.warnings) == ([], [])
    assert found.adapter is not None
    assert (found.adapter["type"], found.adapter["r"], found.adapter["tensors"]) == ("LORA", 8, 12)
    assert found.adapter["target_modules"] == ["q_proj", "v_proj"]
    assert found.adapter["hidden_size"] == 48


def test_an_adapter_with_saved_modules_is_told_to_be_merged_first(tmp_path: Path) -> None:
    shapes = {**pair_shapes(), **embedding_shapes(113)}
    found = described(tmp_path / "chinese", shapes, pieces=113, modules_to_save=["embed_tokens", "lm_head"])
    assert found.warnings == [
        "the adapter holds embed_tokens, lm_head in addition to its LoRA pairs (modules_to_save): vLLM refuses it "
        "unmerged, merge it into its base first"
    ]


@pytest.mark.parametrize(
    ("shapes", "config", "shown"),
    [
        ({f"{Q}.ia3_l": (48, 1)}, {"peft_type": "IA3", "target_modules": ["q_proj"]}, "IA3"),
        (
            {"base_model.vera_A": (4, 48), "base_model.vera_B": (48, 4), f"{Q}.vera_lambda_b": (48,), f"{Q}.vera_lambda_d": (4,)},
            {"peft_type": "VERA", "target_modules": ["q_proj"], "r": 4},
            "VERA",
        ),
        (
            {f"{Q}.lora_A.weight": (8, 48), f"{Q}.lora_B.weight": (48, 8), f"{Q}.lora_magnitude_vector": (48,)},
            {"use_dora": True, "target_modules": ["q_proj"]},
            "DoRA",
        ),
    ],
    ids=["IA3", "VERA", "DORA"],
)  # fmt: skip
def test_an_adapter_of_another_type_is_described_and_told(
    tmp_path: Path, shapes: Any, config: dict[str, Any], shown: str
) -> None:
    folder = write_adapter(tmp_path / "other", shapes)
    raw = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **config}
    if shown != "DoRA":
        del raw["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(raw))

    found = describe_folder(folder, "other")

    assert found.problems == []
    assert f"is of type {shown}: vLLM refuses" in found.warnings[0]
    assert found.adapter is not None
    assert (found.adapter["target_modules"], found.adapter["tensors"]) == (["q_proj"], len(shapes))
    assert found.parameters == sum(
        shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values()
    )


def test_a_published_adapter_says_what_it_is_merged_into(tmp_path: Path) -> None:
    """Chinese-Alpaca-Plus-7B by `SHA256.md` of ymcui/Chinese-LLaMA-Alpaca."""
    write_adapter(tmp_path / "plus")
    digest = "4ee0bf805c312a9a771624d481fbdb4485e1b0a70cd2a8da9f96137f177b795d"
    files = {"adapter_model.safetensors": digest}
    write_manifest(
        tmp_path / "plus",
        Manifest(kind="adapter", created_at="2026-01-01T00:00:00Z", operation="import", files=files),
    )
    found = describe_folder(tmp_path / "plus", "plus")
    assert found.known_as == "Chinese-Alpaca-Plus-7B"
    assert found.warnings == ["Chinese-Alpaca-Plus-7B is merged into LLaMA-7B, after Chinese-LLaMA-Plus-7B"]
