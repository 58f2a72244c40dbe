"""The check that a finished merge must pass, and the accounts of its adapters."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.checkpoints.write_hooks import WriteHooks
from services.errors import VerificationFailed
from services.files.safetensors_header import read_safetensors_header
from services.merge import MergeOptions
from services.verify import verify_merge
from tests.contract.merge_models import (
    DTYPES,
    EMBEDDINGS,
    adapters,
    in_float64,
    merged,
    tensors_of,
)
from tests.reference.peft_merge import (
    make_adapter,
    random_model,
    save_model,
)

__all__ = ["adapters"]  # fixture


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("rounding", ["per_adapter", "once"])
def test_a_good_merge_passes_its_check(
    tmp_path: Path, adapters: list[Path], code: str, rounding: Any
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    extra = make_adapter(tmp_path / "extra", seed=8, target_modules=["embed_tokens", "lm_head", "q_proj"])
    options = MergeOptions(rounding=rounding)

    report = verify_merge(
        merged(base, [*adapters, extra], tmp_path / "target", rounding=rounding), options, WriteHooks()
    )

    assert report.passed is True
    assert report.tensors == report.digests_equal == 30
    assert report.rows_recomputed == 23 * 16 + 7  # of the matrices, and the vectors whole
    assert report.vocabulary_size == report.tokenizer_size == 101
    assert report.largest_difference > 0


@pytest.mark.parametrize("code", DTYPES)
def test_a_merge_that_takes_the_base_away_again_passes_its_check(
    tmp_path: Path, adapters: list[Path], code: str
) -> None:
    """The second change cancels the first: what is left is small, and the roundings on the way are not."""
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    again = Path(shutil.copytree(adapters[0], tmp_path / "again"))
    chosen = [adapters[0], again]

    report = verify_merge(
        merged(base, chosen, tmp_path / "target", scales=[50.0, -50.0]), MergeOptions(), WriteHooks()
    )

    assert report.passed is True


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_merge_into_another_dtype_passes_its_check(
    tmp_path: Path, adapters: list[Path], dtype: str
) -> None:
    base = save_model(random_model(torch.bfloat16), tmp_path / "base")
    result = merged(base, adapters, tmp_path / "target", dtype=dtype)
    assert verify_merge(result, MergeOptions(dtype=dtype), WriteHooks()).passed is True
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "target").values()} == {DTYPES[dtype]}


def test_a_flipped_bit_on_the_disk_fails_the_check_and_is_named(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    result = merged(base, adapters, tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    place = read_safetensors_header(path)["model.layers.1.self_attn.o_proj.weight"].offset
    data = bytearray(path.read_bytes())
    data[place + 100] ^= 1
    path.write_bytes(data)

    with pytest.raises(VerificationFailed, match=r"'model\.layers\.1\.self_attn\.o_proj\.weight'.* SHA-256"):
        verify_merge(result, MergeOptions(), WriteHooks())


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("model.layers.0.mlp.up_proj.weight", 1.01),
        ("model.layers.2.self_attn.k_proj.weight", 0.0),
        ("model.layers.1.mlp.down_proj.weight", -1.0),
    ],
)
def test_a_wrong_change_fails_the_check_although_its_digest_is_right(
    tmp_path: Path, adapters: list[Path], name: str, factor: float
) -> None:
    base_state = random_model(torch.float16).state_dict()
    base = save_model(random_model(torch.float16), tmp_path / "base")
    result = merged(base, adapters, tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    wrong = load_file(path)
    whole_change = in_float64(base_state, adapters)[name] - base_state[name].double()
    wrong[name] = (base_state[name].double() + factor * whole_change).half()
    save_file(wrong, path)
    digests = {
        key: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, tensor in wrong.items()
    }
    lying = replace(result, written=replace(result.written, digests=digests))

    with pytest.raises(VerificationFailed, match=rf"'{name}' differs from"):
        verify_merge(lying, MergeOptions(), WriteHooks())


def test_swapped_rows_of_the_embeddings_fail_the_check(tmp_path: Path) -> None:
    """A tensor that no adapter changes is compared as well."""
    base = save_model(random_model(torch.float16), tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", seed=9, target_modules=["q_proj"])
    result = merged(base, [adapter], tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    wrong = load_file(path)
    wrong["model.embed_tokens.weight"] = wrong["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(wrong, path)
    digests = {
        key: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, tensor in wrong.items()
    }

    with pytest.raises(VerificationFailed, match=r"'model\.embed_tokens\.weight' differs"):
        verify_merge(
            replace(result, written=replace(result.written, digests=digests)), MergeOptions(), WriteHooks()
        )


def test_every_tensor_of_every_adapter_is_accounted_for(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    saved = make_adapter(tmp_path / "saved", seed=10, modules_to_save=EMBEDDINGS, target_modules=["up_proj"])

    result = merged(base, [*adapters, saved], tmp_path / "target", scales=[1.0, 0.5, 1.0])

    expected = [
        {"adapter": "first", "scale": 1.0, "tensors": 42, "merged": 21, "replaced": 0},
        {"adapter": "second", "scale": 0.5, "tensors": 18, "merged": 9, "replaced": 0},
        {"adapter": "saved", "scale": 1.0, "tensors": 8, "merged": 3, "replaced": 2},
    ]
    for account, figures in zip(result.accounts, expected, strict=True):
        assert account.model_dump(include=set(figures)) == figures
