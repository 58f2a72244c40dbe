"""Rotary positions in a GGUF file: base, dimensions, scaling and factors of the frequencies.

Source: ggml-org/llama.cpp `conversion/base.py` (TextModel.set_gguf_parameters), `conversion/phi.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

import gguf
import torch

from services.architectures.config import ModelConfig
from services.architectures.gguf_support import windowed_layers
from services.checkpoints.gguf_plans import architecture_of

ROPE_FACTORS = "rope_freqs.weight"

LONG = ("longrope", "su")
"""Types of a scaling with one list of factors for short texts and one for long ones."""

LOCAL_THETA = 10000.0
"""Base of Gemma 3's layers that attend to a window, where the configuration is silent."""


def add_rope(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Adds the base, the number of rotated dimensions and the scaling."""
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(_dimensions(config))
    if architecture_of(config) == "gemma3" and windowed_layers(config):
        writer.add_rope_freq_base_swa(_local_theta(config.text_source))
    scaling = config.rope_scaling or {}
    if config.rope_type in ADD_SCALING:
        ADD_SCALING[config.rope_type](writer, config, scaling)
    if architecture_of(config) == "phi3":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))


def _dimensions(config: ModelConfig) -> int:
    share = _rope_value(config, "partial_rotary_factor", 1.0)
    return int(share * config.head_dim)


def _rope_value(config: ModelConfig, key: str, default: Any) -> Any:
    """Returns a value of the rotary configuration, which newer files nest under `rope_parameters`."""
    own = config.text_source
    for place in (own, own.get("rope_parameters"), own.get("rope_scaling")):
        if isinstance(place, Mapping) and place.get(key) is not None:
            return place[key]
    return default


def _original_context(config: ModelConfig) -> int:
    return int(_rope_value(config, "original_max_position_embeddings", config.max_position_embeddings))


def _local_theta(own: Mapping[str, Any]) -> float:
    nested = (own.get("rope_parameters") or {}).get("sliding_attention") or {}
    return float(nested.get("rope_theta") or own.get("rope_local_base_freq") or LOCAL_THETA)


def _add_linear(writer: gguf.GGUFWriter, config: ModelConfig, scaling: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(float(scaling["factor"]))


def _add_yarn(writer: gguf.GGUFWriter, config: ModelConfig, scaling: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    writer.add_rope_scaling_orig_ctx_len(_original_context(config))
    for key, add in (
        ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
        ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
        ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
    ):
        if scaling.get(key) is not None:
            add(float(scaling[key]))


def _add_long(writer: gguf.GGUFWriter, config: ModelConfig, scaling: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    original = _original_context(config)
    scale = config.max_position_embeddings / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    writer.add_rope_scaling_attn_factors(factor)


ADD_SCALING = {"linear": _add_linear, "yarn": _add_yarn, **dict.fromkeys(LONG, _add_long)}
"""Functions that write a scaling, by its type."""


def rope_factors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Returns the factors of the frequencies by name: float32 of shape (dimensions / 2,). Empty for scalings without.

    Source: llama.cpp `conversion/llama.py` and `phi.py`, generate_extra_tensors; Llama 3's formula is apply_scaling of
    meta-llama/llama-models `model.py`, whose frequency is divided by the factor.
    """
    scaling = config.rope_scaling or {}
    if config.rope_type in LONG:
        return {
            f"rope_factors_{length}.weight": torch.tensor(scaling[f"{length}_factor"], dtype=torch.float32)
            for length in ("long", "short")
        }
    if config.rope_type != "llama3":
        return {}
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    wavelengths = 2 * math.pi * config.rope_theta**exponents
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelengths > context / low, torch.full_like(between, factor), between)
    return {ROPE_FACTORS: torch.where(wavelengths < context / high, torch.ones_like(between), factors)}
