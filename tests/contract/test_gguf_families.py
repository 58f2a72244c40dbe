"""GGUF of every family: read back by transformers and by the gguf package, against the model that went in."""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from services.architectures.gguf_pretokenizer import pretokenizer_name
from services.convert import ConvertOptions, convert
from services.errors import GraftwerkError, UnsupportedFormat
from services.kinds.convert import ConvertRequest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.gguf_models import field, tensors_of, to_gguf
from tests.reference.families import PATTERN, save_tiny

TOKENS = [1, 57, 200, 3, 99, 12, 76, 150, 33]

SQUARE = {"num_attention_heads": 3, "num_key_value_heads": 1}
"""Three heads of 16, the hidden size; llama.cpp demands it of Qwen2."""

OPTIONS: dict[str, dict[str, Any]] = {
    "qwen2": SQUARE,
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"]},
}

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "gemma3": "gemma3",
}  # fmt: skip

pytestmark = [
    # transformers copies from arrays that gguf maps read-only; nothing writes to them.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


def saved(model_type: str, folder: Path, **options: Any) -> Any:
    chosen = {**OPTIONS.get(model_type, {}), **options}
    return save_tiny(model_type, folder, dtype=torch.float32, **chosen)


def text_state(model: Any) -> dict[str, torch.Tensor]:
    """The text model's tensors under the names that a text model alone has."""
    state = {
        name.replace("model.language_model.", "model."): value for name, value in model.state_dict().items()
    }
    return {name: value for name, value in state.items() if "vision" not in name and "projector" not in name}


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
def test_transformers_computes_the_same_from_the_file(tmp_path: Path, model_type: str) -> None:
    expected = saved(model_type, tmp_path / "base")
    to_gguf(tmp_path / "base", tmp_path / "target")
    found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "target", gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        there, here = (model(torch.tensor([TOKENS])).logits for model in (expected, found))
    assert float((here - there).abs().max() / there.abs().max()) < 1e-5


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
"""llama.cpp's names (`src/llama-arch.cpp`), written out; Gemma's norm after the attention is post_attention_norm."""


def stored_name(name: str, gemma: bool) -> str:
    module, kind = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{kind}"
    layer, part = module.removeprefix("model.layers.").split(".", 1)
    if gemma and part == "post_attention_layernorm":
        return f"blk.{layer}.post_attention_norm.{kind}"
    return f"blk.{layer}.{NAMES[part]}.{kind}"


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gemma3"])
def test_every_tensor_is_the_models_under_llama_cpps_name(tmp_path: Path, model_type: str) -> None:
    """Rotary rows keep their order in these; Gemma's norms are stored as one plus the weight."""
    state = text_state(saved(model_type, tmp_path / "base"))
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))
    gemma = model_type.startswith("gemma")
    if gemma:
        state.pop("lm_head.weight", None)
    expected = {stored_name(name, gemma): (name, value) for name, value in state.items()}
    assert {name for name in found if not name.startswith("rope_factors")} == expected.keys()
    for stored, (name, value) in expected.items():
        offset = 1 if gemma and name.endswith("norm.weight") else 0
        assert np.array_equal(found[stored].data, (value + offset).numpy()), stored
    assert field(tmp_path / "target", "general.architecture") == ARCHITECTURES[model_type]


def test_gemmas_windows_limits_and_bases_are_in_the_metadata(tmp_path: Path) -> None:
    saved("gemma2", tmp_path / "two")
    saved("gemma3_text", tmp_path / "three", num_hidden_layers=2)
    two, three = to_gguf(tmp_path / "two", tmp_path / "a"), to_gguf(tmp_path / "three", tmp_path / "b")
    assert field(two, "gemma2.attention.sliding_window") == 16
    assert field(two, "gemma2.attn_logit_softcapping") == 50
    assert field(two, "gemma2.final_logit_softcapping") == 30
    assert field(two, "gemma2.attention.sliding_window_pattern") is None, (
        "every second layer is llama.cpp's own"
    )
    assert field(three, "gemma3.attention.sliding_window_pattern") == [True, False]
    assert field(three, "gemma3.rope.freq_base") == 1e6
    assert field(three, "gemma3.rope.freq_base_swa") == 1e4


def test_phi3s_long_and_short_factors_are_tensors(tmp_path: Path) -> None:
    saved("phi3", tmp_path / "base")
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    found = tensors_of(target)
    assert np.allclose(found["rope_factors_short.weight"].data, [1.0, 1.05, 1.1, 1.15, 1.2, 1.25])
    assert np.allclose(found["rope_factors_long.weight"].data, [2, 3, 4, 5, 6, 7])
    assert field(target, "phi3.rope.scaling.original_context_length") == 32
    assert field(target, "phi3.rope.scaling.attn_factor") == pytest.approx(
        math.sqrt(1 + math.log(4) / math.log(32))
    )
    assert field(target, "phi3.rope.dimension_count") == 12


