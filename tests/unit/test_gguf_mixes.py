"""Mixes of GGUF encodings: matrices by their place in the model, against tables worked out from llama-quantize's rules by hand."""

import dataclasses
from typing import get_args

import gguf
import pytest

from services.architectures.config import ModelConfig
from services.architectures.expected_tensors import expected_tensors
from services.architectures.gguf_mixes import ALIASES, MIXES
from services.architectures.gguf_output import gguf_encodings, gguf_warnings
from services.architectures.output_spec import OUTPUT_DTYPES, OutputSpec, check_output, plan_output
from services.architectures.vocabulary import Vocabulary
from services.errors import UnsupportedOption
from services.files.tensors import BLOCKS
from services.kinds.shared import GgufDType

CONFIG = ModelConfig(
    hidden_size=512, intermediate_size=1536, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=2,
    head_dim=64, vocab_size=300, rms_norm_eps=1e-5,
)  # fmt: skip
VOCABULARY = Vocabulary("sentencepiece", (b"a",) * 300, "")


def output(dtype: str, *, has_imatrix: bool = False, **changes: object) -> OutputSpec:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    tensors = {tensor.huggingface: ("F16", tensor.shape) for tensor in expected_tensors(config)}
    return plan_output(
        "gguf", config, tensors, vocabulary=VOCABULARY, dtype=OUTPUT_DTYPES[dtype], has_imatrix=has_imatrix
    )


def layers_of(found: dict[str, str], part: str) -> list[str]:
    return [code for name, code in found.items() if name.endswith(f".{part}.weight")]


FINE = [0, 1, 4, 7, 10, 13, 14, 15]
"""Layers of 16 with more bits: the first and last eighth, and every third between."""


def with_more(main: str, more: str, layers: list[int]) -> list[str]:
    return [more if layer in layers else main for layer in range(16)]


@pytest.mark.parametrize(
    ("dtype", "head", "embedding", "values", "down", "attention_out", "others"),
    [
        ("q4_k_m", "Q6_K", "Q4_K", with_more("Q4_K", "Q6_K", FINE), with_more("Q4_K", "Q6_K", FINE), "Q4_K", "Q4_K"),
        ("q4_k_s", "Q6_K", "Q4_K", with_more("Q4_K", "Q5_K", [0, 1, 2, 3]), with_more("Q4_K", "Q5_K", [0, 1]), "Q4_K", "Q4_K"),
        ("q5_k_m", "Q6_K", "Q5_K", with_more("Q5_K", "Q6_K", FINE), with_more("Q5_K", "Q6_K", FINE), "Q5_K", "Q5_K"),
        ("q5_k_s", "Q6_K", "Q5_K", ["Q5_K"] * 16, ["Q5_K"] * 16, "Q5_K", "Q5_K"),
        ("q3_k_s", "Q6_K", "Q3_K", ["Q3_K"] * 16, ["Q3_K"] * 16, "Q3_K", "Q3_K"),
        ("q3_k_m", "Q6_K", "Q3_K", with_more("Q4_K", "Q5_K", [0, 1]), with_more("Q4_K", "Q5_K", [0]), "Q4_K", "Q3_K"),
        ("q3_k_l", "Q6_K", "Q3_K", ["Q5_K"] * 16, ["Q5_K"] * 16, "Q5_K", "Q3_K"),
        ("q2_k", "Q6_K", "Q2_K", ["Q4_K"] * 16, ["Q3_K"] * 16, "Q3_K", "Q2_K"),
        ("q6_k", "Q6_K", "Q6_K", ["Q6_K"] * 16, ["Q6_K"] * 16, "Q6_K", "Q6_K"),
        ("q4_0", "Q6_K", "Q4_0", ["Q4_0"] * 16, ["Q4_0"] * 16, "Q4_0", "Q4_0"),
        ("q8_0", "Q8_0", "Q8_0", ["Q8_0"] * 16, ["Q8_0"] * 16, "Q8_0", "Q8_0"),
        ("iq4_xs", "Q6_K", "IQ4_XS", ["Q5_K"] * 16, with_more("IQ4_XS", "Q5_K", [0, 1]), "IQ4_XS", "IQ4_XS"),
        ("iq3_m", "Q6_K", "IQ3_S", ["Q4_K"] * 16, with_more("IQ3_S", "Q4_K", [0, 1]), "Q4_K", "IQ3_S"),
    ],
)  # fmt: skip
def test_matrices_that_matter_get_more_bits(
    dtype: str, head: str, embedding: str, values: list[str], down: list[str], attention_out: str, others: str
) -> None:
    found = gguf_encodings(output(dtype))
    assert found["lm_head.weight"] == head
    assert found["model.embed_tokens.weight"] == embedding
    assert layers_of(found, "v_proj") == values
    assert layers_of(found, "down_proj") == down
    assert layers_of(found, "o_proj") == [attention_out] * 16
    for part in ("q_proj", "k_proj", "gate_proj", "up_proj"):
        assert layers_of(found, part) == [others] * 16
    assert {code for name, code in found.items() if "norm" in name} == {"F32"}


