"""Adapters extracted from fine-tuned models: what a merge has added is found again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from services.adapter_tools import Extracted, ExtractOptions, extract
from services.convert import convert
from services.errors import GraftwerkError, InvalidRequest, NonFiniteTensor, VocabularyMismatch
from tests.contract.merge_models import DTYPES, EMBEDDINGS, adapters, assert_same_bits, merged, tensors_of
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import (
    PROJECTIONS,
    State,
    make_adapter,
    random_model,
    save_model,
    write_tokenizer,
)

__all__ = ["adapters"]  # fixture


def extracted(base: Path, model: Path, target: Path, rank: int) -> Extracted:
    target.mkdir()
    return extract(base, model, target, ExtractOptions(rank, base.name))


def product(folder: Path, module: str) -> torch.Tensor:
    """The change that an adapter holds for a module, from its file and its configuration alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.{module}.lora_{half}.weight"].double() for half in "AB")
    return b @ a * (config["lora_alpha"] / config["r"])


def modules() -> list[str]:
    attention, mlp = PROJECTIONS[:4], PROJECTIONS[4:]
    names = [*(f"self_attn.{name}" for name in attention), *(f"mlp.{name}" for name in mlp)]
    return [f"model.layers.{layer}.{name}" for layer in range(3) for name in names]


@pytest.mark.parametrize("code", DTYPES)
def test_an_extracted_adapter_is_the_one_that_was_merged(
    tmp_path: Path, adapters: list[Path], code: str
) -> None:
    base = save_model(random_model(DTYPES[code]), tmp_path / "base")
    merged(base, adapters[:1], tmp_path / "tuned")

    result = extracted(base, tmp_path / "tuned", tmp_path / "found", 8)

    before, after = tensors_of(base), tensors_of(tmp_path / "tuned")
    for module in modules():
        name = f"{module}.weight"
        expected = product(adapters[0], module)
        rounding = float((after[name].double() - before[name].double() - expected).norm())
        assert float((product(tmp_path / "found", module) - expected).norm()) <= 1.01 * rounding + 1e-6
    errors = {item.tensor: item for item in result.errors}
    assert set(errors) == {f"{module}.weight" for module in modules()}
    assert result.unchanged == len(before) - len(errors)
    for name, item in errors.items():
        difference = (after[name].double() - before[name].double()).numpy()
        singular = np.linalg.svd(difference, compute_uv=False)
        best = np.sqrt((singular[8:] ** 2).sum() / (singular**2).sum())
        assert item.error == pytest.approx(best, rel=1e-3, abs=1e-6)
        assert item.norm == pytest.approx(np.linalg.norm(difference))
        assert item.rounding == pytest.approx(best, rel=0.5, abs=1e-6)
    assert not result.warnings


