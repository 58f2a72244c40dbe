"""GGUF of every family: tiny models of transformers, written as llama.cpp's converter writes them, come back as they were."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from unicodedata import is_normalized

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.architectures.gguf_families import GGUF_FAMILIES
from services.convert import ConvertOptions, convert
from services.errors import UnsupportedFormat
from tests.contract.gguf_models import field
from tests.corpus import mixed_lines
from tests.reference.families import OPTIONS, save_tiny
from tests.reference.gguf_models import CONTROL, NORMAL, AddTokenizer, byte_level_tokens, save_gguf

LONGROPE = OPTIONS["phi3"]["rope_scaling"]
PHI3_FACTOR = math.sqrt(1 + math.log(128 / 32) / math.log(32))

FAMILIES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]] = {
    "llama": ("llama", {}, {}, {}),
    "mistral": ("llama", {"sliding_window": None}, {}, {}),
    "qwen2": ("qwen2", {"head_dim": 12}, {}, {}),
    "qwen3": ("qwen3", {}, {}, {}),
    "phi3": (
        "phi3", {"sliding_window": 24},
        {"attention.sliding_window": 24, "rope.scaling.original_context_length": 32, "rope.scaling.type": "longrope",
         "rope.scaling.attn_factor": PHI3_FACTOR},
        {"rope_factors_long.weight": torch.tensor(LONGROPE["long_factor"]),
         "rope_factors_short.weight": torch.tensor(LONGROPE["short_factor"])},
    ),
    "gemma2": (
        "gemma2", {},
        {"attention.sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, {},
    ),
    "gemma3_text": (
        "gemma3", {"num_hidden_layers": 7, "layer_types": None, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"attention.sliding_window": 16, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, {},
    ),
}  # fmt: skip
"""Architecture, options of the model, metadata and tensors that the family has in addition, by `model_type`."""


WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
BLOCKS: Mapping[str, dict[str, Any]] = {
    "qwen2": WIDE, "gemma3_text": WIDE,
    "phi3": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 8, "num_key_value_heads": 4},
}  # fmt: skip
"""Sizes with rows of whole blocks; 8 heads of 12 leave Phi-3's six frequencies."""


def tokenizer_of(folder: Path, rows: int, pre: str = "qwen2") -> AddTokenizer:
    content = json.loads((folder / "tokenizer.json").read_text())
    tokens = [*sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)]
    added = [token["content"] for token in content["added_tokens"]]
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    return byte_level_tokens(
        [*tokens, *added], merges, pre, types=[NORMAL] * len(tokens) + [CONTROL] * len(added), rows=rows,
        eos_token_id=len(tokens) + 2, padding_token_id=len(tokens), add_bos_token=False,
    )  # fmt: skip


def gguf_of(model_type: str, tmp_path: Path, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    architecture, own, metadata, extra = FAMILIES[model_type]
    sizes = {**own, **options.pop("sizes", {})}
    model = save_tiny(model_type, tmp_path / "original", dtype=torch.float32, **sizes)
    (tmp_path / "source").mkdir()
    offset = 1.0 if "gemma" in model_type else 0.0
    metadata = {**metadata, **options.pop("metadata", {})}
    held = save_gguf(
        tmp_path / "source" / "m.gguf", model, tokenizer_of(tmp_path / "original", 300), architecture=architecture,
        metadata=metadata, extra=extra, norm_offset=offset, **options,
    )  # fmt: skip
    return model, held


def logits_of(model: Any) -> torch.Tensor:
    tokens = torch.tensor(
        [[5, 77, 200, 31, 4, 150, 9, 9, 60, 111, 42, 254, 7, 18, 99, 3, 210, 65, 17, 24, 80, 123, 2, 45] * 2]
    )
    with torch.no_grad():
        return cast(torch.Tensor, model(tokens).logits[0].float())


def test_every_family_is_here() -> None:
    assert {architecture for architecture, _, _, _ in FAMILIES.values()} == set(GGUF_FAMILIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_of_the_family_comes_back(tmp_path: Path, model_type: str) -> None:
    model, held = gguf_of(model_type, tmp_path, encoding="F32")
    (tmp_path / "target").mkdir()
    convert(tmp_path / "source", tmp_path / "target")

    written = load_file(tmp_path / "target" / "model.safetensors")
    assert set(written) == set(held)
    for name, tensor in held.items():
        assert torch.equal(written[name], tensor), name
        assert torch.allclose(written[name], model.state_dict()[name], atol=1e-6), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float32).eval()
    assert loaded.config.model_type == ("llama" if model_type == "mistral" else model_type)
    assert torch.allclose(logits_of(loaded), logits_of(model), rtol=1e-4, atol=1e-5)

    original = Tokenizer.from_file(str(tmp_path / "original" / "tokenizer.json"))
    lines = [
        line for line in mixed_lines(200) if is_normalized("NFC", line)
    ]  # Qwen's tokenizer composes characters, this one does not
    expected = [found.ids for found in original.encode_batch(lines, add_special_tokens=False)]
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "target")(lines, add_special_tokens=False)["input_ids"]
        == expected
    )


LISTED_WINDOWS = {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}
"""Layers that no period describes, so that the file lists them."""


@pytest.mark.parametrize(
    ("model_type", "options"),
    [*((name, facts[1]) for name, facts in FAMILIES.items()), ("gemma3_text", LISTED_WINDOWS)],
)
def test_a_model_comes_back_from_our_own_file_bit_for_bit(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    save_tiny(model_type, tmp_path / "original", **options)
    for name in ("gguf", "target"):
        (tmp_path / name).mkdir()
    convert(tmp_path / "original", tmp_path / "gguf", ConvertOptions(output_format="gguf"))
    convert(tmp_path / "gguf", tmp_path / "target")

    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "target"))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for name in ("original", "target")
    )
    assert torch.allclose(logits_of(after), logits_of(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", ["qwen2", "phi3", "gemma3_text"])
def test_blocks_are_decoded_in_every_family(tmp_path: Path, model_type: str) -> None:
    """Rows of whole blocks of 32, 16 values a head; the names of a layer are those of the family."""
    _, held = gguf_of(model_type, tmp_path, sizes=BLOCKS[model_type], encoding="Q8_0")
    (tmp_path / "target").mkdir()
    convert(tmp_path / "source", tmp_path / "target")
    written = load_file(tmp_path / "target" / "model.safetensors")
    assert set(written) == set(held)
    assert all(torch.equal(written[name], tensor.half()) for name, tensor in held.items())


def test_phi_3s_factor_of_attention_must_follow_from_its_context(tmp_path: Path) -> None:
    gguf_of("phi3", tmp_path, metadata={"rope.scaling.attn_factor": 1.5})
    (tmp_path / "target").mkdir()
    with pytest.raises(UnsupportedFormat, match=r"attn_factor = 1.5; its context lengths give 1.18"):
        convert(tmp_path / "source", tmp_path / "target", ConvertOptions())


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "dbrx", "qwen2", "gpt-4o", "deepseek-llm", "deepseek-v3"])
def test_the_way_of_splitting_text_keeps_its_name_there_and_back(tmp_path: Path, pre: str) -> None:
    model = save_tiny("llama", tmp_path / "original")
    for name in ("source", "model", "again"):
        (tmp_path / name).mkdir()
    save_gguf(tmp_path / "source" / "m.gguf", model, tokenizer_of(tmp_path / "original", 300, pre))
    convert(tmp_path / "source", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "again", ConvertOptions(output_format="gguf"))
    assert field(tmp_path / "again", "tokenizer.ggml.pre") == pre