def test_a_tied_embedding_is_encoded_as_the_head() -> None:
    found = gguf_encodings(output("q4_k_m", tie_word_embeddings=True))
    assert found["model.embed_tokens.weight"] == "Q6_K"
    assert "lm_head.weight" not in found


def test_values_of_few_heads_cost_little_and_get_more_bits() -> None:
    """LLaMA's 70B has 80 layers and shares keys and values among eight heads; its 65B shares none."""
    grouped = layers_of(gguf_encodings(output("q4_k_m", num_hidden_layers=80)), "v_proj")
    alone = layers_of(gguf_encodings(output("q4_k_m", num_hidden_layers=80, num_key_value_heads=8)), "v_proj")
    assert set(grouped) == {"Q5_K", "Q6_K"}
    assert set(alone) == {"Q4_K", "Q6_K"}
    assert layers_of(gguf_encodings(output("q2_k", num_key_value_heads=4)), "v_proj") == ["Q3_K"] * 16


def test_an_importance_matrix_changes_what_is_safe() -> None:
    without = layers_of(gguf_encodings(output("iq4_xs")), "down_proj")
    weighted = layers_of(gguf_encodings(output("iq4_xs", has_imatrix=True)), "down_proj")
    assert (without[:3], weighted[:3]) == (["Q5_K", "Q5_K", "IQ4_XS"], ["IQ4_XS"] * 3)
    assert layers_of(gguf_encodings(output("q4_0", has_imatrix=True)), "down_proj")[:3] == [
        "Q4_1",
        "Q4_1",
        "Q4_0",
    ]


@pytest.mark.parametrize(
    ("dtype", "fallback", "head"),
    [("q2_k", "Q4_0", "Q8_0"), ("q4_k_s", "Q5_0", "Q8_0"), ("q5_k_s", "Q5_1", "Q8_0"), ("q6_k", "Q8_0", "Q8_0"), ("iq4_xs", "IQ4_NL", "Q8_0")],
)  # fmt: skip
def test_rows_that_are_no_whole_blocks_fall_back_and_are_counted(
    dtype: str, fallback: str, head: str
) -> None:
    """SmolLM2-135M's rows of 576."""
    made = output(dtype, hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
    found = gguf_encodings(made)
    assert layers_of(found, "q_proj") == [fallback] * 16
    assert found["lm_head.weight"] == head
    assert layers_of(found, "down_proj")[-1] == {"q2_k": "Q3_K", "iq4_xs": "IQ4_XS"}.get(
        dtype, dtype[:4].upper()
    )
    [warning] = gguf_warnings(made)
    assert f"from {MIXES[OUTPUT_DTYPES[dtype]].encoding} (blocks of 256) to {fallback}" in warning
    assert gguf_warnings(output(dtype)) == []


def test_rows_that_fit_no_blocks_become_float16() -> None:
    made = output("q4_k_m", hidden_size=520, num_attention_heads=8, head_dim=65)
    found = gguf_encodings(made)
    assert layers_of(found, "up_proj") == ["F16"] * 16
    assert layers_of(found, "down_proj")[2] == "Q4_K"


@pytest.mark.parametrize(
    ("dtype", "tensor", "encoding"),
    [
        ("iq2_xxs", "model.layers.0.self_attn.q_proj.weight", "IQ2_XXS"),
        ("iq3_xs", "model.layers.0.self_attn.q_proj.weight", "IQ3_XXS"),
        ("q2_k_s", "model.layers.0.self_attn.q_proj.weight", "Q2_K"),
        ("iq1_m", "model.layers.0.self_attn.q_proj.weight", "IQ1_M"),
    ],
)
def test_what_needs_an_importance_matrix_is_refused_by_name(dtype: str, tensor: str, encoding: str) -> None:
    with pytest.raises(UnsupportedOption, match=f"{tensor}' as {encoding}, which needs an importance matrix"):
        check_output(output(dtype))
    check_output(output(dtype, has_imatrix=True))


def test_names_numbers_and_sizes_are_those_of_the_gguf_package() -> None:
    for name, mix in MIXES.items():
        assert mix.file_type == gguf.LlamaFileType[f"MOSTLY_{name}"]
        assert mix.encoding in BLOCKS
    for encoding, size in BLOCKS.items():
        assert size == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
    assert {name.upper() for name in get_args(GgufDType)} == MIXES.keys() | ALIASES.keys()


def test_a_short_name_is_the_mix_that_llama_quantize_takes_it_for() -> None:
    assert [OUTPUT_DTYPES[name] for name in ("q3_k", "q4_k", "q5_k", "q6_k", "q2_k")] == [
        "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q2_K",
    ]  # fmt: skip
