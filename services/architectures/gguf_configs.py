"""Configuration of a GGUF model in Hugging Face's terms, one function per architecture.

Keys are those of llama.cpp's converter (ggml-org/llama.cpp `convert_hf_to_gguf.py`), defaults those of its reader
(`src/llama-model.cpp`, load_hparams): where the file is silent, llama.cpp computes with them.
"""

import math

from services.architectures.config import ROPE_THETA_DEFAULT
from services.architectures.gguf_rope import read_factors, rope_scaling
from services.architectures.gguf_values import ArchitectureValues, shortest_decimal
from services.errors import ConfigMismatch, IncompleteCheckpoint, UnsupportedFormat
from services.files.gguf_files import GgufModel
from services.files.json_file import Json

EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Layers of the models whose attention is scaled by the hidden size of a head's share, not by head_dim."""


def llama_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of a LLaMA model; one with experts or a window is refused."""
    values.expect("attention.sliding_window", 0)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **_with_rope(values, model),
        "attention_bias": "blk.0.attn_q.bias" in model.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in model.tensors,
    }  # fmt: skip


def qwen2_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of a Qwen2 or Qwen2.5 model."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", **_with_rope(values, model),
        "use_sliding_window": False,
    }  # fmt: skip


def qwen3_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of a Qwen3 model."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", **_with_rope(values, model),
        "attention_bias": False, "use_sliding_window": False,
    }  # fmt: skip


def phi3_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of a Phi-3 or Phi-4 model."""
    sizes = _sizes(values, model)
    rotated = values.size("rope.dimension_count", sizes["head_dim"])
    window = values.optional_size("attention.sliding_window")
    original = values.size("rope.scaling.original_context_length", sizes["max_position_embeddings"])
    return {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu", **sizes,
        "rope_theta": values.number("rope.freq_base", ROPE_THETA_DEFAULT),
        "rope_scaling": _longrope(values, model, rotated // 2, sizes["max_position_embeddings"] / original),
        "original_max_position_embeddings": original, "partial_rotary_factor": rotated / sizes["head_dim"],
        "sliding_window": window or None,
    }  # fmt: skip


def gemma2_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of a Gemma 2 model: every second layer has a window, the first among them."""
    sizes = _with_rope(values, model)
    return {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **_gemma(values, model, sizes, _periodic(sizes, 2)),
        "tie_word_embeddings": True,
        "attn_logit_softcapping": values.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": values.number("final_logit_softcapping", 30.0),
    }  # fmt: skip


def gemma3_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of the text model of Gemma 3.

    Layers without a window have the scaled rotation: every sixth one, or those that the file lists. llama.cpp reads the period or
    the list under one key (ggml-org/llama.cpp `src/llama-model.cpp`, LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN).
    """
    sizes = _with_rope(values, model)
    listed = values.flags(WINDOWS, sizes["num_hidden_layers"])
    windows = _periodic(sizes, values.size(WINDOWS, 6)) if listed is None else listed
    return {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **_gemma(values, model, sizes, windows),
        "rope_local_base_freq": values.number("rope.freq_base_swa", 10000.0),
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    }  # fmt: skip


def _periodic(sizes: Json, period: int) -> list[bool]:
    """Returns the layers with a window if every `period`-th has none."""
    return [(layer + 1) % period != 0 for layer in range(min(sizes["num_hidden_layers"], LAYERS_LIMIT))]


def _gemma(values: ArchitectureValues, model: GgufModel, sizes: Json, windows: list[bool]) -> Json:
    layers = sizes["num_hidden_layers"]
    largest = layers == GEMMA_27B_LAYERS[model.architecture]
    share = sizes["hidden_size"] // sizes["num_attention_heads"] if largest else sizes["head_dim"]
    kinds = ["sliding_attention" if windowed else "full_attention" for windowed in windows]
    return {
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", **sizes, "attention_bias": False,
        "query_pre_attn_scalar": share, "sliding_window": values.size("attention.sliding_window", 4096), "layer_types": kinds,
    }  # fmt: skip


WINDOWS = "attention.sliding_window_pattern"

LAYERS_LIMIT = 10_000
"""More layers than any model has; the caller refuses more layers than tensors."""


def _with_rope(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the sizes and the rotary values of a family that rotates whole heads."""
    sizes = _sizes(values, model)
    theta = values.number("rope.freq_base", ROPE_THETA_DEFAULT)
    values.expect("rope.dimension_count", sizes["head_dim"])
    return {
        **sizes,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(values, model, sizes["head_dim"], theta),
    }


def _longrope(values: ArchitectureValues, model: GgufModel, count: int, scale: float) -> Json | None:
    """Returns Phi-3's factors of the frequencies for short and long contexts, None without them.

    transformers computes the factor of the attention from the two context lengths, as llama.cpp's converter does.
    """
    stated = values.optional_number("rope.scaling.attn_factor")
    found = [name for name in (LONG_FACTORS, SHORT_FACTORS) if name in model.tensors]
    if not found:
        values.expect("rope.scaling.type", "none")
        return None
    values.expect("rope.scaling.type", "longrope")
    if len(found) == 1:
        raise IncompleteCheckpoint(
            f"{model.name} has {found[0]!r} and not {({LONG_FACTORS, SHORT_FACTORS} - {*found}).pop()!r}.",
            "Fetch the model again; all its files are needed.",
        )
    original = values.size("rope.scaling.original_context_length")
    computed = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 and original > 1 else 1.0
    if stated is not None and not math.isclose(stated, computed, rel_tol=1e-4):
        raise UnsupportedFormat(
            f"{model.name} says rope.scaling.attn_factor = {stated:g}; its context lengths give {computed:g}.",
            "Use the model's Hugging Face files.",
        )
    factors = {name: list(map(shortest_decimal, read_factors(model, name, count))) for name in found}
    return {"type": "longrope", "long_factor": factors[LONG_FACTORS], "short_factor": factors[SHORT_FACTORS]}


def _sizes(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the values that every family has."""
    hidden, heads = values.size("embedding_length"), values.size("attention.head_count")
    head_dim = values.size("attention.key_length", max(1, hidden // heads))
    values.expect("attention.value_length", head_dim)
    rows = _embedding_rows(values, model)
    for key in ("expert_count", "expert_used_count"):
        values.expect(key, 0)
    values.expect("attention.causal", True)
    return {
        "hidden_size": hidden, "intermediate_size": values.size("feed_forward_length"),
        "num_hidden_layers": values.size("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": values.size("attention.head_count_kv", heads), "head_dim": head_dim,
        "vocab_size": rows, "max_position_embeddings": values.size("context_length"),
        "rms_norm_eps": values.number("attention.layer_norm_rms_epsilon"), "tie_word_embeddings": HEAD not in model.tensors,
    }  # fmt: skip


def _embedding_rows(values: ArchitectureValues, model: GgufModel) -> int:
    embeddings = model.tensors.get(EMBEDDINGS)
    if embeddings is None:
        raise IncompleteCheckpoint(
            f"{model.name} has no {EMBEDDINGS!r}.", "Fetch the model again; all its files are needed."
        )
    rows = embeddings.shape[0]
    stated = values.size("vocab_size", rows)
    if stated != rows:
        raise ConfigMismatch(
            f"{model.name} says vocab_size = {stated}; {EMBEDDINGS!r} has {rows} rows.",
            "The file is damaged or was made by another program: fetch it again.",
        )
    return rows
