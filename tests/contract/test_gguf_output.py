"""GGUF written: read back by llama.cpp's own package and by transformers, against the model that went in."""

from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from services.convert import convert
from tests.contract.gguf_models import WIDE, interleaved, tensors_of, to_gguf
from tests.miniature import MINIATURE
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks

TOKENS = [1, 57, 100, 3, 99, 12, 76]

pytestmark = [
    # transformers copies from arrays that gguf maps read-only; nothing writes to them.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.tensor([tokens])).logits[0].float())


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# ---- computes the same ----


def rounded(model: LlamaForCausalLM, dtype: str | None) -> LlamaForCausalLM:
    """The model with its matrices rounded to an encoding by ggml's own arithmetic."""
    encoding = gguf.GGMLQuantizationType[dtype or "F32"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                encoded = gguf.quants.quantize(parameter.numpy(), encoding)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(encoded, encoding)))
    return model


@pytest.mark.parametrize(
    ("dtype", "cost"), [(None, 1e-6), ("F32", 1e-6), ("F16", 5e-3), ("BF16", 5e-2), ("Q8_0", 0.1)]
)
def test_transformers_computes_what_the_encoding_leaves(
    tmp_path: Path, dtype: str | None, cost: float
) -> None:
    model = save_llama(tmp_path / "base", torch.float32, **WIDE)
    exact = logits_of(model, TOKENS)

    found = logits_of(loaded(to_gguf(tmp_path / "base", tmp_path / "target", dtype=dtype)), TOKENS)

    assert relative_difference(found, logits_of(rounded(model, dtype), TOKENS)) < 1e-5
    assert relative_difference(found, exact) < cost


def test_the_comparison_sees_a_missing_permutation(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float32, **WIDE)
    before = logits_of(model, TOKENS)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.copy_(interleaved(layer.self_attn.q_proj.weight.clone(), 8))
    assert relative_difference(logits_of(model, TOKENS), before) > 0.1


@pytest.mark.parametrize(("dtype", "bound"), [("F32", 1e-5), ("F16", 1e-4), ("Q8_0", 5e-2)])
def test_the_miniature_computes_the_same_from_the_file(tmp_path: Path, dtype: str, bound: float) -> None:
    """Its tensors are float16, so that encoding is exact."""
    (tmp_path / "hf").mkdir()
    convert(MINIATURE / "llama", tmp_path / "hf")
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()

    target = to_gguf(MINIATURE / "llama", tmp_path / "target", dtype=dtype)

    assert relative_difference(logits_of(loaded(target), TOKENS), logits_of(expected, TOKENS)) < bound


def test_grouped_heads_of_an_original_checkpoint_over_ranks_compute_the_same(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", split_ranks(random_state(SMALL), 4), SMALL.params)
    (tmp_path / "hf").mkdir()
    convert(source, tmp_path / "hf")
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    target = to_gguf(source, tmp_path / "target")
    assert relative_difference(logits_of(loaded(target), TOKENS), logits_of(expected, TOKENS)) < 1e-5


# ---- holds the same ----


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_tensor_is_exactly_the_models(tmp_path: Path, dtype: str) -> None:
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    model = save_llama(tmp_path / "base", torch_dtype)

    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))

    state = model.state_dict()
    expected = {
        "token_embd.weight": state["model.embed_tokens.weight"], "output.weight": state["lm_head.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }  # fmt: skip
    for layer in range(3):
        of_layer = {
            "attn_q": interleaved(state[f"model.layers.{layer}.self_attn.q_proj.weight"], 8),
            "attn_k": interleaved(state[f"model.layers.{layer}.self_attn.k_proj.weight"], 4),
            "attn_v": state[f"model.layers.{layer}.self_attn.v_proj.weight"],
            "attn_output": state[f"model.layers.{layer}.self_attn.o_proj.weight"],
            "ffn_gate": state[f"model.layers.{layer}.mlp.gate_proj.weight"],
            "ffn_up": state[f"model.layers.{layer}.mlp.up_proj.weight"],
            "ffn_down": state[f"model.layers.{layer}.mlp.down_proj.weight"],
            "attn_norm": state[f"model.layers.{layer}.input_layernorm.weight"],
            "ffn_norm": state[f"model.layers.{layer}.post_attention_layernorm.weight"],
        }  # fmt: skip
        expected |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in of_layer.items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        vector = tensor.ndim == 1
        assert found[name].tensor_type.name == ("F32" if vector else dtype), name
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        assert np.array_equal(values, tensor.float().numpy()), name


def test_q8_0_is_ggmls_quantisation_of_the_interleaved_rows(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float16, **WIDE)
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target", dtype="Q8_0"))
    rows = interleaved(model.state_dict()["model.layers.2.self_attn.k_proj.weight"].float(), 4)
    expected = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert found["blk.2.attn_k.weight"].tensor_type.name == "Q8_0"
    assert np.array_equal(found["blk.2.attn_k.weight"].data, expected)
    assert {t.tensor_type.name for n, t in found.items() if "norm" in n} == {"F32"}


def test_attention_biases_are_interleaved_as_their_rows_are(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float32, attention_bias=True, mlp_bias=True)
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))
    state = model.state_dict()
    assert np.array_equal(
        found["blk.1.attn_q.bias"].data,
        interleaved(state["model.layers.1.self_attn.q_proj.bias"], 8).numpy(),
    )
    assert np.array_equal(found["blk.1.ffn_up.bias"].data, state["model.layers.1.mlp.up_proj.bias"].numpy())


def test_tied_embeddings_have_no_output_tensor(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", tie_word_embeddings=True)
    assert "output.weight" not in tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))
