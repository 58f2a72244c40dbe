"""Rounding of merges against float64, and values that a dtype cannot hold."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.errors import NonFiniteTensor
from tests.contract.merge_models import DTYPES, adapters, in_float64, merged, tensors_of
from tests.reference.peft_merge import (
    random_model,
    save_model,
)

__all__ = ["adapters"]  # fixture


# ---- rounding ----


@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_rounding_once_is_nearer_to_float64_than_rounding_for_each_adapter(
    tmp_path: Path, adapters: list[Path], code: str
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    exact = in_float64(random_model(DTYPES[code]).state_dict(), adapters)

    errors, as_exact = {}, {}
    for rounding in ("once", "per_adapter"):
        merged(base, adapters, tmp_path / rounding, rounding=rounding)
        found = tensors_of(tmp_path / rounding)
        changed = [name for name in exact if name.endswith("q_proj.weight")]
        errors[rounding] = sum(float((found[name] - exact[name]).abs().sum()) for name in changed)
        equal = sum(int((found[name] == exact[name].to(DTYPES[code])).sum()) for name in changed)
        as_exact[rounding] = equal / sum(exact[name].numel() for name in changed)

    assert 0 < errors["once"] < 0.95 * errors["per_adapter"]
    assert as_exact["once"] > 0.999
    assert as_exact["per_adapter"] < 0.95


def test_rounding_once_into_another_dtype_rounds_from_the_unrounded_sum(
    tmp_path: Path, adapters: list[Path]
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    exact = in_float64(random_model(torch.float16).state_dict(), adapters)

    merged(base, adapters, tmp_path / "target", rounding="once", dtype="F32")

    found = tensors_of(tmp_path / "target")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(float((found[name] - exact[name]).abs().max()) < 1e-5 for name in exact)


# ---- refused while computing ----


def spoiled(path: Path, target: Path, key: str, value: float) -> Path:
    shutil.copytree(path, target)
    state = load_file(target / "adapter_model.safetensors")
    state[key][1, 2] = value
    save_file(state, target / "adapter_model.safetensors")
    return target


def test_an_adapter_with_a_value_that_is_no_number_is_refused_by_name(
    tmp_path: Path, adapters: list[Path]
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    bad = spoiled(adapters[0], tmp_path / "bad", key, float("nan"))
    with pytest.raises(NonFiniteTensor, match=r"bad: .*layers\.1\.mlp\.up_proj\.lora_B\.weight"):
        merged(base, [bad], tmp_path / "target")


def test_a_sum_that_the_dtype_cannot_hold_is_refused_by_name(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    key = "base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight"
    bad = spoiled(adapters[0], tmp_path / "bad", key, 1e7)
    with pytest.raises(
        NonFiniteTensor, match=r"'model\.layers\.2\.self_attn\.k_proj\.weight' holds \d+ values"
    ):
        merged(base, [bad], tmp_path / "target")