def test_peft_loads_it_and_gets_the_fine_tuned_model(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float32), tmp_path / "base")
    merged(base, adapters, tmp_path / "tuned")

    result = extracted(base, tmp_path / "tuned", tmp_path / "found", 8 + 5)

    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "found")
    found = model.merge_and_unload().state_dict()
    for name, tensor in tensors_of(tmp_path / "tuned").items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    assert result.error < 1e-5
    config = json.loads((tmp_path / "found" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config["r"] == config["lora_alpha"] == 13
    assert sorted(config["target_modules"]) == sorted(modules())


def test_only_what_has_changed_is_in_the_file(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    adapter = make_adapter(tmp_path / "one", seed=6, target_modules=["v_proj"], layers_to_transform=[2])
    merged(base, [adapter], tmp_path / "tuned")
    extracted(base, tmp_path / "tuned", tmp_path / "found", 8)
    at = "base_model.model.model.layers.2.self_attn.v_proj.lora_"
    assert set(load_file(tmp_path / "found" / "adapter_model.safetensors")) == {
        f"{at}A.weight",
        f"{at}B.weight",
    }


def changed_copy(base: Path, target: Path, **changes: Any) -> Path:
    """The base with some tensors changed by functions."""
    shutil.copytree(base, target)
    state = load_file(target / "model.safetensors")
    for key, change in changes.items():
        name = next(name for name in state if name.endswith(key.replace("__", ".")))
        state[name] = change(state[name].clone())
    save_file(state, target / "model.safetensors")
    return target


def test_norms_and_embeddings_go_along_whole(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    tuned = changed_copy(
        base, tmp_path / "tuned",
        layers__1__input_layernorm__weight=lambda t: t + 1, model__norm__weight=lambda t: t * 2,
        embed_tokens__weight=lambda t: t + 0.5, layers__0__mlp__up_proj__weight=lambda t: t + torch.eye(*t.shape).half(),
    )  # fmt: skip

    result = extracted(base, tuned, tmp_path / "found", 5)

    config = json.loads((tmp_path / "found" / "adapter_config.json").read_text())
    saved = {"model.layers.1.input_layernorm", "model.norm", "model.embed_tokens"}
    assert set(config["modules_to_save"]) == saved
    assert config["target_modules"] == ["model.layers.0.mlp.up_proj"]
    assert {
        item.tensor: item.error for item in result.errors if item.tensor.removesuffix(".weight") in saved
    } == {f"{name}.weight": 0 for name in saved}
    model = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base, dtype=torch.float16), tmp_path / "found"
    )
    found, expected = model.merge_and_unload().state_dict(), load_file(tuned / "model.safetensors")
    assert_same_bits({f"{name}.weight": found[f"{name}.weight"] for name in saved},
                     {f"{name}.weight": expected[f"{name}.weight"] for name in saved})  # fmt: skip
    merged(base, [tmp_path / "found"], tmp_path / "again")
    again = tensors_of(tmp_path / "again")
    assert_same_bits({name: again[f"{name}.weight"] for name in saved},
                     {name: expected[f"{name}.weight"] for name in saved})  # fmt: skip
    assert "rank 5 leaves an error above 0.1 in 1 of 1 weights" in result.warnings[0]
    # 48 equal singular values: an error of 0.1 takes 99 % of them
    assert result.warnings[0].endswith("would take a rank of at least 48")
    assert result.error == pytest.approx(np.sqrt(43 / 48), rel=1e-3)


def test_a_model_of_which_only_a_norm_differs_has_no_lora_pair(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    tuned = changed_copy(base, tmp_path / "tuned", model__norm__weight=lambda t: t * 2)
    extracted(base, tuned, tmp_path / "found", 3)
    merged(base, [tmp_path / "found"], tmp_path / "again")
    assert_same_bits(tensors_of(tmp_path / "again"), tensors_of(tuned))
    model = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base, dtype=torch.float16), tmp_path / "found"
    )
    assert torch.equal(
        model.merge_and_unload().model.norm.weight,
        load_file(tuned / "model.safetensors")["model.norm.weight"],
    )


def test_a_grown_vocabulary_goes_along_with_its_tokenizer(tmp_path: Path, adapters: list[Path]) -> None:
    base = save_model(random_model(torch.float32), tmp_path / "base")
    grown = make_adapter(tmp_path / "grown", seed=4, vocabulary=113, modules_to_save=EMBEDDINGS)
    write_tokenizer(grown, 113)
    merged(base, [grown], tmp_path / "tuned")

    result = extracted(base, tmp_path / "tuned", tmp_path / "found", 8)

    merged(base, [tmp_path / "found"], tmp_path / "again")
    found, expected = tensors_of(tmp_path / "again"), tensors_of(tmp_path / "tuned")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(found[name], expected[name])
        assert found[name].shape == (113, 48)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == (grown / "tokenizer.model").read_bytes()
    assert result.extraction.vocabulary_rows == 113


def test_biases_go_along_as_those_of_their_layers(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = random_model(torch.float32)
    config = model.config
    config.attention_bias = True
    model = LlamaForCausalLM(config)
    base = save_model(model, tmp_path / "base")
    tuned = changed_copy(
        base, tmp_path / "tuned", layers__0__self_attn__q_proj__bias=lambda t: t + 1,
        layers__1__self_attn__o_proj__bias=lambda t: t + 2, layers__1__self_attn__o_proj__weight=lambda t: t + 1,
    )  # fmt: skip

    extracted(base, tuned, tmp_path / "found", 1)

    merged(base, [tmp_path / "found"], tmp_path / "again")
    expected: State = tensors_of(tuned)
    peft = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "found")
    for found in (tensors_of(tmp_path / "again"), peft.merge_and_unload().state_dict()):
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, atol=1e-5), name