def test_yarn_is_written_as_its_factor_and_context(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    saved("qwen3", tmp_path / "base", rope_parameters=scaling)
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert field(target, "qwen3.rope.scaling.type") == "yarn"
    assert field(target, "qwen3.rope.scaling.factor") == 4
    assert field(target, "qwen3.rope.scaling.original_context_length") == 32


# ---- byte-level tokenizers ----


def test_a_byte_level_tokenizer_is_written_with_its_merges_types_and_padding(tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "base")
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    tokenizer = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    tokens, types = field(target, "tokenizer.ggml.tokens"), field(target, "tokenizer.ggml.token_type")
    assert tokens[: tokenizer.get_vocab_size()] == [
        tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())
    ]
    assert tokens[-1] == "[PAD299]"
    assert (len(tokens), field(target, "tokenizer.ggml.pre"), field(target, "tokenizer.ggml.model")) == (
        300,
        "qwen2",
        "gpt2",
    )
    ends = tokenizer.token_to_id("<|im_end|>")
    assert types[ends] == gguf.TokenType.CONTROL
    assert types[0] == gguf.TokenType.NORMAL
    assert types[-1] == gguf.TokenType.UNUSED
    assert field(target, "tokenizer.ggml.eos_token_id") == ends
    assert field(target, "tokenizer.ggml.add_bos_token") is False
    assert field(target, "tokenizer.ggml.merges")[:2] == ["t h", "th e"]


def changed_tokenizer(folder: Path, **parts: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def with_steps(folder: Path, steps: list[dict[str, Any]], *, ignore_merges: bool = False) -> str:
    table = json.loads((folder / "tokenizer.json").read_text())
    model = {**table["model"], "ignore_merges": ignore_merges}
    changed_tokenizer(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": steps}, model=model)
    return pretokenizer_name(folder)


def split(pattern: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]


def test_pretokenizers_are_named_by_their_steps(tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "base")
    digits = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    assert with_steps(tmp_path / "base", split(PATTERN)) == "qwen2"
    assert (
        with_steps(tmp_path / "base", split(PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), ignore_merges=True)
        == "llama-bpe"
    )
    assert with_steps(tmp_path / "base", digits) == "smollm"
    assert with_steps(tmp_path / "base", digits[1:]) == "gpt-2"


def refused(base: Path, phrase: str) -> None:
    """By the preflight and by the conversion, before a tensor is written."""
    request = ConvertRequest(kind="convert", source=base.name, target="new", output_format="gguf")
    (base.parent / "target").mkdir()
    for door in (
        lambda: preflight(request, ModelStore(base.parent), {}),
        lambda: convert(base, base.parent / "target", ConvertOptions(output_format="gguf")),
    ):
        with pytest.raises(GraftwerkError) as caught:
            door()
        assert isinstance(caught.value, UnsupportedFormat)
        assert phrase in caught.value.message
    assert list((base.parent / "target").iterdir()) == []


def test_an_unknown_pretokenizer_is_refused_by_its_steps(tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "base")
    with_steps_raw = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, *split(PATTERN)[1:]]}
    changed_tokenizer(tmp_path / "base", pre_tokenizer=with_steps_raw)
    refused(tmp_path / "base", "by steps (Whitespace, ByteLevel) that llama.cpp has no name for")


def warnings_of(base: Path, output_format: str = "gguf") -> list[str]:
    request = ConvertRequest.model_validate(
        {"kind": "convert", "source": base.name, "target": "new", "output_format": output_format}
    )
    return preflight(request, ModelStore(base.parent), {}).warnings


def test_a_normalizer_is_refused_unless_it_is_nfc(tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "base")
    changed_tokenizer(tmp_path / "base", normalizer={"type": "NFC"})
    assert pretokenizer_name(tmp_path / "base") == "qwen2"
    assert ["NFC" in warning for warning in warnings_of(tmp_path / "base")] == [True]
    assert warnings_of(tmp_path / "base", "huggingface") == []
    changed_tokenizer(tmp_path / "base", normalizer=None)
    assert warnings_of(tmp_path / "base") == []
    changed_tokenizer(tmp_path / "base", normalizer={"type": "Lowercase"})
    refused(tmp_path / "base", "normalizes text by Lowercase")


# ---- what llama.cpp would compute otherwise ----


@pytest.mark.parametrize(
    ("model_type", "options", "phrase"),
    [
        (
            "qwen2",
            {"num_attention_heads": 4, "num_key_value_heads": 2},
            "4 heads of 16; of qwen2 llama.cpp computes only",
        ),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic'",
        ),
        ("gemma2", {"query_pre_attn_scalar": 20}, "scales attention by 20"),
        ("gemma2", {"final_logit_softcapping": None}, "no final_logit_softcapping"),
        ("gemma3_text", {"attention_bias": True}, "a bias that llama.cpp does not load"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, model_type: str, options: dict[str, Any], phrase: str
) -> None:
    saved(model_type, tmp_path / "base", **options)
    refused(tmp_path / "base", phrase)


def test_a_head_of_its_own_is_refused_where_llama_cpp_ties_it(tmp_path: Path) -> None:
    save_tiny("gemma2", tmp_path / "base", tied=False)
    refused(tmp_path / "base", "with the embedding as its head")


def test_a_window_that_llama_cpp_does_not_compute_is_in_the_plan(tmp_path: Path) -> None:
    saved("mistral", tmp_path / "base")
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="gguf")
    plan = preflight(request, ModelStore(tmp_path), {})
    assert plan.warnings == [
        "The model attends to the last 16 tokens; llama.cpp attends to all of them, which differs in longer texts."
    ]


def test_the_other_towers_are_left_out_and_counted(tmp_path: Path) -> None:
    model = saved("gemma3", tmp_path / "base")
    towers = [name for name in model.state_dict() if "vision" in name or "projector" in name]
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="gguf")
    plan = preflight(request, ModelStore(tmp_path), {})
    assert f"{len(towers)} tensors do not belong to the text model and are left out" in plan.warnings[0]
