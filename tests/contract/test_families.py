"""Model families: tensors, configurations and names are those of transformers' own classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.config import config_to_json, read_config
from services.architectures.dense_types import DENSE_TYPES
from services.architectures.families import FAMILIES, family_of
from services.architectures.family import ModelClass
from services.architectures.mixtures import MIXTURES
from services.checkpoints.model_check import check_class
from services.errors import (
    ConfigMismatch,
    GraftwerkError,
    IncompleteCheckpoint,
    ShapeMismatch,
    UnknownTensor,
    UnsupportedFormat,
)
from tests.reference.families import OPTIONS, save_tiny

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "max_position_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id",
)  # fmt: skip


def test_every_family_has_a_tiny_model() -> None:
    assert set(OPTIONS) == {*FAMILIES, *MIXTURES}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_checkpoint_is_what_transformers_saved(model_type: str, tied: bool, tmp_path: Path) -> None:
    model = save_tiny(model_type, tmp_path, tied=tied)
    stored = load_file(tmp_path / "model.safetensors")

    found = read_checkpoint(tmp_path)

    assert {name: source.shape for name, source in found.tensors.items()} == {
        n: tuple(t.shape) for n, t in stored.items()
    }
    assert found.config.tie_word_embeddings is tied
    assert (found.head is None) is tied
    family = family_of(model_type)
    assert family is not None
    assert type(model).__name__ == family.architecture
    parameters = dict(model.named_parameters())
    for name, tensor in stored.items():
        torch.testing.assert_close(parameters[family.module_name(name)], tensor, rtol=0, atol=0)
    assert parameters[family.module_name(found.embeddings)] is model.get_input_embeddings().weight
    if found.head is not None:
        assert parameters[family.module_name(found.head)] is model.get_output_embeddings().weight


@pytest.mark.parametrize("model_type", FAMILIES)
def test_configuration_has_the_values_of_transformers(model_type: str, tmp_path: Path) -> None:
    """The second time config.json has nothing but what the tensors need."""
    save_tiny(model_type, tmp_path)
    path = tmp_path / "config.json"
    known = read_checkpoint(tmp_path).config
    _compare(known, AutoConfig.from_pretrained(tmp_path))

    raw = json.loads(path.read_text())
    text = raw.get("text_config", raw)
    silent = (
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "head_dim",
    )
    kept = {
        key: value for key, value in text.items() if key not in (*silent, "rope_parameters", "rope_scaling")
    }
    raw.pop("tie_word_embeddings")
    path.write_text(json.dumps(kept if text is raw else {**raw, "text_config": kept}))
    _compare(read_config(path, "F16"), AutoConfig.from_pretrained(tmp_path))


def _compare(found: Any, expected: Any, model_class: ModelClass | None = None) -> None:
    text = expected.get_text_config()
    for key in SIZES:
        own = (model_class.keys if model_class else {}).get(key, key)
        assert getattr(found, key) == getattr(text, own, _derived(text, key)), key
    assert found.tie_word_embeddings == expected.tie_word_embeddings
    rope = getattr(text, "rope_parameters", None) or {"rope_theta": 10000.0, "rope_type": "default"}
    rope = rope.get("full_attention", rope)
    assert found.rope_theta == rope["rope_theta"]
    assert (found.rope_type or "default") == rope["rope_type"]


def _derived(text: Any, key: str) -> Any:
    return {
        "head_dim": text.hidden_size // text.num_attention_heads, "attention_bias": False, "mlp_bias": False,
        "num_key_value_heads": text.num_attention_heads, "rms_norm_eps": 1e-6,
    }.get(key)  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    family = FAMILIES[model_type]
    config = AutoConfig.for_model(model_type)
    _check_defaults(family, config)


def _check_defaults(model_class: ModelClass, config: Any) -> None:
    text = config.get_text_config()
    for key, value in model_class.config_defaults.items():
        if key == "rope_theta":
            assert text.rope_parameters["full_attention"]["rope_theta"] == value
        elif key == "tie_word_embeddings":
            assert config.tie_word_embeddings == value
        else:
            assert getattr(text, model_class.keys.get(key, key)) == value, key


@pytest.mark.parametrize("model_type", DENSE_TYPES)
def test_dense_types_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    row = DENSE_TYPES[model_type]
    _check_defaults(row, AutoConfig.for_model(model_type))
    assert AutoConfig.for_model(model_type).tie_word_embeddings == row.config_defaults.get(
        "tie_word_embeddings", False
    )

    model = save_tiny(model_type, tmp_path)

    assert type(model).__name__ == row.architecture
    stored = load_file(tmp_path / "model.safetensors")
    found = read_checkpoint(tmp_path)
    check_class(found)
    assert {name: source.shape for name, source in found.tensors.items()} == {
        n: tuple(t.shape) for n, t in stored.items()
    }
    parameters = dict(model.named_parameters())
    assert {row.module_name(name) for name in stored} == set(parameters)
    assert max(parameter.dim() for parameter in parameters.values()) == 2, "experts have three dimensions"
    assert parameters[row.module_name(found.embeddings)] is model.get_input_embeddings().weight
    modules = {module: name for name, module in model.named_modules()}
    assert f"{modules[model.get_output_embeddings()]}.weight" == row.head
    assert {name.rsplit(".", 1)[-1] for module, name in modules.items() if isinstance(module, Conv1D)} == set(
        row.conv1d
    )
    _compare(found.config, AutoConfig.from_pretrained(tmp_path), row)


def test_vocabulary_tie_and_dtype_change_where_they_are(tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    config = read_checkpoint(tmp_path).config

    after = config_to_json(replace(config, vocab_size=310, tie_word_embeddings=False), "bfloat16")

    before["text_config"] |= {"vocab_size": 310, "tie_word_embeddings": False}
    before |= {"tie_word_embeddings": False, "dtype": "bfloat16"}
    before.pop("transformers_version")
    assert after == before


def _changed(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.k_norm.weight"
    match change:
        case "missing":
            del tensors[name]
        case "unknown":
            tensors["model.layers.1.self_attn.v_norm.weight"] = tensors[name].clone()
        case "shape":
            tensors[name] = torch.ones(12, dtype=torch.float16)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("missing", IncompleteCheckpoint, "model.layers.1.self_attn.k_norm.weight"),
        ("unknown", UnknownTensor, "model.layers.1.self_attn.v_norm.weight"),
        ("shape", ShapeMismatch, r"k_norm.weight' has shape \[12\]; config.json needs \[16\]"),
    ],
)
def test_every_tensor_is_accounted_for(
    change: str, error: type[GraftwerkError], words: str, tmp_path: Path
) -> None:
    save_tiny("qwen3", tmp_path)
    _changed(tmp_path, change)

    with pytest.raises(error, match=words):
        read_checkpoint(tmp_path)


def test_unknown_family_is_refused_with_those_that_are_taken(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"model_type": "qwen3"', '"model_type": "mamba"'))

    with pytest.raises(
        UnsupportedFormat, match=r"'mamba'; supported are llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3"
    ):
        read_checkpoint(tmp_path)


def test_tied_head_of_its_own_is_refused(tmp_path: Path) -> None:
    save_tiny("gemma2", tmp_path, tied=False)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))

    with pytest.raises(ConfigMismatch, match="tie_word_embeddings = true"):
        read_checkpoint(tmp_path)


def test_tied_head_that_shares_the_embeddings_bytes_is_dropped(tmp_path: Path) -> None:
    """torch saves tied weights as one storage under two names."""
    model = save_tiny("gemma2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    found = read_checkpoint(tmp_path)

    assert (found.head, found.dropped) == (None, ("lm_head.weight",))