def test_an_equal_model_is_refused(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    shutil.copytree(base, tmp_path / "same")
    with pytest.raises(
        InvalidRequest, match="nothing to extract: base and same hold the same values in all 30 tensors"
    ):
        extracted(base, tmp_path / "same", tmp_path / "found", 4)
    assert not list((tmp_path / "found").iterdir())


def test_a_base_in_the_original_layout_gives_the_adapter_of_its_conversion(
    tmp_path: Path, adapters: list[Path]
) -> None:
    source = save_original(tmp_path / "source", split_ranks(random_state(SMALL), 4), SMALL.params)
    (tmp_path / "converted").mkdir()
    convert(source, tmp_path / "converted")
    merged(tmp_path / "converted", adapters[:1], tmp_path / "tuned")

    extracted(source, tmp_path / "tuned", tmp_path / "direct", 8)
    extracted(tmp_path / "converted", tmp_path / "tuned", tmp_path / "by-way", 8)

    direct, by_way = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("direct", "by-way")
    )
    assert len(direct) == 2 * len(modules())
    assert_same_bits(direct, by_way)


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"rope_theta": 5e5, "rope_parameters": None},
            InvalidRequest,
            "rope_theta is 10000.0 in base and 500000.0 in tuned",
        ),
        ({"hidden_act": "gelu"}, InvalidRequest, "hidden_act is 'silu' in base and 'gelu' in tuned"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, InvalidRequest, "rope_scaling is {} in base"),
    ],
)
def test_a_model_of_another_configuration_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[GraftwerkError], message: str
) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    tuned = changed_copy(base, tmp_path / "tuned", q_proj__weight=lambda t: t + 1)
    set_config(tuned, **change)
    with pytest.raises(error) as caught:
        extracted(base, tuned, tmp_path / "found", 4)
    assert message in caught.value.message


def test_a_smaller_vocabulary_and_other_tokens_are_refused(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    smaller = save_model(random_model(torch.float16, vocabulary=100), tmp_path / "smaller")
    with pytest.raises(VocabularyMismatch, match="smaller has embeddings of 100 rows and base of 101"):
        extracted(base, smaller, tmp_path / "one", 4)
    other = changed_copy(base, tmp_path / "other", q_proj__weight=lambda t: t + 1)
    content = (other / "tokenizer.model").read_bytes()
    (other / "tokenizer.model").write_bytes(content.replace(b"p50", b"q50"))
    with pytest.raises(VocabularyMismatch, match=r"\(101 tokens\) and other \(101\) differ from token 53 on"):
        extracted(base, other, tmp_path / "two", 4)


def test_a_rank_that_no_weight_can_have_is_refused(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    tuned = changed_copy(base, tmp_path / "tuned", q_proj__weight=lambda t: t + 1)
    with pytest.raises(
        InvalidRequest, match="rank 49 is larger than 48, the largest that a weight of tuned can have"
    ):
        extracted(base, tuned, tmp_path / "found", 49)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base = save_model(random_model(torch.float16), tmp_path / "base")
    tuned = changed_copy(base, tmp_path / "tuned", layers__2__self_attn__q_proj__weight=lambda t: t / 0)
    with pytest.raises(NonFiniteTensor, match=r"layers\.2\.self_attn\.q_proj"):
        extracted(base, tuned, tmp_path / "found", 4)
