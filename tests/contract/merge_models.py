"""Merges of small adapters into a small model, and the same merge in float64."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.merge import Merged, MergeOptions, merge
from tests.reference.peft_merge import (
    State,
    make_adapter,
)

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
EMBEDDINGS = ["embed_tokens", "lm_head"]


def merged(
    base: Path, adapters: Sequence[Path], target: Path, *, scales: Sequence[float] = (), **options: Any
) -> Merged:
    target.mkdir()
    scales = scales or [1.0] * len(adapters)
    chosen = [(path.name, path, scale) for path, scale in zip(adapters, scales, strict=True)]
    return merge(base, chosen, target, options=MergeOptions(**options))


def tensors_of(folder: Path) -> State:
    state: State = {}
    for path in folder.glob("*.safetensors"):
        state |= load_file(path)
    return state


def assert_same_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), (
            f"{name}: {int((found[name] != tensor).sum())} elements differ"
        )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of different ranks on different modules."""
    folder = tmp_path_factory.mktemp("adapters")
    first = make_adapter(folder / "first", seed=1, r=8, lora_alpha=20)
    second = make_adapter(
        folder / "second", seed=2, r=5, lora_alpha=7, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    return [first, second]


def in_float64(base: State, folders: Sequence[Path]) -> State:
    """The merge without any rounding; every adapter here has alpha / r as its scale."""
    state = {name: tensor.double() for name, tensor in base.items()}
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        halves = load_file(folder / "adapter_model.safetensors")
        for key, a in halves.items():
            if ".lora_A." in key:
                b = halves[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("base_model.model.").replace(".lora_A", "")
                state[name] += b.double() @ a.double() * (config["lora_alpha"] / config["r"])
    return state
